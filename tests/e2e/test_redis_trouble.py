"""Redis is killed and restarted, emptied or out of memory.

Nothing acknowledged is lost, and workers live on.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from redis.asyncio import Redis

from shared.errors import BrokerUnavailable, FleetError
from shared.events.log import LogReader
from shared.events.subscriptions import Subscriptions
from shared.messages import Done, Event, Generate, Job, ModelInfo, Sampling, Terminal, Tokens
from shared.queue import keys
from shared.queue.broker import UNAVAILABLE, Broker, connect
from shared.queue.leases import QueuePolicy
from tests.fixtures.desk import Desk
from tests.fixtures.polling import DEADLINE_S, until
from tests.fixtures.redis_server import start_redis
from worker.engine.runner import RunnerOptions
from worker.engine.sequence import Slice, StepResult
from worker.host.loading import LoadedModel
from worker.host.service import WorkerService
from worker.runners.echo import Echo

LONG = Generate("abc", Sampling(60, seed=0))


class Paced(Echo):
    """An echo that steps with a permit of the test, or freely."""

    def __init__(self) -> None:
        super().__init__(RunnerOptions("echo", max_batch=8))
        self.permits = threading.Semaphore(0)
        self.is_free = False

    def step(self, slices: Sequence[Slice]) -> list[StepResult | FleetError]:
        if not self.is_free:
            self.permits.acquire()
        return super().step(slices)

    def let_go(self) -> None:
        self.is_free = True
        self.permits.release(1000)


@asynccontextmanager
async def working(
    redis: Redis, runner: Paced, lease_s: float = 1.0
) -> AsyncIterator[WorkerService]:
    worker = WorkerService(
        Broker(redis), QueuePolicy(lease_s=lease_s, result_ttl_s=60), drain_timeout_s=5
    )
    stop = asyncio.Event()
    model = LoadedModel(ModelInfo("m", "echo", "test", 100, 100, 8), runner, lambda: model)
    running = asyncio.create_task(worker.run(lambda: [model], stop))
    try:
        yield worker
    finally:
        runner.let_go()
        stop.set()
        assert await asyncio.wait_for(running, DEADLINE_S) is True


async def ended(desk: Desk, job: Job) -> bool:
    try:
        events = await desk.events(job)
    except UNAVAILABLE:
        return False
    return bool(events) and isinstance(events[-1], Terminal)


async def says_everything_once(desk: Desk, job: Job) -> None:
    await until(lambda: ended(desk, job), "the job ends")
    *earlier, last = await desk.events(job)
    assert isinstance(last, Done)
    for event in earlier:
        assert not isinstance(event, Terminal)
    assert text_of(earlier) == "abc" * 20


def is_full(semaphore: threading.Semaphore) -> bool:
    """Return whether nobody else gets in."""
    has_room = semaphore.acquire(blocking=False)
    if has_room:
        semaphore.release()
    return not has_room


def text_of(events: Sequence[Event]) -> str:
    text = ""
    for event in events:
        if isinstance(event, Tokens):
            text += event.text
    return text


@pytest.mark.parametrize("fsync", ["everysec", "always"])
async def test_a_redis_that_is_killed_has_what_it_acknowledged(tmp_path: Path, fsync: str) -> None:
    """DESIGN 4: an append-only file keeps what Redis has acknowledged.

    `everysec` answers before it writes while the disk is busy with the second before. Whole jobs
    are lost then, and their followers hear of it.
    """
    lasting_redis = start_redis(tmp_path, appendonly="yes", appendfsync=fsync)
    redis = connect(lasting_redis.url)
    runner = Paced()
    desk = Desk(redis)
    subscriptions = Subscriptions(redis)
    try:
        # With longer leases than it takes to start a Redis on a busy machine: a worker without progress
        # gives up.
        async with working(redis, runner, lease_s=10):
            jobs = await desk.submit(LONG)
            for number in range(6):
                jobs = [*jobs, *await desk.submit(LONG)]
                runner.permits.release(10)
                if number in (2, 4):
                    await until(partial(begun, desk, jobs[0]), "the first job has tokens")
                    lasting_redis.stop()
                    runner.permits.release(10)
                    lasting_redis.start()
                    await until(partial(answers, redis), "the client has connected again")
            runner.let_go()

            lost = [job for job in jobs if not await redis.exists(keys.job(job.id))]
            assert not lost or fsync == "everysec"
            for job in jobs:
                if job in lost:
                    with pytest.raises(BrokerUnavailable, match="lost"):
                        await follow(LogReader(desk.broker, subscriptions, poll_s=0.05), job)
                else:
                    await says_everything_once(desk, job)
            await until(lambda: nothing_waits(desk), "nothing is left")
    finally:
        await subscriptions.close()
        await redis.aclose()
        lasting_redis.stop()


async def answers(redis: Redis) -> bool:
    try:
        return bool(await redis.ping())
    except UNAVAILABLE:
        return False


async def begun(desk: Desk, job: Job) -> bool:
    return any(isinstance(event, Tokens) for event in await desk.events(job))


async def nothing_waits(desk: Desk) -> bool:
    return await desk.counts() == (0, 0)


async def test_a_redis_that_comes_back_empty_is_told_of_and_worked_with(redis: Redis) -> None:
    """P4: the follower hears of the loss, the worker's batch is free again, new work is done."""
    runner = Paced()
    desk = Desk(redis)
    subscriptions = Subscriptions(redis)
    async with working(redis, runner) as worker:
        (lost,) = await desk.submit(LONG)
        runner.permits.release(3)
        await until(lambda: begun(desk, lost), "the job has tokens")
        reader = LogReader(desk.broker, subscriptions, poll_s=0.05)
        follower = asyncio.create_task(follow(reader, lost))

        await redis.flushall()

        with pytest.raises(BrokerUnavailable, match="lost"):
            await asyncio.wait_for(follower, DEADLINE_S)
        runner.let_go()
        (job,) = await desk.submit(LONG)
        await says_everything_once(desk, job)
        await until(lambda: not worker.ledger.claims, "the lost job is dropped")
        assert worker.models["m"].host.intake.free_slots == 8
    await subscriptions.close()


async def follow(reader: LogReader, job: Job) -> None:
    async for _ in reader.follow(job.id):
        pass


async def test_a_redis_without_memory_stops_the_engine_and_loses_nothing(redis: Redis) -> None:
    """DESIGN 4: with `noeviction` the worker keeps what it cannot write, within bounds.

    It writes it as soon as Redis has memory.
    """
    runner = Paced()
    desk = Desk(redis)
    async with working(redis, runner) as worker:
        (job,) = await desk.submit(Generate("abc", Sampling(100, seed=0)))
        runner.permits.release(2)
        await until(lambda: begun(desk, job), "the job has tokens")
        await redis.config_set("maxmemory", "1")
        try:
            num_before = len(await desk.events(job))
            runner.let_go()
            await until(lambda: is_full(worker.outbox.room), "the engine waits for the outbox")
            with pytest.raises(UNAVAILABLE):
                await desk.submit(LONG)
            assert len(await desk.events(job)) <= num_before + 2
        finally:
            await redis.config_set("maxmemory", "0")
        await until(lambda: ended(desk, job), "the job ends")
        assert text_of(await desk.events(job)) == ("abc" * 40)[:100]
