"""A front that is told to stop is gone within two seconds, whatever Redis does meanwhile."""

import asyncio
import os
import signal
import time
from pathlib import Path

import httpx

from tests.api.echo_worker import EchoWorker
from tests.api.fronts import process
from tests.polling import until
from tests.redis_server import start_redis

LATER = {"Prefer": "respond-async"}


async def exit_s(front: asyncio.subprocess.Process) -> float:
    """How long it takes to exit, with 0, after SIGTERM."""
    started_s = time.monotonic()
    front.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(front.wait(), 10) == 0
    return time.monotonic() - started_s


async def running(client: httpx.AsyncClient, worker: EchoWorker) -> str:
    """Where to ask for a job that has begun and is held."""
    worker.gate.clear()
    location: str = (await client.post("/generate", json={"prompts": ["a b"]}, headers=LATER)).headers["Location"]
    await until(lambda: len(worker.jobs) == 1, "the job runs")
    return location


async def test_redis_hangs_while_it_is_asked_and_jobs_are_called_off(tmp_path: Path) -> None:
    server = start_redis(tmp_path)
    async with EchoWorker(server.url) as worker, process(server.url) as (front, client):
        location = await running(client, worker)
        waiting = asyncio.create_task(client.post("/generate", json={"prompts": ["c d"]}))
        await until(lambda: len(worker.jobs) == 2, "the second job runs")
        os.kill(server.pid, signal.SIGSTOP)
        waiting.cancel()
        asking = asyncio.create_task(client.get(location))
        await until(lambda: has_left(client), "the front has noticed that the caller left")
        assert await exit_s(front) < 2
        os.kill(server.pid, signal.SIGCONT)
        await asyncio.gather(asking, return_exceptions=True)
    server.stop()


async def has_left(client: httpx.AsyncClient) -> bool:
    return 'aios_errors_total{code="cancelled"}' in (await client.get("/metrics")).text
