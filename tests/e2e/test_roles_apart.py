"""Fronts and workers run as separate processes on one Redis.

Compose and Helm run them so (issue item 2).
"""

import asyncio
import signal
from typing import Any

import httpx
from redis.asyncio import Redis

from tests.fixtures.e2e.fleet import front, start_worker
from tests.fixtures.e2e.roles_apart import CAP
from tests.fixtures.polling import DEADLINE_S
from tests.fixtures.redis_server import RedisServer


async def ended(http: httpx.AsyncClient, url: str) -> dict[str, Any]:
    """Wait until the job has ended, and return it."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            job: dict[str, Any] = (await http.get(url)).json()
            if job["state"] not in ("queued", "running"):
                return job
            await asyncio.sleep(0.05)


async def test_any_front_any_worker_and_both_drain(redis_server: RedisServer, redis: Redis) -> None:
    """A118, DESIGN 8: any front knows every job, so there are no sticky sessions.

    A114: SIGTERM loses no request under way; a front that stops refers its caller to the job.
    """
    async with (
        front(redis_server.url, *CAP) as first,
        front(redis_server.url, *CAP) as second,
        httpx.AsyncClient(timeout=60) as http,
    ):
        assert (await http.get(f"{first.url}/readyz")).status_code == 503
        refused = await http.post(f"{first.url}/generate", json={"prompts": ["ab"]})
        assert refused.status_code == 503
        assert "Retry-After" in refused.headers

        drained = await start_worker(redis_server.url, redis, *CAP)
        survivor = await start_worker(redis_server.url, redis, *CAP)
        try:
            await first.ready()
            await second.ready()
            long = {"prompts": ["abc"] * 8, "max_tokens": 2000}
            of_first = asyncio.create_task(http.post(f"{first.url}/generate", json=long))
            # A worker holds jobs from the first event of a log on, and these are the first front's.
            while not [key async for key in redis.scan_iter("aios:{00}:log:*")]:
                await asyncio.sleep(0.005)
            of_second = asyncio.create_task(http.post(f"{second.url}/generate", json=long))

            drained.signal(signal.SIGTERM)
            first.process.send_signal(signal.SIGTERM)

            referred = await of_first
            assert referred.status_code == 503
            job = await ended(http, second.url + referred.headers["Location"])
            whole = await of_second
            for answer in (job["result"], whole.json()):
                assert answer["completions"] == [("abc" * 700)[:2000]] * 8
            assert await drained.wait() == 0
            assert await first.process.wait() == 0

            short = {"prompts": ["xyz"], "max_tokens": 4}
            late = await http.post(f"{second.url}/generate", json=short)
            assert late.json()["completions"] == ["xyzx"]
        finally:
            await drained.end()
            await survivor.end()
