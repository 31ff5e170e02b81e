"""Ways out of a request: the caller leaves, a sibling fails, time runs out, Redis goes."""

import asyncio
import math

import httpx
import pytest
from redis.asyncio import Redis

from shared.messages import Cancelled, Failed
from shared.queue import keys
from shared.queue.broker import Broker, connect
from shared.queue.submission import Submissions
from tests.fixtures.api.echo_worker import EchoWorker, announce
from tests.fixtures.api.fronts import in_memory, live, states
from tests.fixtures.polling import until
from tests.fixtures.redis_server import RedisServer


@pytest.mark.parametrize("body", [{"prompts": ["a b"]}, {"prompts": ["a b", "c d"]}])
async def test_a_sync_caller_that_leaves_cancels_its_jobs(
    redis: Redis, worker: EchoWorker, body: dict[str, list[str]]
) -> None:
    num_jobs = len(body["prompts"])
    worker.gate.clear()

    async with live(redis) as (client, _):
        waiting = asyncio.create_task(client.post("/generate", json=body))
        await until(lambda: len(worker.jobs) == num_jobs, "the jobs run")

        waiting.cancel()
        await until(lambda: all_are(redis, ["cancelled"] * num_jobs), "the jobs are cancelled")

        worker.gate.set()
        await until(lambda: len(worker.stale) == num_jobs, "the worker is told")


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v1/completions", {"prompt": "a b"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a b"}]}),
    ],
)
async def test_a_streaming_caller_that_leaves_cancels_its_job(
    redis: Redis, worker: EchoWorker, path: str, asked: dict[str, object]
) -> None:
    worker.gate.clear()
    async with live(redis) as (client, front):
        request = client.build_request("POST", path, json=asked | {"stream": True})
        answer = await client.send(request, stream=True)
        await anext(answer.aiter_lines())
        await answer.aclose()

        await until(lambda: all_are(redis, ["cancelled"]), "the job is cancelled")
        sample = 'outcome="cancelled"} 1.0'
        await until(lambda: sample in front.metrics.render().decode(), "it is counted")


async def test_a_caller_that_leaves_the_queue_cancels_its_job(redis: Redis) -> None:
    await announce(redis, "echo")
    async with live(redis) as (client, _):
        waiting = asyncio.create_task(client.post("/generate", json={"prompts": ["a"]}))
        await until(lambda: all_are(redis, ["queued"]), "the job is queued")
        waiting.cancel()
        await until(lambda: all_are(redis, ["cancelled"]), "the job is cancelled")


async def test_a_failed_job_takes_its_siblings_along(redis: Redis, worker: EchoWorker) -> None:
    worker.gate.clear()
    body = {"prompts": ["a b", "c d", "e f"]}
    failure = Failed("worker_failed", "It broke.")

    async with in_memory(redis) as client:
        waiting = asyncio.create_task(client.post("/generate", json=body))
        await until(lambda: len(worker.jobs) == 3, "the jobs run")

        await Submissions(Broker(redis)).end([worker.jobs[1]], failure)
        answer = await waiting
        await until(
            lambda: all_are(redis, ["cancelled", "cancelled", "failed"]),
            "the siblings are cancelled",
        )

    assert (answer.status_code, answer.json()["error"]["message"]) == (500, "It broke.")


async def test_a_job_cancelled_by_somebody_else(redis: Redis, worker: EchoWorker) -> None:
    worker.gate.clear()
    async with in_memory(redis) as client:
        waiting = asyncio.create_task(client.post("/generate", json={"prompts": ["a b"]}))
        await until(lambda: len(worker.jobs) == 1, "the job runs")
        await Submissions(Broker(redis)).end([worker.jobs[0]], Cancelled())
        assert (await waiting).status_code == 499


async def test_a_request_that_takes_too_long(redis: Redis, worker: EchoWorker) -> None:
    worker.gate.clear()
    async with in_memory(redis, request_timeout_s=0.3) as client:
        answer = await client.post("/generate", json={"prompts": ["a b"]})
        await until(lambda: all_are(redis, ["failed"]), "the job is failed")

    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")


