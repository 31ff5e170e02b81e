"""A front that is told to stop is gone within two seconds, whatever Redis does meanwhile."""

import asyncio
import signal

import httpx

from tests.fixtures.api.echo_worker import EchoWorker
from tests.fixtures.api.fronts import process
from tests.fixtures.polling import until
from tests.fixtures.redis_server import RedisServer
from tests.fixtures.slowness import waited_within

LATER = {"Prefer": "respond-async"}


async def submit_held(client: httpx.AsyncClient, worker: EchoWorker) -> str:
    """Submit a job that begins and is held there. Return its path."""
    worker.gate.clear()
    submitted = await client.post("/generate", json={"prompts": ["a b"]}, headers=LATER)
    await until(lambda: len(worker.jobs) == 1, "the job runs")
    location: str = submitted.headers["Location"]
    return location


async def test_redis_hangs_while_it_is_asked_and_jobs_are_called_off(
    own_redis: RedisServer,
) -> None:
    async with EchoWorker(own_redis.url) as worker, process(own_redis.url) as (front, client):
        location = await submit_held(client, worker)
        waiting = asyncio.create_task(client.post("/generate", json={"prompts": ["c d"]}))
        await until(lambda: len(worker.jobs) == 2, "the second job runs")

        with own_redis.hanging():
            # The front has to cancel one job and to read another.
            waiting.cancel()
            reading = asyncio.create_task(client.get(location))
            await until(lambda: has_left(client), "the front has noticed that the caller left")

            with waited_within(2, "the front exits"):
                front.send_signal(signal.SIGTERM)
                assert await front.wait() == 0

        await asyncio.gather(reading, return_exceptions=True)


async def has_left(client: httpx.AsyncClient) -> bool:
    """Return whether the front has noticed that a caller left."""
    return 'aios_errors_total{code="cancelled"}' in (await client.get("/metrics")).text
