"""Fronts and workers as separate processes on one Redis, as compose and Helm will run them (issue
item 2)."""

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
    """The job, once it is done."""
    async with asyncio.timeout(DEADLINE_S):
        while (told := (await http.get(url)).json())["state"] in ("queued", "running"):
            await asyncio.sleep(0.05)
    return dict(told)


async def test_any_front_any_worker_and_both_drain(redis_server: RedisServer, redis: Redis) -> None:
    """A118, DESIGN 8: no sticky sessions; A114: SIGTERM loses no request that is under way: a front
    sends it on."""
    async with (
        front(redis_server.url, *CAP) as first,
        front(redis_server.url, *CAP) as second,
        httpx.AsyncClient(timeout=60) as http,
    ):
        assert (await http.get(f"{first.url}/readyz")).status_code == 503
        refused = await http.post(f"{first.url}/generate", json={"prompts": ["ab"]})
        assert (refused.status_code, "Retry-After" in refused.headers) == (503, True)
        workers = [await start_worker(redis_server.url, redis, *CAP) for _ in range(2)]
        try:
            await first.ready()
            await second.ready()
            long = {"prompts": ["abc"] * 8, "max_tokens": 2000}
            asked = [
                asyncio.create_task(http.post(f"{item.url}/generate", json=long))
                for item in (first, second)
            ]
            while not [key async for key in redis.scan_iter("aios:{00}:log:*")]:
                await asyncio.sleep(0.005)
            workers[0].signal(signal.SIGTERM)
            first.process.send_signal(signal.SIGTERM)
            sent_on, whole = await asyncio.gather(*asked)
            assert sent_on.status_code == 503
            job = await ended(http, second.url + sent_on.headers["Location"])
            for answer in (job["result"], whole.json()):
                assert answer["completions"] == [("abc" * 700)[:2000]] * 8
            assert await workers[0].wait() == 0
            assert await first.process.wait() == 0
            late = await http.post(
                f"{second.url}/generate", json={"prompts": ["xyz"], "max_tokens": 4}
            )
            assert late.json()["completions"] == ["xyzx"]
        finally:
            for worker in workers:
                await worker.end()
