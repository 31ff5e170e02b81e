"""Timings of a request, which its caller may ask for.

They are the same on every front, as Redis takes the times."""

import asyncio
import json
import re
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis

from api.http.request_state import Usage
from api.stream.answers import timings_at_end
from api.stream.stopwatch import Stopwatch
from api.stream.timings import Timings, timings_of
from api.submit.request_record import RequestRecord, SubmittedWork
from shared.events.log import Append
from shared.messages import Done, Event, Failed, Progress, Started, Tokens
from shared.queue import keys
from shared.queue.requests import JobTimes, Request
from shared.telemetry.metrics import Metrics
from tests.fixtures.api.echo_worker import EchoWorker
from tests.fixtures.api.fronts import in_memory, live
from tests.fixtures.desk import DONE, Desk
from tests.fixtures.posts import POSTS, TASKS_OF_PATHS

WITH_TIMINGS = {"X-Timings": "1"}


def test_of_a_request_that_has_ended() -> None:
    times = [JobTimes(100.0, 101.0, 102.5, 104.5), JobTimes(100.0, 100.5, 103.0, 105.5)]
    assert timings_of(times, 10) == Timings(
        queue_s=0.5, prefill_s=2.0, decode_s=3.0, total_s=5.5, tokens_per_s=2.0
    )


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (JobTimes(100.0, None, None, None), (None, None, None, None)),
        (JobTimes(100.0, 101.0, None, None), (1.0, None, None, None)),
        (JobTimes(100.0, 101.0, 103.0, None), (1.0, 2.0, None, None)),
        # A job that was cancelled while it waited.
        (JobTimes(100.0, None, None, 104.0), (4.0, None, None, 4.0)),
        # An answer without text.
        (JobTimes(100.0, 101.0, None, 104.0), (1.0, None, None, 4.0)),
    ],
)
def test_of_what_has_not_come(times: JobTimes, expected: tuple[float | None, ...]) -> None:
    timings = timings_of([times], 0)
    assert (timings.queue_s, timings.prefill_s, timings.decode_s, timings.total_s) == expected
    assert timings.tokens_per_s is None


def test_of_a_request_of_which_a_part_runs() -> None:
    ended = JobTimes(100.0, 101.0, 101.5, 102.0)
    waiting = JobTimes(100.0, None, None, None)
    timings = timings_of([ended, waiting], 0)
    assert (timings.queue_s, timings.prefill_s) == (1.0, 0.5)
    assert (timings.decode_s, timings.total_s) == (None, None)


async def test_times_are_noted_once_by_redis(redis: Redis) -> None:
    """A takeover changes neither when a job was first taken nor when its first token came."""
    hasty = Desk(redis, lease_s=0)
    desk = Desk(redis)
    request, [job] = await desk.request()
    [waiting] = await desk.requests.look(request)
    assert waiting.times.taken_s is None
    assert waiting.times.first_s is None
    assert waiting.times.ended_s is None

    [first_claim] = await hasty.take(1)
    await desk.say(first_claim, Started(1, "w1", 2), Tokens((5,), "a"))
    [before] = await desk.requests.look(request)
    assert before.times.taken_s is not None
    assert before.times.first_s is not None
    assert before.times.queued_s <= before.times.taken_s <= before.times.first_s

    # Times far in the past, which a second taking would visibly overwrite.
    long_ago = {"taken_ms": 1000, "first_ms": 2000}
    await redis.hset(keys.job(job.id), mapping=long_ago)  # type: ignore[misc]
    [second_claim] = await desk.take(1, "w2")
    await desk.say(second_claim, Started(2, "w2", 2), Tokens((6,), "b"), DONE)
    [after] = await desk.requests.look(request)
    assert (after.times.taken_s, after.times.first_s) == (1.0, 2.0)
    assert after.times.ended_s is not None
    assert after.times.ended_s >= before.times.first_s
    assert after.fingerprint == "f"


async def test_what_a_worker_gathered_counts_from_when_it_came(redis: Redis) -> None:
    """Tokens count from the moment when the worker had them.

    Without a follower they wait in the worker for a while. The worker sends their age, not a time
    by its clock."""
    desk = Desk(redis)
    request, _ = await desk.request()
    [claim] = await desk.take(1)
    since_s = asyncio.get_running_loop().time() - 30
    events = (Tokens((5,), "a"), DONE)
    await desk.writer.append(
        [Append(claim.job, claim.epoch, after=0, events=events, since_s=since_s)]
    )

    [ended] = await desk.requests.look(request)
    assert ended.times.first_s is not None
    assert ended.times.ended_s is not None
    assert 30 <= ended.times.ended_s - ended.times.first_s < 31


