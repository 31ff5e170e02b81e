"""SIGTERM on a fleet whose Redis ends with it.

Jobs in flight are finished, and callers of the others get a true answer.
"""

import json
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psutil

from tests.fixtures.e2e.serving import Serving, serving
from tests.fixtures.polling import is_running, wait_until

ECHO = ["--model-path", "echo", "--threads", "1"]
ECHO += ["--max-new-tokens", "1000000", "--context-window", "2000000"]
ENDLESS = 900_000


def send(
    url: str, path: str, body: dict[str, Any], headers: dict[str, str] | None = None
) -> httpx.Response:
    return httpx.post(f"{url}{path}", json=body, headers=headers, timeout=180)


def stream_text(lines: list[str]) -> str:
    text = ""
    for line in lines:
        if line.startswith("data: {"):
            chunk = json.loads(line.removeprefix("data: "))
            for choice in chunk.get("choices", ()):
                text += choice["text"]
    return text


def stream(url: str, max_tokens: int) -> list[str]:
    body = {"prompt": "abc", "max_tokens": max_tokens, "stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=180) as answer:
        return list(answer.iter_lines())


def state(url: str, job_id: str) -> str:
    return str(httpx.get(f"{url}/v1/jobs/{job_id}", timeout=180).json()["state"])


def is_logged(fleet: Serving, words: str) -> bool:
    return any(words in line for line in fleet.lines)


def submit(url: str, max_tokens: int) -> str:
    """Submit a job without waiting for its end, and return its id."""
    body = {"prompts": ["abc"], "max_tokens": max_tokens}
    return str(send(url, "/generate", body, {"Prefer": "respond-async"}).json()["id"])


def submit_behind(url: str, num_waiting: int) -> str:
    """Submit a short job behind this number of waiting jobs, and return its id."""
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
    """P4: a job that waits for the batch of one is accepted, so it is answered."""
    with serving(*ECHO, "--max-batch-size", "1") as fleet, ThreadPoolExecutor() as pool:
        url = fleet.url
        first_id = submit(url, ENDLESS)
        wait_until(lambda: state(url, first_id) == "running", "the first job runs")
        body = {"prompts": ["abc"], "max_tokens": 300}
        waiting = pool.submit(send, url, "/generate", body)
        reading = pool.submit(stream, url, 300)
        last_id = submit_behind(url, 2)

        fleet.process.send_signal(signal.SIGTERM)
        wait_until(lambda: is_logged(fleet, "front draining"), "the front drains")

        refused = send(url, "/generate", {"prompts": ["abc"], "max_tokens": 5})
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "draining"
        assert httpx.get(f"{url}/readyz", timeout=180).status_code == 503
        assert state(url, first_id) == "running"
        assert state(url, last_id) == "queued"

        # The cancelled job makes room for those that wait.
        assert httpx.delete(f"{url}/v1/jobs/{first_id}", timeout=180).status_code == 200
        wait_until(lambda: state(url, last_id) == "done", "the last job is done and can be read")
        answer = waiting.result(timeout=180)
        assert answer.status_code == 200
        assert answer.json()["completions"] == ["abc" * 100]
        lines = reading.result(timeout=180)
        assert stream_text(lines) == "abc" * 100
        assert lines[-2] == "data: [DONE]"
        assert fleet.process.wait(timeout=180) == 0


def test_what_is_left_at_the_end_of_the_time_is_told_that_it_is_lost() -> None:
    """P4: no caller hears that a job goes on when it dies with its Redis a moment later."""
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

            *_, error, end = [line for line in lines if line]
            assert json.loads(error.removeprefix("data: "))["error"]["code"] == "shut_down"
            assert end == "data: [DONE]"

        answer = waiting.result(timeout=180)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "shut_down"
        assert "goes on" not in answer.text
        assert "Location" not in answer.headers

        job = httpx.get(f"{url}/v1/jobs/{job_id}", timeout=180).json()
        assert job["state"] == "failed"
        assert job["error"]["code"] == "shut_down"

        assert fleet.process.wait(timeout=180) == 0
        lines = [json.loads(line) for line in fleet.lines if "work cut off by shutdown" in line]
        # A line without a number says that the followers had no time to leave, once all were told.
        assert [line["num_jobs"] for line in lines if "num_jobs" in line] == [3]


def test_a_second_signal_ends_at_once() -> None:
    with serving(*ECHO, "--drain-timeout-s", "300") as fleet:
        processes = psutil.Process(fleet.process.pid).children(recursive=True)
        submit(fleet.url, ENDLESS)
        fleet.process.send_signal(signal.SIGTERM)
        wait_until(lambda: is_logged(fleet, "front draining"), "the front drains")
        assert fleet.process.poll() is None

        # Sooner it counts as the same signal, which some init systems send twice.
        time.sleep(0.4)
        second_signal_s = time.monotonic()
        fleet.process.send_signal(signal.SIGTERM)
        assert fleet.process.wait(timeout=180) == 0
        # It takes a second on a machine that is not busy, and would take 300 if it drained.
        assert time.monotonic() - second_signal_s < 60
        for process in processes:
            assert not is_running(process.pid)
