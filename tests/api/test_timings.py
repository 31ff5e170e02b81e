"""How long it took, on request: the same on every front, by times that Redis noted."""

import asyncio
import json
import re
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from api.http.request_state import Usage
from api.stream.answers import timings_at_end
from api.stream.timings import Timings, timings_of
from api.submit.request_record import RequestRecord, SubmittedWork
from shared.events.log import Append
from shared.messages import Started, Tokens
from shared.queue import keys
from shared.queue.requests import JobTimes, Request
from tests.fixtures.api.echo_worker import EchoWorker
from tests.fixtures.api.fronts import in_memory, live
from tests.fixtures.desk import DONE, Desk
from tests.fixtures.posts import POSTS, TASKS_OF_PATHS

TOLD = {"X-Timings": "1"}


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
        (JobTimes(100.0, None, None, 104.0), (4.0, None, None, 4.0)),  # called off while it waited
        (JobTimes(100.0, 101.0, None, 104.0), (1.0, None, None, 4.0)),  # an answer that is no text
    ],
)
def test_of_what_has_not_come(times: JobTimes, expected: tuple[float | None, ...]) -> None:
    told = timings_of([times], 0)
    assert (told.queue_s, told.prefill_s, told.decode_s, told.total_s) == expected
    assert told.tokens_per_s is None


def test_of_a_request_of_which_a_part_runs() -> None:
    told = timings_of([JobTimes(100.0, 101.0, 101.5, 102.0), JobTimes(100.0, None, None, None)], 0)
    assert (told.queue_s, told.prefill_s, told.decode_s, told.total_s) == (1.0, 0.5, None, None)


async def test_times_are_noted_once_by_redis(redis: Redis) -> None:
    """A takeover changes neither when the job was first taken nor when it first said something."""
    hasty = Desk(redis, lease_s=0)
    desk = Desk(redis)
    request, (job,) = await desk.request()
    [waiting] = await desk.requests.look(request)
    assert (waiting.times.taken_s, waiting.times.first_s, waiting.times.ended_s) == (
        None,
        None,
        None,
    )
    (first,) = await hasty.take(1)
    await desk.say(first, Started(1, "w1", 2), Tokens((5,), "a"))
    [before] = await desk.requests.look(request)
    await redis.hset(keys.job(job.id), mapping={"taken_ms": 1000, "first_ms": 2000})  # type: ignore[misc]
    (second,) = await desk.take(1, "w2")
    await desk.say(second, Started(2, "w2", 2), Tokens((6,), "b"), DONE)
    [after] = await desk.requests.look(request)
    assert before.times.taken_s is not None
    assert before.times.first_s is not None
    assert before.times.queued_s <= before.times.taken_s <= before.times.first_s
    assert (after.times.taken_s, after.times.first_s) == (1.0, 2.0)
    assert after.times.ended_s is not None
    assert after.times.ended_s >= before.times.first_s
    assert after.fingerprint == "f"


async def test_what_a_worker_gathered_counts_from_when_it_came(redis: Redis) -> None:
    """Tokens that nobody follows wait in the worker for a while; its clock's difference is told,
    not its time."""
    desk = Desk(redis)
    request, _ = await desk.request()
    (claim,) = await desk.take(1)
    since_s = asyncio.get_running_loop().time() - 30
    await desk.writer.append(
        [Append(claim.job, claim.epoch, 0, (Tokens((5,), "a"), DONE), since_s)]
    )
    [standing] = await desk.requests.look(request)
    assert standing.times.first_s is not None
    assert standing.times.ended_s is not None
    assert 30 <= standing.times.ended_s - standing.times.first_s < 31


@pytest.mark.parametrize(("path", "body"), POSTS)
async def test_every_answer_tells_its_timings_when_asked(
    redis: Redis, able: EchoWorker, path: str, body: dict[str, Any]
) -> None:
    """In headers, or as a comment where those have gone out; and `/v1/jobs` says the same on
    another front."""
    is_text = path not in TASKS_OF_PATHS
    async with in_memory(redis) as one, in_memory(redis) as two:
        plain = await one.post(path, json=body)
        answer = await one.post(path, json=body, headers=TOLD)
        told = (await two.get(f"/v1/jobs/{answer.headers['X-Job-Id']}")).json()["timings"]
    assert "Server-Timing" not in plain.headers
    assert ": timings" not in plain.text
    assert (told["prefill_s"] is not None) == (told["decode_s"] is not None) == is_text
    if "stream" in body:
        assert json.loads(_comment(answer)) == told
        return
    metrics = dict(re.findall(r"(\w+);dur=(\d+)", answer.headers["Server-Timing"]))
    assert {f"{name}_s": int(ms) / 1000 for name, ms in metrics.items()} == {
        name: value for name, value in told.items() if value is not None and name != "tokens_per_s"
    }
    assert ("X-Tokens-Per-Second" in answer.headers) == (told["tokens_per_s"] is not None)


async def test_a_resumed_stream_tells_them_too(
    client: httpx.AsyncClient, worker: EchoWorker
) -> None:
    body = {"prompt": "a b", "stream": True}
    first = await client.post("/v1/completions", json=body, headers=TOLD)
    seen = re.findall(r"^id: (.*)$", first.text, re.MULTILINE)[1]
    again = await client.post("/v1/completions", json=body, headers=TOLD | {"Last-Event-ID": seen})
    assert _comment(again) == _comment(first)
    assert again.text.endswith("\ndata: [DONE]\n\n")


async def test_a_wrong_wish_is_named(client: httpx.AsyncClient, worker: EchoWorker) -> None:
    answer = await client.post(
        "/generate", json={"prompts": ["a"]}, headers={"X-Timings": "please"}
    )
    assert (answer.status_code, answer.json()["error"]["field"]) == (400, "X-Timings")


async def test_an_answer_does_not_depend_on_its_timings(redis: Redis) -> None:
    """What Redis no longer knows is left out."""
    gone = Request("00" + "a" * 32, "public", ("00" + "b" * 32,))
    async with live(redis) as (_, front):
        assert (
            await timings_at_end(
                front, SubmittedWork(gone, RequestRecord("generate", "echo", 0)), Usage()
            )
            is None
        )


def _comment(answer: httpx.Response) -> str:
    [comment] = re.findall(r"^: timings (.*)$", answer.text, re.MULTILINE)
    return str(comment)
