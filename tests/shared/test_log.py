"""Following a job's log: every event once and in order, whatever pub/sub does."""

import asyncio
from collections.abc import AsyncIterator

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
    return (await desk.take())[0].job


async def say(redis: Redis, job: Job, count: int) -> list[Event]:
    """`count` tokens and the end, one append each."""
    events: list[Event] = [*(Tokens((i,), str(i)) for i in range(count)), Done("stop", 1, count)]
    for index, event in enumerate(events):
        assert await LogWriter(Broker(redis)).append([Append(job, 1, index, (event,))]) == [True]
    return events


async def collect(reader: LogReader, job: Job, after: int = 0) -> list[tuple[int, Event]]:
    return [item async for item in reader.follow(job.id, after)]


async def test_followers_early_late_and_from_a_cursor_see_the_same(
    redis: Redis, subscriptions: Subscriptions
) -> None:
    """P2 in the small: the cursor is the event index, the same for everyone."""
    job = await running_job(redis)
    reader = LogReader(Broker(redis), subscriptions)
    early = [asyncio.create_task(collect(reader, job)) for _ in range(3)]
    events = await say(redis, job, 30)
    expected = list(enumerate(events, start=1))
    for task in early:
        assert await task == expected
    assert await collect(reader, job) == expected
    assert await collect(reader, job, after=17) == expected[17:]
    assert subscriptions._channels == {}, "the last follower has left"


@pytest.mark.parametrize("lost", [{3}, {1, 2, 3, 4}, set(range(100))])
async def test_events_that_pubsub_loses_are_read_from_the_log(
    redis: Redis, subscriptions: Subscriptions, monkeypatch: pytest.MonkeyPatch, lost: set[int]
) -> None:
    """DESIGN 3.3: a gap is filled from the log, and a slow look at the log is the safety net."""
    job = await running_job(redis)
    reader = LogReader(Broker(redis), subscriptions, poll_s=0.05)
    deliver = subscriptions._dispatch
    seen = 0

    def lossy(message: dict[str, bytes]) -> None:
        nonlocal seen
        is_event = message["type"] == "message"  # type: ignore[comparison-overlap]
        seen += is_event
        if not (is_event and seen in lost):
            deliver(message)

    monkeypatch.setattr(subscriptions, "_dispatch", lossy)
    follower_id = asyncio.create_task(collect(reader, job))
    while (
        not subscriptions._channels
        or not next(iter(subscriptions._channels.values())).confirmed.is_set()
    ):
        await asyncio.sleep(0.005)
    events = await say(redis, job, 10)
    assert await follower_id == list(enumerate(events, start=1))
    assert seen > 0, "pub/sub was never in play"


async def test_the_log_is_read_once_the_subscription_is_confirmed(
    redis: Redis, redis_url: str
) -> None:
    """What is said before Redis knows of the follower is found in the log: nothing is left to the
    slow look at it."""
    host = redis.connection_pool.connection_kwargs["host"]
    port = redis.connection_pool.connection_kwargs["port"]
    proxy = await Proxy(host, port).start()
    line = connect(f"redis://127.0.0.1:{proxy.port}/0")
    subscriptions = Subscriptions(line, confirm_timeout_s=60)
    job = await running_job(redis)
    reader = LogReader(Broker(redis), subscriptions, poll_s=60)
    proxy.trap(b"SUBSCRIBE", proxy.to_server)
    follower_id = asyncio.create_task(collect(reader, job))
    try:
        await until(lambda: proxy.is_sprung, "Redis is about to be asked for the channel")
        for _ in range(20):
            await redis.ping()  # whoever reads the log too early has done so by now
        events = await say(redis, job, 3)
        assert await redis.pubsub_numsub(keys.channel(job.id)) == [
            (keys.channel(job.id).encode(), 0)
        ]
        proxy.to_server.release()
        assert await asyncio.wait_for(follower_id, DEADLINE_S) == list(enumerate(events, start=1))
    finally:
        follower_id.cancel()
        await asyncio.gather(follower_id, return_exceptions=True)
        await subscriptions.close()
        await line.aclose()
        await proxy.close()


async def test_following_an_ended_job_needs_no_pubsub(
    redis: Redis, subscriptions: Subscriptions
) -> None:
    job = await running_job(redis)
    events = await say(redis, job, 2)
    assert [
        event for _, event in await collect(LogReader(Broker(redis), subscriptions), job)
    ] == events


async def test_a_job_that_redis_has_lost_is_not_waited_for(
    redis: Redis, subscriptions: Subscriptions
) -> None:
    """P4: never silence. A Redis that came back empty is told to the caller within a poll."""
    job = await running_job(redis)
    reader = LogReader(Broker(redis), subscriptions, poll_s=0.05)
    follower_id = asyncio.create_task(collect(reader, job))
    while not subscriptions._channels:
        await asyncio.sleep(0.005)
    await redis.flushall()
    with pytest.raises(BrokerUnavailable, match="lost"):
        await asyncio.wait_for(follower_id, DEADLINE_S)
