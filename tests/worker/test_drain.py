"""Draining: a worker that is told to go is gone in two seconds.

It hands everything over at the next step boundary.
"""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis

from shared.messages import Done, Job, Tokens
from tests.fixtures.desk import Desk
from tests.fixtures.polling import DEADLINE_S, until
from tests.fixtures.redis_server import RedisServer
from tests.fixtures.slowness import waited_within, within
from tests.fixtures.worker.services import (
    Gated,
    Slow,
    end_of,
    loaded,
    log_fields_of,
    long_task,
    service,
    serving,
)
from worker.engine.runner import RunnerOptions
from worker.runners.echo import Echo

LONG_LEASE_S = 600.0
"""Far longer than a test: no job may change hands because a lease lapsed."""

SLOW_WORKER = """
import sys, time
from shared.settings.settings import Settings
from shared.messages import ModelInfo
from tests.fixtures.worker.services import loaded
from worker import __main__ as process
from worker.engine.runner import RunnerOptions
from worker.runners.echo import Echo

class Sleeper(Echo):
    def encode(self, task):
        if sys.argv[2] == "encode":
            print("encode", flush=True)
            time.sleep(600)
        return super().encode(task)
    def step(self, slices):
        print("step", flush=True)
        time.sleep(600)
        return super().step(slices)

def load(settings, known, most=None):
    if sys.argv[2] == "load":
        print("load", flush=True)
        time.sleep(600)
    return loaded(Sleeper(RunnerOptions("echo", max_batch=4))), []

process.load_known_models = load
process.run(Settings(redis_url=sys.argv[1], lease_s=600))
"""


@asynccontextmanager
async def slow_worker(redis_url: str, phase: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start a worker process, and wait until it is in a phase that takes ten minutes."""
    command = [sys.executable, "-c", SLOW_WORKER, redis_url, phase]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        line = b""
        while phase.encode() not in line:
            line = await asyncio.wait_for(process.stdout.readline(), DEADLINE_S)
            assert line, "the worker ended"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def check_exit(process: asyncio.subprocess.Process) -> None:
    """Check that the process exits with 0 within two seconds of SIGTERM."""
    with waited_within(2, "the worker process exits"):
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0


async def check_stop(running: "asyncio.Task[bool]", stop: asyncio.Event, limit_s: float) -> None:
    """Check that the worker stops within `limit_s`."""
    with within(limit_s, "the worker stops"):
        stop.set()
        assert await running is True


def fast_echo() -> Echo:
    return Echo(RunnerOptions("echo", max_batch=4))


def slow_echo() -> Slow:
    slow = Slow(RunnerOptions("echo", max_batch=4))
    slow.stepping_s = 0.02
    return slow


async def has_tokens(desk: Desk, job: Job) -> bool:
    return any(isinstance(event, Tokens) for event in await desk.events(job))


async def test_another_worker_goes_on_at_once(redis: Redis) -> None:
    """Another worker goes on with the jobs long before the lease ends (P1).

    No token is lost, and none is there twice.
    """
    slow = slow_echo()
    desk = Desk(redis)
    jobs = await desk.submit(*[long_task(60)] * 3, is_streamed=True)
    stop = asyncio.Event()
    leaver = service(redis, lease_s=LONG_LEASE_S)
    running = asyncio.create_task(leaver.run(lambda: loaded(slow), stop))
    await until(lambda: has_tokens(desk, jobs[0]), "the first tokens are in the log")

    async with serving(service(redis, lease_s=LONG_LEASE_S), fast_echo()):
        await check_stop(running, stop, limit_s=5.0)
        for job in jobs:
            assert isinstance(await end_of(redis, job), Done)
            # Both workers had the job, one after the other.
            assert await log_fields_of(redis, job) == ("abc" * 20, [1, 2])
    assert leaver.ledger.claims == []


async def test_a_long_step_does_not_hold_a_worker(redis: Redis) -> None:
    """A worker leaves without a step of a minute, and the result of the step is refused."""
    stuck = Gated(RunnerOptions("echo", max_batch=4), longest_s=60)
    stop = asyncio.Event()
    jobs = await Desk(redis).submit(long_task(30), long_task(30))
    leaver = service(redis, lease_s=LONG_LEASE_S)
    running = asyncio.create_task(leaver.run(lambda: loaded(stuck), stop))
    await until(lambda: stuck.num_steps == 1, "the step has begun")

    async with serving(service(redis, lease_s=LONG_LEASE_S), fast_echo()):
        await check_stop(running, stop, limit_s=6.0)
        for job in jobs:
            assert isinstance(await end_of(redis, job), Done)
            text, _ = await log_fields_of(redis, job)
            assert text == "abc" * 10
        # Only now does the step of the first worker end.
        stuck.gate.set()


async def test_the_only_worker_leaves_its_jobs_to_the_next(redis: Redis) -> None:
    """A job of the only worker goes back to the queue, and the next worker ends it."""
    slow = slow_echo()
    stop = asyncio.Event()
    [job] = await Desk(redis).submit(long_task(60))
    leaver = service(redis, lease_s=LONG_LEASE_S)
    running = asyncio.create_task(leaver.run(lambda: loaded(slow), stop))
    await until(lambda: len(leaver.ledger.claims) == 1, "it is taken")

    await check_stop(running, stop, limit_s=5.0)
    assert await Desk(redis).counts() == (0, 1)

    async with serving(service(redis), fast_echo()):
        assert isinstance(await end_of(redis, job), Done)
    text, _ = await log_fields_of(redis, job)
    assert text == "abc" * 20


@pytest.mark.parametrize("phase", ["load", "encode", "step"])
async def test_the_process_is_gone_in_two_seconds(redis: Redis, redis_url: str, phase: str) -> None:
    """A process exits in time although its threads are in ten minutes of uninterruptible work."""
    [job] = await Desk(redis).submit(long_task(3))
    async with slow_worker(redis_url, phase) as process:
        await check_exit(process)

    async with serving(service(redis), fast_echo()):
        assert isinstance(await end_of(redis, job), Done)


async def test_nor_does_a_redis_that_does_not_answer_hold_it(
    redis: Redis, redis_url: str, redis_server: RedisServer
) -> None:
    """A process exits in time although Redis does not answer.

    Its lease and its presence record lapse by themselves then.
    """
    await Desk(redis).submit(long_task(3))
    async with slow_worker(redis_url, "step") as process:
        with redis_server.hanging():
            await check_exit(process)
