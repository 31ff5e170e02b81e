"""Liveness, readiness and metrics, with and without workers."""

from redis.asyncio import Redis

from tests.fixtures.api.echo_worker import EchoWorker
from tests.fixtures.api.fronts import in_memory


async def test_without_a_worker(redis: Redis) -> None:
    async with in_memory(redis) as client:
        health = await client.get("/healthz")
        ready = await client.get("/readyz")

    assert health.status_code == 200
    assert health.json() == {"status": "ok", "ready": False}
    assert ready.status_code == 503
    assert ready.json() == {"status": "not ready", "reason": "no worker is ready"}


async def test_with_a_worker(redis: Redis, worker: EchoWorker) -> None:
    async with in_memory(redis, healthz_mode="ready") as client:
        health = await client.get("/healthz")
        ready = await client.get("/readyz")

    assert health.status_code == 200
    assert health.json() == {"status": "ok", "ready": True}
    assert ready.status_code == 200
    assert ready.json() == {"status": "ready"}


async def test_healthz_in_mode_ready(redis: Redis) -> None:
    async with in_memory(redis, healthz_mode="ready") as client:
        assert (await client.get("/healthz")).status_code == 503


async def test_metrics(redis: Redis, worker: EchoWorker) -> None:
    worker.num_cached = 1
    async with in_memory(redis) as client:
        await client.post("/generate", json={"prompts": ["a b", "c"]})
        await client.post("/generate", json={})
        await client.get("/no/such/path")
        lines = (await client.get("/metrics")).text.splitlines()

    for line in (
        'aios_http_requests_total{method="POST",route="/generate",status="200"} 1.0',
        'aios_http_requests_total{method="POST",route="/generate",status="400"} 1.0',
        'aios_http_requests_total{method="GET",route="unmatched",status="404"} 1.0',
        'aios_http_request_seconds_count{route="/generate"} 2.0',
        'aios_prompt_tokens_total{model="echo"} 3.0',
        'aios_cached_prompt_tokens_total{model="echo"} 2.0',
        'aios_completion_tokens_total{model="echo"} 3.0',
        'aios_jobs_total{model="echo",outcome="done"} 2.0',
        'aios_queue_depth{model="echo",state="queued"} 0.0',
        'aios_queue_depth{model="echo",state="running"} 0.0',
    ):
        assert line in lines
