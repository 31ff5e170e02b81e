"""What the headers of a POST ask for: class, deadline, key, patience; what is refused, by name and
with a reason."""

import httpx
import pytest
from redis.asyncio import Redis

from api.access.caller import Caller
from shared.queue import keys
from tests.fixtures.api.echo_worker import EchoWorker, announce
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
    ("Prefer", "wait=-1"),
    ("Prefer", "wait=x"),
    ("X-On-Disconnect", "panic"),
]


@pytest.mark.parametrize(("path", "body"), POSTS)
@pytest.mark.parametrize("priority", ["interactive", "default", "bulk"])
async def test_the_class_of_every_post(
    client: httpx.AsyncClient, able: EchoWorker, path: str, body: dict[str, object], priority: str
) -> None:
    assert (await client.post(path, json=body, headers={"X-Priority": priority})).status_code == 200
    assert (await client.post(path, json=body)).status_code == 200
    assert [job.priority for job in able.jobs] == [priority, "default"]


def test_a_class_is_clamped_to_the_callers_best() -> None:
    caller = Caller(best_priority="default")
    assert [caller.clamped(asked) for asked in ("interactive", "default", "bulk")] == [
        "default",
        "default",
        "bulk",
    ]


@pytest.mark.parametrize(("header", "value"), BAD)
async def test_a_bad_header_is_named(
    client: httpx.AsyncClient, worker: EchoWorker, header: str, value: str
) -> None:
    for path, body in POSTS:
        answer = await client.post(path, json=body, headers={header: value})
        assert answer.status_code == 400, (path, answer.text)
        error = answer.json()["error"]
        if isinstance(error, str):  # as TGI has it
            assert error.startswith(header)
            continue
        assert header in (
            error.get("field"),
            error.get("param"),
            error.get("details", {}).get("field"),
        )
        assert error["message"].startswith(header)
    assert worker.jobs == []


async def test_a_deadline_is_kept_and_capped(redis: Redis, worker: EchoWorker) -> None:
    async with in_memory(redis, request_timeout_s=50) as client:
        for given in ({}, {"X-Deadline-Ms": "20000"}, {"X-Deadline-Ms": "99999999"}):
            assert (
                await client.post("/generate", json={"prompts": ["a"]}, headers=given)
            ).status_code == 200
    times = [await redis.hmget(keys.job(job.id), "queued_ms", "deadline_ms") for job in worker.jobs]  # type: ignore[misc]
    assert [int(deadline) - int(queued) for queued, deadline in times] == [50_000, 20_000, 50_000]


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
        assert (
            await client.post("/generate", json={"prompts": ["a"]}, headers=later)
        ).status_code == 202
        for path, body in (("/generate", {"prompts": ["a"]}), ("/v1/completions", {"prompt": "a"})):
            answer = await client.post(path, json=body, headers=later)
            assert (answer.status_code, answer.json()["error"]["code"]) == (429, code)
            assert answer.headers["X-Reject-Reason"] == code
            assert 1 <= int(answer.headers["Retry-After"]) <= 60
    assert await states(redis) == ["queued"]


async def test_a_deadline_that_cannot_be_kept_is_refused(redis: Redis, worker: EchoWorker) -> None:
    """The rate is measured on what has ended; then the queue is made too long for it, and to have
    been there always."""
    async with in_memory(redis) as client:
        for _ in range(3):
            await client.post("/generate", json={"prompts": ["a b c"]})
        worker.gate.clear()
        await redis.hset(
            keys.depth("00", "echo"), mapping={"cost:default": 10_000_000, "jobs:default": 1}
        )  # type: ignore[misc]
        await redis.set("aios:{00}:busy:echo", 1)
        answer = await client.post(
            "/generate", json={"prompts": ["a"]}, headers={"X-Deadline-Ms": "500"}
        )
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "deadline_infeasible")
    assert answer.headers["X-Reject-Reason"] == "deadline_infeasible"
    assert int(answer.headers["Retry-After"]) >= 1
