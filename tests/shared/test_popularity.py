"""The popularity of models: an average in which the past counts ever less."""

import asyncio
import math
import time
from random import Random
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from shared.fleet.catalogue import Catalogue
from shared.fleet.popularity import FORGOTTEN_S, Popularity
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
    half_life_s = 60.0
    popularity = Popularity(Broker(redis), half_life_s)
    started_s = time.monotonic()
    for _ in range(12 * 12):
        await popularity.add({"a": 1})
        await let_pass(redis, "a", 5.0)
    measured = (await popularity.per_minute())["a"]
    # The time that the test itself took has passed for Redis, too.
    took_s = time.monotonic() - started_s + 0.05
    # Between the values right before and right after a job.
    assert 12.0 * 0.97 * 0.5 ** (took_s / half_life_s) <= measured <= 12.0 * 1.03


@pytest.mark.parametrize("seed", range(5))
async def test_it_is_the_sum_of_all_jobs_by_their_ages(redis: Redis, seed: int) -> None:
    """D75: the average is that of the closed form, whatever came in which steps.

    Each job adds ln 2 / half-life, times 1/2 for each half-life since.
    """
    random = Random(seed)
    half_life_s = random.uniform(10, 3600)
    popularity = Popularity(Broker(redis), half_life_s)
    comings: list[tuple[float, int]] = []
    now_s = 0.0
    started_s = time.monotonic()
    for _ in range(30):
        num_jobs = random.randrange(50)
        await popularity.add({"a": num_jobs, "other": 1})
        comings.append((now_s, num_jobs))
        pause_s = random.choice([0.0, random.uniform(0, 900)])
        await let_pass(redis, "a", pause_s)
        now_s += pause_s

    expected = 0.0
    for at_s, num_jobs in comings:
        weight = 0.5 ** ((now_s - at_s) / half_life_s)
        expected += 60 * math.log(2) / half_life_s * num_jobs * weight
    measured = (await popularity.per_minute())["a"]
    # The time that the test itself took has passed for Redis, too.
    took_s = time.monotonic() - started_s + 0.05
    assert expected * 0.5 ** (took_s / half_life_s) <= measured * (1 + 1e-6)
    assert measured <= expected * (1 + 1e-6)


class LosesAnswers(Broker):
    """A broker whose script calls run, and whose answers are lost as often as it is told to."""

    def __init__(self, redis: Redis) -> None:
        super().__init__(redis)
        self.num_lost = 0
        execute = redis.execute_command

        async def run(*args: Any, **options: Any) -> Any:
            answer = await execute(*args, **options)
            if self.num_lost and args[0] in ("EVAL", "EVALSHA"):
                self.num_lost -= 1
                raise RedisConnectionError("the connection broke")
            return answer

        redis.execute_command = run  # type: ignore[method-assign]


async def test_jobs_count_once_though_answers_are_lost(redis: Redis) -> None:
    """A repeated addition counts nothing twice, and one that failed for the caller is not lost."""
    broker = LosesAnswers(redis)
    popularity = Popularity(broker, HALF_LIFE_S)
    await popularity.add({"a": 1})
    broker.num_lost = 1
    await popularity.add({"a": 1})
    assert (await popularity.per_minute())["a"] == pytest.approx(2 * ONE, rel=0.01)

    # The call and its repetition fail, and the caller counts on.
    broker.num_lost = 2
    with pytest.raises(RedisConnectionError):
        await popularity.add({"a": 1})
    await popularity.add({"a": 4})
    assert (await popularity.per_minute())["a"] == pytest.approx(7 * ONE, rel=0.01)
    await popularity.add({})
    assert (await popularity.per_minute())["a"] == pytest.approx(7 * ONE, rel=0.01)


async def test_models_that_nobody_wants_are_forgotten_after_a_month(redis: Redis) -> None:
    popularity = Popularity(Broker(redis), HALF_LIFE_S)
    await popularity.add({"a": 1, "b": 1, "c": 1})
    await let_pass(redis, "a", FORGOTTEN_S + 60)
    await let_pass(redis, "b", FORGOTTEN_S - 60)
    assert await popularity.forget_unwanted(dry_run=True) == 1
    assert set(await popularity.per_minute()) == {"a", "b", "c"}
    assert await popularity.forget_unwanted() == 1
    assert set(await popularity.per_minute()) == {"b", "c"}
    assert await popularity.forget_unwanted() == 0


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
