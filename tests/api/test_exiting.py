"""A front that is told to stop is gone within two seconds, whatever Redis does meanwhile."""

import asyncio
import signal

import httpx

from tests.fixtures.api.echo_worker import EchoWorker
from tests.fixtures.api.fronts import process
from tests.fixtures.polling import until
from tests.fixtures.redis_server import RedisServer
from tests.fixtures.slowness import within

LATER = {"Prefer": "respond-async"}


async def running(client: httpx.AsyncClient, worker: EchoWorker) -> str:
    """Where to ask for a job that has begun and is held."""
    worker.gate.clear()
    location: str = (
        await client.post("/generate", json={"prompts": ["a b"]}, headers=LATER)
    ).headers["Location"]
    await until(lambda: len(worker.jobs) == 1, "the job runs")
    return location


async def test_redis_hangs_while_it_is_asked_and_jobs_are_called_off(
    own_redis: RedisServer,
) -> None:
    async with EchoWorker(own_redis.url) as worker, process(own_redis.url) as (front, client):
        location = await running(client, worker)
        waiting = asyncio.create_task(client.post("/generate", json={"prompts": ["c d"]}))
        await until(lambda: len(worker.jobs) == 2, "the second job runs")
        with own_redis.hanging():
            waiting.cancel()
            asking = asyncio.create_task(client.get(location))
            await until(lambda: has_left(client), "the front has noticed that the caller left")
            with within(2, "the front exits"):
                front.send_signal(signal.SIGTERM)
                assert await front.wait() == 0
        await asyncio.gather(asking, return_exceptions=True)


async def has_left(client: httpx.AsyncClient) -> bool:
    return 'aios_errors_total{code="cancelled"}' in (await client.get("/metrics")).text