async def test_a_job_that_no_worker_takes_in_time(redis: Redis) -> None:
    await announce(redis, "echo")
    async with in_memory(redis, queue_timeout_s=0.2) as client:
        answer = await client.post("/generate", json={"prompts": ["a b"]})

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "queue_timeout")
    assert int(answer.headers["Retry-After"]) >= 1
    assert await states(redis) == ["failed"]


async def test_a_caller_who_waits_for_a_while_does_not_lengthen_the_time_to_queue(
    redis: Redis,
) -> None:
    await announce(redis, "echo")
    async with in_memory(redis, queue_timeout_s=7) as client:
        patience = {"Prefer": "respond-async, wait=4"}
        answer = await client.post("/generate", json={"prompts": ["a b"]}, headers=patience)
        assert (answer.status_code, answer.json()["state"]) == (202, "queued")
        await until(lambda: all_are(redis, ["failed"]), "the job is failed")

    [name] = [name async for name in redis.scan_iter(keys.pattern("job"))]
    queued_ms, ended_ms = await redis.hmget(name, ["queued_ms", "ended_ms"])
    # Less than 4 s of patience and 7 s in the queue, one after the other.
    assert int(ended_ms) - int(queued_ms) < 10_900, "its time began when it was queued"


async def test_a_job_that_runs_is_spared_by_the_queue_timeout(
    redis: Redis, worker: EchoWorker
) -> None:
    worker.gate.clear()
    body = {"prompt": "a b", "stream": True}

    async with in_memory(redis, queue_timeout_s=3, keepalive_s=0.3) as client:
        waiting = asyncio.create_task(client.post("/v1/completions", json=body))
        await until(lambda: len(worker.jobs) == 1, "the job runs")

        # Longer than the time in the queue.
        await asyncio.wait({waiting}, timeout=3.5)
        worker.gate.set()
        assert (await waiting).status_code == 200


async def test_without_redis_there_is_503_and_still_health(own_redis: RedisServer) -> None:
    redis = connect(own_redis.url)
    async with EchoWorker(own_redis.url), live(redis) as (client, _):
        assert (await client.post("/generate", json={"prompts": ["a"]})).status_code == 200
        own_redis.stop()

        for path, body in (("/generate", {"prompts": ["a"]}), ("/v1/completions", {"prompt": "a"})):
            answer = await client.post(path, json=body)
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "broker_unavailable"
            assert "Retry-After" in answer.headers

        await until(
            lambda: is_reason(client, "Redis is not reachable"), "the front sees that Redis is away"
        )
        assert (await client.get("/healthz")).json() == {"status": "ok", "ready": False}
        assert (await client.get("/metrics")).status_code == 200
    await redis.aclose()


async def test_a_redis_that_hangs_costs_seconds_and_what_it_took_is_called_off(
    own_redis: RedisServer,
) -> None:
    redis = connect(own_redis.url)
    await announce(redis, "echo")
    async with live(redis, require_key="no") as (client, front):
        await front.fleet.now()
        # The view of the fleet stays fresh, so that it is the submission that finds Redis hanging.
        front.fleet.expires_at = math.inf

        with own_redis.hanging():
            answer = await client.post("/generate", json={"prompts": ["a"]})

        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "broker_unavailable")
        await until(lambda: all_are(redis, ["cancelled"]), "the job is called off")
    await redis.aclose()


async def test_a_front_may_start_before_redis_and_outlive_its_restart(
    own_redis: RedisServer,
) -> None:
    own_redis.stop()
    redis = connect(own_redis.url)
    async with live(redis) as (client, _):
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/readyz")).status_code == 503

        for _ in range(2):
            own_redis.start()
            async with EchoWorker(own_redis.url):
                await until(lambda: is_ready(client), "the front is ready")
                answer = await client.post("/generate", json={"prompts": ["a b"]})
                assert answer.json()["completions"] == ["a b"]
            own_redis.stop()
    await redis.aclose()


async def all_are(redis: Redis, expected: list[str]) -> bool:
    """Return whether these are the states of all jobs."""
    return await states(redis) == expected


async def is_reason(client: httpx.AsyncClient, expected: str) -> bool:
    return bool((await client.get("/readyz")).json().get("reason") == expected)


async def is_ready(client: httpx.AsyncClient) -> bool:
    return (await client.get("/readyz")).status_code == 200
