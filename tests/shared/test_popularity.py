"""How much each model is asked for: an average in which the past counts ever less."""

import asyncio
import math

import pytest
from redis.asyncio import Redis

from shared.fleet.catalogue import Catalogue
from shared.fleet.popularity import Popularity
from shared.fleet.presence import Presence
from shared.queue import keys
from shared.queue.broker import Broker
from shared.settings.models import ModelEntry

HALF_LIFE_S = 3600.0
# Jobs a minute that one job adds: the weights of all its later moments sum up to one job.
ONE = 60 * math.log(2) / HALF_LIFE_S


async def let_pass(redis: Redis, model: str, seconds: float) -> None:
    """Move the record of a model into the past."""
    record = await redis.hget(keys.POPULARITY, model)
    per_ms, at_ms, half_life_ms = record.split()
    earlier = f"{per_ms.decode()} {float(at_ms) - 1000 * seconds:.0f} {half_life_ms.decode()}"
    await redis.hset(keys.POPULARITY, model, earlier)


async def test_a_job_counts_half_after_each_half_life(redis: Redis) -> None:
    popularity = Popularity(Broker(redis), HALF_LIFE_S)
    await popularity.add({"a": 3, "b": 1})
    assert await popularity.per_minute() == pytest.approx({"a": 3 * ONE, "b": ONE}, rel=0.01)

    await let_pass(redis, "a", 2 * HALF_LIFE_S)
    assert await popularity.per_minute() == pytest.approx({"a": 0.75 * ONE, "b": ONE}, rel=0.01)
    await popularity.add({"a": 1})
    assert (await popularity.per_minute())["a"] == pytest.approx(1.75 * ONE, rel=0.01)


async def test_a_steady_rate_is_what_it_says(redis: Redis) -> None:
    """With 12 jobs a minute for twelve half-lives, the average is 12 a minute."""
    popularity = Popularity(Broker(redis), half_life_s=60.0)
    for _ in range(12 * 12):
        await popularity.add({"a": 1})
        await let_pass(redis, "a", 5.0)
    # Between the values right before and right after a job.
    assert (await popularity.per_minute())["a"] == pytest.approx(12.0, rel=0.03)


async def test_workers_that_add_at_once_lose_nothing(redis: Redis) -> None:
    workers = [Popularity(Broker(redis), HALF_LIFE_S) for _ in range(4)]
    await asyncio.gather(*[worker.add({"a": 1}) for worker in workers for _ in range(25)])
    assert (await workers[0].per_minute())["a"] == pytest.approx(100 * ONE, rel=0.01)


async def test_fronts_read_it_with_the_fleet_until_the_model_is_removed(redis: Redis) -> None:
    await Catalogue(redis).add(ModelEntry(id="a", path="echo"))
    await Popularity(Broker(redis), HALF_LIFE_S).add({"a": 2})
    fleet = await Presence(redis).fleet()
    assert fleet.popularity == pytest.approx({"a": 2 * ONE}, rel=0.01)

    await Catalogue(redis).remove("a")
    assert (await Presence(redis).fleet()).popularity == {}
