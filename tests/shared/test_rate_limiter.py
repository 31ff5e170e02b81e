"""Never more calls in a window than a rate allows, whoever asks and however often; what is refused
leaves no trace."""

import asyncio

import pytest
from redis.asyncio import Redis

from shared.access import Rate
from shared.errors import OverQuota
from shared.queue.broker import Broker
from shared.queue.rate_limiter import RateLimiter
from shared.queue.script import Script
from tests.fixtures.polling import until


async def tried(pace: RateLimiter, who: str, **rates: Rate) -> bool:
    try:
        await pace.keep(who, rates)
    except OverQuota:
        return False
    return True


async def test_no_window_has_more_than_its_share(redis: Redis) -> None:
    """Hammered by four at once, until the share was used up twice and a third one was begun."""
    rate = Rate(7, 1)
    passed: set[tuple[bytes, float]] = set()

    async def hammer() -> None:
        pace = RateLimiter(Broker(redis))
        while True:
            await tried(pace, "ann", all=rate)
            await asyncio.sleep(0.002)

    async def has_begun_a_third() -> bool:
        passed.update(await redis.zrange("aios:{00}:rate:ann:all", 0, -1, withscores=True))
        return len(passed) > 14

    hammering = [asyncio.create_task(hammer()) for _ in range(4)]
    await until(has_begun_a_third, "fifteen have passed")
    for task in hammering:
        task.cancel()
    await asyncio.gather(*hammering, return_exceptions=True)
    times = sorted(at for _, at in passed)
    assert all(later - earlier >= 1000 for earlier, later in zip(times, times[7:], strict=False))


async def test_all_limits_or_none_is_counted(redis: Redis) -> None:
    pace = RateLimiter(Broker(redis))
    small = Rate(1, 60)
    large = Rate(3, 60)
    assert await tried(pace, "ann", small=small, large=large)
    for _ in range(5):
        assert not await tried(pace, "ann", small=small, large=large)
    assert [await tried(pace, "ann", large=large) for _ in range(3)] == [True, True, False]
    assert await tried(pace, "bob", small=small, large=large), "others are counted apart"


async def test_the_longest_wait_is_told(redis: Redis) -> None:
    pace = RateLimiter(Broker(redis))
    await pace.keep("ann", {"/a": Rate(1, 5), "": Rate(1, 500)})
    with pytest.raises(OverQuota, match="More than 1 requests in 500 s with one key") as caught:
        await pace.keep("ann", {"/a": Rate(1, 5), "": Rate(1, 500)})
    assert 499 <= (caught.value.retry_after_s or 0) <= 500


async def test_a_call_that_is_repeated_counts_once(redis: Redis) -> None:
    """As when its answer was lost."""
    script = Script(Broker(redis), "rate_limit")
    limits = [{"name": "", "times": 1, "window_ms": 60_000}]
    for _ in range(3):
        assert await script.call("00", who="ann", mark="one", limits=limits) == [0, 0]
    assert (await script.call("00", who="ann", mark="two", limits=limits))[0] == 1


async def test_what_was_counted_is_forgotten_in_time(redis: Redis) -> None:
    await RateLimiter(Broker(redis)).keep("ann", {"": Rate(5, 60)})
    assert 0 < await redis.pttl("aios:{00}:rate:ann:") <= 60_000
