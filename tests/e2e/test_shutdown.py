"""SIGTERM on a fleet whose Redis goes with it: what is in flight is finished, and what is left is told the truth."""

import json
import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import psutil

from tests.e2e.serving import Serving, serving
from tests.polling import is_running, wait_until

ECHO = ("--model-path", "echo", "--max-new-tokens", "1000000", "--context-window", "2000000", "--threads", "1")
LONG = 8_000
ENDLESS = 900_000


def send(url: str, path: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> httpx.Response:
    return httpx.post(f"{url}{path}", json=body, headers=headers, timeout=60)


def stream_text(lines: list[str]) -> str:
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    return "".join(choice["text"] for chunk in chunks for choice in chunk.get("choices", ()))


def stream(url: str, max_tokens: int) -> list[str]:
    body = {"prompt": "abc", "max_tokens": max_tokens, "stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as answer:
        return list(answer.iter_lines())


def is_in_state(url: str, job_id: str, states: tuple[str, ...]) -> bool:
    return httpx.get(f"{url}/v1/jobs/{job_id}", timeout=60).json()["state"] in states


def is_said(fleet: Serving, words: str) -> bool:
    return any(words in line for line in fleet.lines)


def submit(url: str, max_tokens: int) -> str:
    """A job that nobody waits for; its id."""
    body = {"prompts": ["abc"], "max_tokens": max_tokens}
    return str(send(url, "/generate", body, {"Prefer": "respond-async"}).json()["id"])


def ask(fleet: Serving, pool: ThreadPoolExecutor, max_tokens: int) -> tuple[str, "Future[Any]", "Future[Any]"]:
    """A job to be polled, which runs, and behind it one caller that waits and one that reads a stream."""
    job_id = submit(fleet.url, max_tokens)
    waiting = pool.submit(send, fleet.url, "/generate", {"prompts": ["abc"], "max_tokens": max_tokens})
    reading = pool.submit(stream, fleet.url, max_tokens)
    wait_until(lambda: is_in_state(fleet.url, job_id, ("running",)), "the job runs")
    depth = 'aios_queue_depth{class="default",model="echo"} 2.0'
    wait_until(lambda: depth in httpx.get(f"{fleet.url}/metrics", timeout=60).text, "two wait behind it")
    return job_id, waiting, reading


def test_what_is_in_flight_is_finished_and_what_is_new_is_refused() -> None:
    """P4: one that runs and two that wait have all been accepted, so they are answered."""
    with serving(*ECHO, "--max-batch-size", "1") as fleet, ThreadPoolExecutor() as pool:
        url = fleet.url
        job_id, waiting, reading = ask(fleet, pool, LONG)
        fleet.process.send_signal(signal.SIGTERM)
        wait_until(lambda: is_said(fleet, "front draining"), "the front drains")
        refused = send(url, "/generate", {"prompts": ["abc"], "max_tokens": 5})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert httpx.get(f"{url}/readyz", timeout=60).status_code == 503
        wait_until(lambda: is_in_state(url, job_id, ("done",)), "the polled job is done and can be read")
        expected = ("abc" * LONG)[:LONG]
        answer = waiting.result(timeout=60)
        assert (answer.status_code, answer.json()["completions"]) == (200, [expected])
        lines = reading.result(timeout=60)
        assert stream_text(lines) == expected
        assert lines[-2] == "data: [DONE]"
        assert fleet.process.wait(timeout=60) == 0


def test_a_job_that_nobody_follows_is_finished_and_can_be_read_once_more() -> None:
    with serving(*ECHO) as fleet:
        url = fleet.url
        job_id = submit(url, LONG)
        fleet.process.send_signal(signal.SIGTERM)
        wait_until(lambda: is_in_state(url, job_id, ("done", "failed", "cancelled")), "the job has ended")
        body = httpx.get(f"{url}/v1/jobs/{job_id}", timeout=60).json()
        assert body["result"]["completions"] == [("abc" * LONG)[:LONG]]


def test_what_is_left_at_the_end_of_the_time_is_told_that_it_is_lost() -> None:
    """P4: no caller hears that a job goes on which dies with its Redis a moment later."""
    flags = ("--max-batch-size", "1", "--drain-timeout-s", "0.5")
    with serving(*ECHO, *flags) as fleet, ThreadPoolExecutor() as pool:
        url = fleet.url
        job_id, waiting, reading = ask(fleet, pool, ENDLESS)
        fleet.process.send_signal(signal.SIGTERM)
        answer = waiting.result(timeout=60)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "shut_down")
        assert "goes on" not in answer.text
        assert "Location" not in answer.headers
        lines = [line for line in reading.result(timeout=60) if line]
        assert json.loads(lines[-2].removeprefix("data: "))["error"]["code"] == "shut_down"
        assert lines[-1] == "data: [DONE]"
        body = httpx.get(f"{url}/v1/jobs/{job_id}", timeout=60).json()
        assert (body["state"], body["error"]["code"]) == ("failed", "shut_down")
        assert fleet.process.wait(timeout=60) == 0
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
        assert fleet.process.wait(timeout=60) == 0
        assert time.monotonic() - hurried_s < 5  # a second on a machine that is not busy
        assert not [child for child in family if is_running(child.pid)]
