"""SIGTERM on a fleet whose Redis goes with it: what is in flight is finished, and what is left is
told the truth."""

import json
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psutil

from tests.fixtures.e2e.serving import Serving, serving
from tests.fixtures.polling import is_running, wait_until

ECHO = (
    "--model-path",
    "echo",
    "--max-new-tokens",
    "1000000",
    "--context-window",
    "2000000",
    "--threads",
    "1",
)
ENDLESS = 900_000


def send(
    url: str, path: str, body: dict[str, Any], headers: dict[str, str] | None = None
) -> httpx.Response:
    return httpx.post(f"{url}{path}", json=body, headers=headers, timeout=180)


def stream_text(lines: list[str]) -> str:
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    return "".join(choice["text"] for chunk in chunks for choice in chunk.get("choices", ()))


def stream(url: str, max_tokens: int) -> list[str]:
    body = {"prompt": "abc", "max_tokens": max_tokens, "stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=180) as answer:
        return list(answer.iter_lines())


def state(url: str, job_id: str) -> str:
    return str(httpx.get(f"{url}/v1/jobs/{job_id}", timeout=180).json()["state"])


def is_said(fleet: Serving, words: str) -> bool:
    return any(words in line for line in fleet.lines)


def submit(url: str, max_tokens: int) -> str:
    """A job that nobody waits for; its id."""
    body = {"prompts": ["abc"], "max_tokens": max_tokens}
    return str(send(url, "/generate", body, {"Prefer": "respond-async"}).json()["id"])


def submit_behind(url: str, num_waiting: int) -> str:
    """A short job, submitted when so many others wait; its id."""
    submitted: list[str] = []

    def is_behind() -> bool:
        submitted.append(submit(url, 3))
        status = httpx.get(f"{url}/v1/jobs/{submitted[-1]}", timeout=180).json()
        if status["queue_position"] == num_waiting + 1:
            return True
        httpx.delete(f"{url}/v1/jobs/{submitted[-1]}", timeout=180)
        return False

    wait_until(is_behind, f"{num_waiting} jobs wait")
    return submitted[-1]


def test_what_is_in_flight_is_finished_and_what_is_new_is_refused() -> None:
    """P4: what waits for the one place has been accepted, so it is answered once the place is
    free."""
    with serving(*ECHO, "--max-batch-size", "1") as fleet, ThreadPoolExecutor() as pool:
        url = fleet.url
        first_id = submit(url, ENDLESS)
        wait_until(lambda: state(url, first_id) == "running", "the first job runs")
        waiting = pool.submit(send, url, "/generate", {"prompts": ["abc"], "max_tokens": 300})
        reading = pool.submit(stream, url, 300)
        last_id = submit_behind(url, 2)
        fleet.process.send_signal(signal.SIGTERM)
        wait_until(lambda: is_said(fleet, "front draining"), "the front drains")
        refused = send(url, "/generate", {"prompts": ["abc"], "max_tokens": 5})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert httpx.get(f"{url}/readyz", timeout=180).status_code == 503
        assert state(url, first_id) == "running" and state(url, last_id) == "queued"
        assert httpx.delete(f"{url}/v1/jobs/{first_id}", timeout=180).status_code == 200
        wait_until(lambda: state(url, last_id) == "done", "the last job is done and can be read")
        answer = waiting.result(timeout=180)
        assert (answer.status_code, answer.json()["completions"]) == (200, ["abc" * 100])
        lines = reading.result(timeout=180)
        assert stream_text(lines) == "abc" * 100
        assert lines[-2] == "data: [DONE]"
        assert fleet.process.wait(timeout=180) == 0


def test_what_is_left_at_the_end_of_the_time_is_told_that_it_is_lost() -> None:
    """P4: no caller hears that a job goes on which dies with its Redis a moment later."""
    flags = ("--max-batch-size", "1", "--drain-timeout-s", "0.5")
    with serving(*ECHO, *flags) as fleet, ThreadPoolExecutor() as pool:
        url = fleet.url
        body = {"prompt": "abc", "max_tokens": ENDLESS, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=180) as reading:
            lines = reading.iter_lines()
            next(line for line in lines if "abc" in line)
            waiting = pool.submit(send, url, "/generate", {"prompts": ["abc"], "max_tokens": 5})
            job_id = submit_behind(url, 1)
            fleet.process.send_signal(signal.SIGTERM)
            last = [line for line in lines if line][-2:]
            assert json.loads(last[0].removeprefix("data: "))["error"]["code"] == "shut_down"
            assert last[1] == "data: [DONE]"
        answer = waiting.result(timeout=180)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "shut_down")
        assert "goes on" not in answer.text
        assert "Location" not in answer.headers
        status = httpx.get(f"{url}/v1/jobs/{job_id}", timeout=180).json()
        assert (status["state"], status["error"]["code"]) == ("failed", "shut_down")
        assert fleet.process.wait(timeout=180) == 0
        (line,) = [json.loads(line) for line in fleet.lines if "work cut off by shutdown" in line]
        assert line["num_jobs"] == 3


def test_a_second_signal_ends_at_once() -> None:
    with serving(*ECHO, "--drain-timeout-s", "300") as fleet:
        family = psutil.Process(fleet.process.pid).children(recursive=True)
        submit(fleet.url, ENDLESS)
        fleet.process.send_signal(signal.SIGTERM)
        wait_until(lambda: is_said(fleet, "front draining"), "the front drains")
        assert fleet.process.poll() is None
        time.sleep(0.4)  # sooner it counts as the same signal, which some init systems send twice
        hurried_s = time.monotonic()
        fleet.process.send_signal(signal.SIGTERM)
        assert fleet.process.wait(timeout=180) == 0
        assert time.monotonic() - hurried_s < 5  # a second on a machine that is not busy
        assert not [child for child in family if is_running(child.pid)]