@pytest.mark.parametrize(("path", "body"), POSTS)
async def test_every_answer_tells_its_timings_when_asked(
    redis: Redis, able: EchoWorker, path: str, body: dict[str, Any]
) -> None:
    """A whole answer has its timings in headers, a stream in a comment.

    `/v1/jobs` has the same timings on another front."""
    async with in_memory(redis) as one, in_memory(redis) as two:
        plain = await one.post(path, json=body)
        answer = await one.post(path, json=body, headers=WITH_TIMINGS)
        job = await two.get(f"/v1/jobs/{answer.headers['X-Job-Id']}")
    timings = job.json()["timings"]

    assert "Server-Timing" not in plain.headers
    assert ": timings" not in plain.text

    is_text = path not in TASKS_OF_PATHS
    assert (timings["prefill_s"] is not None) == is_text
    assert (timings["decode_s"] is not None) == is_text

    # The headers of a stream have gone out before it has any timings.
    if "stream" in body:
        assert json.loads(_comment(answer)) == timings
        return

    in_header = {}
    for name, ms in re.findall(r"(\w+);dur=(\d+)", answer.headers["Server-Timing"]):
        in_header[f"{name}_s"] = int(ms) / 1000
    tokens_per_s = timings.pop("tokens_per_s")
    known = {name: seconds for name, seconds in timings.items() if seconds is not None}
    assert in_header == known
    assert ("X-Tokens-Per-Second" in answer.headers) == (tokens_per_s is not None)


async def test_a_resumed_stream_tells_them_too(
    client: httpx.AsyncClient, worker: EchoWorker
) -> None:
    body = {"prompt": "a b", "stream": True}
    first = await client.post("/v1/completions", json=body, headers=WITH_TIMINGS)
    _, second_id, *_ = re.findall(r"^id: (.*)$", first.text, re.MULTILINE)
    resumed = await client.post(
        "/v1/completions", json=body, headers=WITH_TIMINGS | {"Last-Event-ID": second_id}
    )

    assert _comment(resumed) == _comment(first)
    assert resumed.text.endswith("\ndata: [DONE]\n\n")


async def test_a_wrong_wish_is_named(client: httpx.AsyncClient, worker: EchoWorker) -> None:
    answer = await client.post(
        "/generate", json={"prompts": ["a"]}, headers={"X-Timings": "please"}
    )
    assert (answer.status_code, answer.json()["error"]["field"]) == (400, "X-Timings")


async def test_an_answer_does_not_depend_on_its_timings(redis: Redis) -> None:
    """A request that Redis no longer has is answered without timings."""
    gone = Request("00" + "a" * 32, "public", ("00" + "b" * 32,))
    work = SubmittedWork(gone, RequestRecord("generate", "echo", 0))
    async with live(redis) as (_, front):
        assert await timings_at_end(front, work, Usage()) is None


def _comment(answer: httpx.Response) -> str:
    """Return the timings that a stream has in a comment, as JSON."""
    [comment] = re.findall(r"^: timings (.*)$", answer.text, re.MULTILINE)
    return str(comment)


def test_d97_d98_the_times_of_each_task_are_counted() -> None:
    """A token and a step are a job's first output, and its result where there are none.

    A job that fails has no time, and an event that is seen again counts once.
    """
    metrics = Metrics()
    watch = Stopwatch(metrics, "m", ["generate", "text-to-image", "embed", "embed"])
    done = Done("stop", 1, 1)
    failed = Failed("model_failed", "It broke.")
    progress = Progress(1, 4)
    started = Started(1, "w", num_prompt_tokens=1)
    tokens = Tokens((1,), "a")
    seen: list[tuple[int, int, Event]] = [
        (0, 1, started),
        (0, 2, tokens),
        (0, 2, tokens),
        (0, 3, tokens),
    ]
    seen += [(1, 1, progress), (1, 2, progress), (1, 3, done), (2, 1, done), (3, 1, failed)]
    for job, index, event in seen:
        watch.note(job, index, event)

    counts: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            if sample.name.endswith("_count") and "task" in sample.labels:
                counts.setdefault(sample.name, {})[sample.labels["task"]] = sample.value
    assert counts == {
        "aios_first_output_seconds_count": {"generate": 1, "text-to-image": 1, "embed": 1},
        "aios_task_seconds_count": {"text-to-image": 1, "embed": 1},
    }
