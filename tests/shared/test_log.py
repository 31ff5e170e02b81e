"""A follower of a job's log gets every event once and in order, whatever pub/sub does."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial

import pytest
from redis.asyncio import Redis

from scripts.chaos.proxy import Proxy
from shared.errors import BrokerUnavailable
from shared.events.log import Append, LogReader, LogWriter
from shared.events.subscriptions import Subscriptions
from shared.messages import Done, Event, Job, Tokens
from shared.queue import keys
from shared.queue.broker import Broker, connect
from tests.fixtures.desk import Desk
from tests.fixtures.polling import DEADLINE_S, until


@pytest.fixture
async def subscriptions(redis: Redis) -> AsyncIterator[Subscriptions]:
    shared = Subscriptions(redis)
    yield shared
    await shared.close()


async def running_job(redis: Redis) -> Job:
    desk = Desk(redis)
    await desk.submit()
    [claim] = await desk.take()
    return claim.job


async def say(redis: Redis, job: Job, count: int) -> list[Event]:
    """Append `count` tokens and the end, each by itself."""
    events: list[Event] = []
    for number in range(count):
        events.append(Tokens((number,), str(number)))
    events.append(Done("stop", 1, count))
    for index, event in enumerate(events):
        assert await LogWriter(Broker(redis)).append([Append(job, 1, index, (event,))]) == [True]
    return events


async def is_heard(redis: Redis, job: Job) -> bool:
    """Return whether somebody is told of the job's events."""
    return bool(await redis.hexists(keys.job(job.id), "readers"))


async def collect(reader: LogReader, job: Job, after: int = 0) -> list[tuple[int, Event]]:
    return [entry async for entry in reader.follow(job.id, after)]


async def test_followers_early_late_and_from_a_cursor_see_the_same(
    redis: Redis, subscriptions: Subscriptions
) -> None:
    """P2: all followers get the same events, and the cursor is the index of an event."""
    job = await running_job(redis)
    reader = LogReader(Broker(redis), subscriptions)
    early = [asyncio.create_task(collect(reader, job)) for _ in range(3)]
    events = await say(redis, job, 30)
    expected = list(enumerate(events, start=1))

    for task in early:
        assert await task == expected

    assert await collect(reader, job) == expected
    assert await collect(reader, job, after=17) == expected[17:]
    assert len(subscriptions.channels) == 1, "all share one channel"


@pytest.mark.parametrize("lost", [{3}, {1, 2, 3, 4}, set(range(100))])
async def test_events_that_pubsub_loses_are_read_from_the_log(
    redis: Redis, subscriptions: Subscriptions, monkeypatch: pytest.MonkeyPatch, lost: set[int]
) -> None:
    """DESIGN 3.3: a gap is filled from the log, and a slow poll of the log is the safety net."""
    job = await running_job(redis)
    reader = LogReader(Broker(redis), subscriptions, poll_s=0.05)
    dispatch = subscriptions.dispatch
    num_events = 0

    def lossy_dispatch(message: dict[str, bytes]) -> None:
        nonlocal num_events
        if message["type"] != "message":  # type: ignore[comparison-overlap]
            dispatch(message)
            return
        num_events += 1
        if num_events not in lost:
            dispatch(message)

    monkeypatch.setattr(subscriptions, "dispatch", lossy_dispatch)
    following = asyncio.create_task(collect(reader, job))
    await until(lambda: is_heard(redis, job), "the follower is known")

    events = await say(redis, job, 10)

    assert await following == list(enumerate(events, start=1))
    assert num_events > 0, "pub/sub was never in play"


async def test_the_log_is_read_once_the_subscription_is_confirmed(
    redis: Redis, redis_url: str
) -> None:
    """Events that come before Redis knows of the follower are read from the log.

    The poll is so slow that it cannot be what finds them.
    """
    host = redis.connection_pool.connection_kwargs["host"]
    port = redis.connection_pool.connection_kwargs["port"]
    proxy = await Proxy(host, port).start()
    client = connect(f"redis://127.0.0.1:{proxy.port}/0")
    subscriptions = Subscriptions(client, confirm_timeout_s=60)
    job = await running_job(redis)
    reader = LogReader(Broker(redis), subscriptions, poll_s=60)

    proxy.trap(b"SUBSCRIBE", proxy.to_server)
    following = asyncio.create_task(collect(reader, job))

    try:
        await until(lambda: proxy.is_sprung, "Redis is about to be asked for the channel")
        # A follower that reads the log too early has done so by the end of these.
        for _ in range(20):
            await redis.ping()
        events = await say(redis, job, 3)
        assert await redis.pubsub_channels() == []

        proxy.to_server.release()
        assert await asyncio.wait_for(following, DEADLINE_S) == list(enumerate(events, start=1))
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await subscriptions.close()
        await client.aclose()
        await proxy.close()


async def test_what_one_script_logs_comes_in_one_message(
    redis: Redis, subscriptions: Subscriptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that follows many jobs hears of a step in one message, of its own jobs alone."""
    jobs = [await running_job(redis) for _ in range(5)]
    heard = asyncio.Queue[bytes]()
    dispatch = subscriptions.dispatch

    def note(message: dict[str, bytes]) -> None:
        if message["type"] == "message":  # type: ignore[comparison-overlap]
            heard.put_nowait(message["data"])
        dispatch(message)

    monkeypatch.setattr(subscriptions, "dispatch", note)
    reader = LogReader(Broker(redis), subscriptions, poll_s=60)
    following = [asyncio.create_task(collect(reader, job)) for job in jobs[:4]]
    for job in jobs[:4]:
        await until(partial(is_heard, redis, job), "the follower is known")

    # Payloads of any bytes, also those that divide the message.
    steps: list[list[Event]] = []
    for word in ("a", "\n 1 2\n", ""):
        steps.append([Tokens((number,), word * number) for number in range(5)])
    steps.append([Done("stop", 1, number) for number in range(5)])
    for after, events in enumerate(steps):
        appends = [Append(job, 1, after, (event,)) for job, event in zip(jobs, events, strict=True)]
        assert all(await LogWriter(Broker(redis)).append(appends))

    for number, task in enumerate(following):
        expected = [(index, events[number]) for index, events in enumerate(steps, start=1)]
        assert await asyncio.wait_for(task, DEADLINE_S) == expected
    assert heard.qsize() == len(steps)
    assert not any(jobs[4].id.encode() in heard.get_nowait() for _ in steps)


async def test_following_an_ended_job_needs_no_pubsub(
    redis: Redis, subscriptions: Subscriptions
) -> None:
    job = await running_job(redis)
    events = await say(redis, job, 2)
    entries = await collect(LogReader(Broker(redis), subscriptions), job)
    assert entries == list(enumerate(events, start=1))


async def test_a_job_that_redis_has_lost_is_not_waited_for(
    redis: Redis, subscriptions: Subscriptions
) -> None:
    """P4: a follower hears within a poll that Redis came back empty."""
    job = await running_job(redis)
    reader = LogReader(Broker(redis), subscriptions, poll_s=0.05)
    following = asyncio.create_task(collect(reader, job))
    await until(lambda: is_heard(redis, job), "the follower is known")

    await redis.flushall()
    with pytest.raises(BrokerUnavailable, match="lost"):
        await asyncio.wait_for(following, DEADLINE_S)
