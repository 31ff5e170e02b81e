"""The rate limiter never lets more calls into a window than a rate allows.

A refused call leaves no trace.
"""

import asyncio

import pytest
from redis.asyncio import Redis

from shared.access import Rate
from shared.errors import OverQuota
from shared.queue.broker import Broker
from shared.queue.rate_limiter import RateLimiter
from shared.queue.script import Script
from tests.fixtures.polling import until


async def is_allowed(limiter: RateLimiter, who: str, **rates: Rate) -> bool:
    try:
        await limiter.keep(who, rates)
    except OverQuota:
        return False
    return True


async def test_no_window_has_more_than_its_share(redis: Redis) -> None:
    """Any eight calls that pass in a row span at least the window of the rate.

    Four callers try at once, until the share was used up twice and a third one was begun.
    """
    rate = Rate(7, 1)
    passed: dict[bytes, float] = {}

    async def hammer() -> None:
        limiter = RateLimiter(Broker(redis))
        while True:
            await is_allowed(limiter, "ann", all=rate)
            await asyncio.sleep(0.002)

    async def has_begun_a_third() -> bool:
        calls = await redis.zrange("aios:{00}:rate:ann:all", 0, -1, withscores=True)
        passed.update(calls)
        return len(passed) > 14

    hammering = [asyncio.create_task(hammer()) for _ in range(4)]
    await until(has_begun_a_third, "fifteen have passed")
    for task in hammering:
        task.cancel()

    await asyncio.gather(*hammering, return_exceptions=True)

    times_ms = sorted(passed.values())
    for number in range(len(times_ms) - 7):
        assert times_ms[number + 7] - times_ms[number] >= 1000


async def test_all_limits_or_none_is_counted(redis: Redis) -> None:
    limiter = RateLimiter(Broker(redis))
    small = Rate(1, 60)
    large = Rate(3, 60)
    assert await is_allowed(limiter, "ann", small=small, large=large)
    for _ in range(5):
        assert not await is_allowed(limiter, "ann", small=small, large=large)

    # The five refused calls did not count against the large rate.
    assert await is_allowed(limiter, "ann", large=large)
    assert await is_allowed(limiter, "ann", large=large)
    assert not await is_allowed(limiter, "ann", large=large)
    assert await is_allowed(limiter, "bob", small=small, large=large), "others are counted apart"


async def test_the_longest_wait_is_told(redis: Redis) -> None:
    limiter = RateLimiter(Broker(redis))
    await limiter.keep("ann", {"/a": Rate(1, 5), "": Rate(1, 500)})
    with pytest.raises(OverQuota, match="More than 1 requests in 500 s with one key") as caught:
        await limiter.keep("ann", {"/a": Rate(1, 5), "": Rate(1, 500)})
    assert 499 <= (caught.value.retry_after_s or 0) <= 500


async def test_a_call_that_is_repeated_counts_once(redis: Redis) -> None:
    """A call that is repeated, since its answer was lost, counts once."""
    script = Script(Broker(redis), "rate_limit")
    limits = [{"name": "", "times": 1, "window_ms": 60_000}]
    for _ in range(3):
        assert await script.call("00", who="ann", call_id="one", limits=limits) == [0, 0]
    refused, _ = await script.call("00", who="ann", call_id="two", limits=limits)
    assert refused == 1


async def test_what_was_counted_is_forgotten_in_time(redis: Redis) -> None:
    await RateLimiter(Broker(redis)).keep("ann", {"": Rate(5, 60)})
    assert 0 < await redis.pttl("aios:{00}:rate:ann:") <= 60_000
