"""Fronts for tests: in memory, or a real server on a free port in the test's own loop."""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import uvicorn
from fastapi import FastAPI
from redis.asyncio import Redis

from api.__main__ import Server
from api.app import create_app
from api.deps import Front
from shared import keys
from shared.broker import Broker
from shared.settings import Settings
from shared.tracing import NO_TRACING, Tracing
from tests.polling import DEADLINE_S, until

_TIMEOUT_S = 60.0


@asynccontextmanager
async def in_memory(
    redis: Redis | Broker, *, tracing: Tracing = NO_TRACING, **settings: object
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a front that has no socket."""
    broker = redis if isinstance(redis, Broker) else Broker(redis)
    app = create_app(Settings(**settings), broker, tracing)  # type: ignore[arg-type]
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://front"
    ) as client:
        yield client
    await front_of(app).close()


@asynccontextmanager
async def live(
    redis: Redis, *, tracing: Tracing = NO_TRACING, **settings: object
) -> AsyncIterator[tuple[httpx.AsyncClient, Front]]:
    """A client of a front that listens on a port."""
    app = create_app(Settings(**settings), Broker(redis), tracing)  # type: ignore[arg-type]
    config = uvicorn.Config(
        app, "127.0.0.1", 0, log_config=None, access_log=False, timeout_graceful_shutdown=1
    )
    server = Server(config)
    serving = asyncio.create_task(server.serve())
    await until(lambda: server.started, "the front listens")
    port = server.servers[0].sockets[0].getsockname()[1]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=_TIMEOUT_S) as client:
        yield client, front_of(app)
    server.should_exit = True
    await serving


@asynccontextmanager
async def process(
    redis_url: str, **settings: object
) -> AsyncIterator[tuple[asyncio.subprocess.Process, httpx.AsyncClient]]:
    """`python -m api` on a free port, which it tells in its log."""
    chosen = Settings(redis_url=redis_url, host="127.0.0.1", port=0, **settings)  # type: ignore[arg-type]
    env = os.environ | chosen.to_env()
    front = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "api",
        env=env,
        stderr=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    try:
        port = await asyncio.wait_for(_port_of(front), DEADLINE_S)
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", timeout=_TIMEOUT_S
        ) as client:
            yield front, client
    finally:
        if front.returncode is None:
            front.kill()
            await front.wait()


async def _port_of(front: asyncio.subprocess.Process) -> int:
    """Return the port that the front names in its log, once it answers."""
    assert front.stderr is not None
    started_s = time.monotonic()
    line = b""
    while b'"front ready"' not in line:
        line = await front.stderr.readline()
        assert line, f"the front ended after {time.monotonic() - started_s:.1f} s"
    return int(json.loads(line)["port"])


def front_of(app: FastAPI) -> Front:
    front: Front = app.state.front
    return front


async def state(redis: Redis, job_id: str) -> str:
    value: bytes | None = await redis.hget(keys.job(job_id), "state")  # type: ignore[misc]
    return (value or b"gone").decode()


async def states(redis: Redis) -> list[str]:
    """The states of all jobs there are."""
    names = [name.decode() async for name in redis.scan_iter(keys.job("00*"))]
    return sorted([await state(redis, name.rpartition(":")[2]) for name in names])


async def has_followers(redis: Redis, count: int) -> bool:
    """Whether there is one request, and so many follow it whose leaving may end it."""
    names = await redis.keys("aios:{00}:request:*")
    fields: list[bytes] = await redis.hkeys(names[0]) if len(names) == 1 else []  # type: ignore[misc]
    return [field.startswith(b"follower:") for field in fields].count(True) == count
