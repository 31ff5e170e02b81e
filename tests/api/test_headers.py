"""Headers of a POST: class, deadline, key and patience; a bad one is refused by name and with a
reason."""

import httpx
import pytest
from redis.asyncio import Redis

from api.access.caller import Caller
from shared.queue import keys
from tests.fixtures.api.echo_worker import EchoWorker, announce
from tests.fixtures.api.errors import read_error
from tests.fixtures.api.fronts import in_memory, states
from tests.fixtures.posts import POSTS

BAD = [
    ("X-Priority", "urgent"),
    ("X-Priority", ""),
    ("X-Deadline-Ms", "0"),
    ("X-Deadline-Ms", "-5"),
    ("X-Deadline-Ms", "1.5"),
    ("X-Deadline-Ms", "soon"),
    ("X-Deadline-Ms", "9" * 40),
    ("Idempotency-Key", ""),
    ("Idempotency-Key", "k" * 256),
    ("Idempotency-Key", "a\tb"),
    ("X-AB-Key", ""),
    ("X-AB-Key", "k" * 257),
    ("Prefer", "wait=-1"),
    ("Prefer", "wait=x"),
    ("X-On-Disconnect", "panic"),
]


@pytest.mark.parametrize(("path", "body"), POSTS)
@pytest.mark.parametrize("priority", ["interactive", "default", "bulk"])
async def test_the_class_of_every_post(
    client: httpx.AsyncClient, able: EchoWorker, path: str, body: dict[str, object], priority: str
) -> None:
    with_class = await client.post(path, json=body, headers={"X-Priority": priority})
    without_class = await client.post(path, json=body)

    assert with_class.status_code == 200
    assert without_class.status_code == 200
    assert [job.priority for job in able.jobs] == [priority, "default"]


def test_a_class_is_clamped_to_the_callers_best() -> None:
    caller = Caller(best_priority="default")
    assert caller.clamped("interactive") == "default"
    assert caller.clamped("default") == "default"
    assert caller.clamped("bulk") == "bulk"


@pytest.mark.parametrize(("header", "value"), BAD)
async def test_a_bad_header_is_named(
    client: httpx.AsyncClient, worker: EchoWorker, header: str, value: str
) -> None:
    for path, body in POSTS:
        answer = await client.post(path, json=body, headers={header: value})
        assert answer.status_code == 400, (path, answer.text)
        error = read_error(answer)
        assert error.message.startswith(header)
        # TGI's error is its message alone.
        if error.form != "tgi":
            assert error.field == header

    assert worker.jobs == []


async def test_a_deadline_is_kept_and_capped(redis: Redis, worker: EchoWorker) -> None:
    async with in_memory(redis, request_timeout_s=50) as client:
        for headers in ({}, {"X-Deadline-Ms": "20000"}, {"X-Deadline-Ms": "99999999"}):
            answer = await client.post("/generate", json={"prompts": ["a"]}, headers=headers)
            assert answer.status_code == 200

    durations_ms = []
    for job in worker.jobs:
        times = ["queued_ms", "deadline_ms"]
        queued_ms, deadline_ms = await redis.hmget(keys.job(job.id), times)  # type: ignore[misc]
        durations_ms.append(int(deadline_ms) - int(queued_ms))
    assert durations_ms == [50_000, 20_000, 50_000]


async def test_a_deadline_that_passes_is_504(redis: Redis) -> None:
    await announce(redis, "echo")
    async with in_memory(redis) as client:
        answer = await client.post(
            "/generate", json={"prompts": ["a"]}, headers={"X-Deadline-Ms": "50"}
        )

    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert await states(redis) == ["failed"]


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        ({"tenant_concurrency": 1}, "rate_limited"),
        ({"tenant_rate_per_s": 0.001, "tenant_burst": 1}, "rate_limited"),
        ({"max_queue_depth": 1}, "queue_full"),
        ({"max_queue_bytes": 500}, "queue_full"),
    ],
)
async def test_each_limit_refuses_with_its_reason(
    redis: Redis, limits: dict[str, object], code: str
) -> None:
    await announce(redis, "echo")
    later = {"Prefer": "respond-async"}
    async with in_memory(redis, **limits) as client:
        first = await client.post("/generate", json={"prompts": ["a"]}, headers=later)
        assert first.status_code == 202

        for path, body in (("/generate", {"prompts": ["a"]}), ("/v1/completions", {"prompt": "a"})):
            answer = await client.post(path, json=body, headers=later)
            assert (answer.status_code, answer.json()["error"]["code"]) == (429, code)
            assert answer.headers["X-Reject-Reason"] == code
            assert 1 <= int(answer.headers["Retry-After"]) <= 60

    assert await states(redis) == ["queued"]


async def test_a_deadline_that_cannot_be_kept_is_refused(redis: Redis, worker: EchoWorker) -> None:
    """A request is refused if the queue is too long for the rate at which work has ended."""
    async with in_memory(redis) as client:
        # Three requests to measure the rate on.
        for _ in range(3):
            await client.post("/generate", json={"prompts": ["a b c"]})
        worker.gate.clear()

        # Then a queue that is far too long for that rate, and has been there since 1970.
        depth = {"cost:default": 10_000_000, "jobs:default": 1}
        await redis.hset(keys.depth("00", "echo"), mapping=depth)  # type: ignore[misc]
        await redis.set("aios:{00}:busy:echo", 1)

        answer = await client.post(
            "/generate", json={"prompts": ["a"]}, headers={"X-Deadline-Ms": "500"}
        )

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "deadline_infeasible")
    assert answer.headers["X-Reject-Reason"] == "deadline_infeasible"
    assert int(answer.headers["Retry-After"]) >= 1
