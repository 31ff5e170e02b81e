"""Real processes of the product for end-to-end tests: started on a Redis, awaited, and ended by
pid."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
from redis.asyncio import Redis

from shared.presence import Presence
from tests.polling import DEADLINE_S, until
from tests.redis_server import free_port


@dataclass
class WorkerProcess:
    process: asyncio.subprocess.Process

    @property
    def pid(self) -> int:
        return self.process.pid

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    async def wait(self) -> int:
        return await self.process.wait()

    async def end(self) -> None:
        """Kill if it still runs."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGKILL)
        await self.process.wait()


async def start_worker(
    url: str, redis: Redis, *flags: str, model: str = "echo=echo"
) -> WorkerProcess:
    """A worker that is ready: its presence says so."""
    command = [
        sys.executable,
        "-m",
        "worker",
        "--redis-url",
        url,
        "--model",
        model,
        "--log-level",
        "warning",
        *flags,
    ]
    process = await asyncio.create_subprocess_exec(
        *command, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not await _is_ready(redis, process.pid):
                assert process.returncode is None, f"the worker ended with {process.returncode}"
                await asyncio.sleep(0.05)
    except BaseException:
        process.kill()
        await process.wait()
        raise
    return WorkerProcess(process)


async def _is_ready(redis: Redis, pid: int) -> bool:
    fleet = await Presence(redis).fleet()
    return any(worker.state == "ready" and f"-{pid}-" in worker.id for worker in fleet.workers)


@dataclass
class FrontProcess:
    process: asyncio.subprocess.Process
    url: str

    async def ready(self) -> None:
        """Return when it sees a worker: what it knows of the fleet may be half a second old."""
        async with httpx.AsyncClient(base_url=self.url) as client:
            await until(lambda: _answers_ready(client), "the front sees a worker", deadline_s=180)


async def _answers_ready(client: httpx.AsyncClient) -> bool:
    return (await client.get("/readyz")).status_code == 200


@asynccontextmanager
async def front(redis_url: str, *flags: str) -> AsyncIterator[FrontProcess]:
    """`python -m api` that answers /healthz; killed at the end if it still runs."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "api",
        "--redis-url",
        redis_url,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    patient = ("--drain-timeout-s", "30", "--log-level", "warning")
    process = await asyncio.create_subprocess_exec(*command, *flags, *patient, env=dict(os.environ))
    running = FrontProcess(process, f"http://127.0.0.1:{port}")
    try:
        async with asyncio.timeout(DEADLINE_S), httpx.AsyncClient() as client:
            while True:
                try:
                    await client.get(f"{running.url}/healthz")
                    break
                except httpx.TransportError:
                    await asyncio.sleep(0.05)
        yield running
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
