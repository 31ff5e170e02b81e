"""The only worker of a fleet restarts, drained or killed: requests wait, and none fails."""

import asyncio
import signal

import httpx
import pytest
from redis.asyncio import Redis

from shared.fleet.presence import Presence
from shared.queue.broker import Broker
from shared.queue.submission import Submissions
from tests.fixtures.e2e.fleet import FrontProcess, front, start_worker
from tests.fixtures.polling import until

NUM_REQUESTS = 100
NUM_CLIENTS = 8
NUM_BEFORE = 20
PATIENT = ("--absent-grace-s", "300", "--queue-timeout-s", "300")
"""Requests wait for the next worker for as long as a busy machine takes to start one."""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_a_hundred_requests_across_a_restart(
    redis_url: str, redis: Redis, how: signal.Signals
) -> None:
    worker = await start_worker(redis_url, redis)
    try:
        async with front(redis_url, *PATIENT) as running:
            await running.ready()
            done: list[int] = []
            rest_may_come = asyncio.Event()
            asking = asyncio.create_task(_ask_all(running, done, rest_may_come))
            await until(lambda: asking.done() or len(done) == NUM_BEFORE, "some are answered")
            rest_may_come.set()
            worker.signal(how)
            await worker.wait()
            await until(lambda: _has_gone(redis), "nobody is there")
            await until(lambda: asking.done() or _are_open(redis), "all clients wait")
            assert len(done) < NUM_REQUESTS
            worker = await start_worker(redis_url, redis)
            await asking
    finally:
        await worker.end()
    assert sorted(done) == list(range(NUM_REQUESTS))


async def _ask_all(running: FrontProcess, done: list[int], rest_may_come: asyncio.Event) -> None:
    """Send all requests with some clients, each of which has one request under way.

    The first failure ends them all.
    """
    numbers = iter(range(NUM_REQUESTS))

    async def ask(client: httpx.AsyncClient) -> None:
        for number in numbers:
            if number >= NUM_BEFORE:
                await rest_may_come.wait()
            prompt = f"number{number:03}"
            answer = await client.post("/generate", json={"prompts": [prompt], "max_tokens": 9})
            assert answer.status_code == 200, answer.text
            assert answer.json()["completions"] == [prompt]
            done.append(number)

    async with (
        httpx.AsyncClient(base_url=running.url, timeout=300) as client,
        asyncio.TaskGroup() as group,
    ):
        for _ in range(NUM_CLIENTS):
            group.create_task(ask(client))


async def _has_gone(redis: Redis) -> bool:
    return not (await Presence(redis).fleet()).workers


async def _are_open(redis: Redis) -> bool:
    """Count running jobs too: those of a killed worker are not queued until another starts."""
    depth = await Submissions(Broker(redis)).depth("echo")
    return depth.queued + depth.running == NUM_CLIENTS
