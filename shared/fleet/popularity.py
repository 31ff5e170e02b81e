"""The popularity of models: jobs a minute, an average in which the past counts ever less.

It is kept in Redis for the whole fleet, so it survives the end of any process. Workers count the
jobs that they take, and add them now and then. The average decays with Redis's clock, whether or
not anything is added, so no process has to do that regularly.
"""

import asyncio
import math
import secrets
from collections import Counter
from collections.abc import Awaitable, Mapping
from typing import cast

from redis.asyncio import Redis

from shared.queue import keys
from shared.queue.broker import Broker
from shared.queue.script import Script

FORGOTTEN_S = 30 * 86_400.0
"""The time without a job after which a model has no popularity any more."""
_MS_A_MINUTE = 60_000


class Popularity:
    """Adds to the popularity of models, and reads it.

    A job counts half after `half_life_s`. All methods raise redis-py's errors.
    """

    def __init__(self, broker: Broker, half_life_s: float = 600.0) -> None:
        self._redis: Redis = broker.client(keys.PRESENCE)
        self._add = Script(broker, "popularity")
        self._half_life_ms = half_life_s * 1000
        self._source = secrets.token_hex(8)
        self._adding = asyncio.Lock()
        self._number = 0
        self._waiting: Counter[str] = Counter()
        # The jobs of the addition `_number`, until Redis has confirmed it.
        self._unconfirmed: Mapping[str, int] = {}

    async def add(self, jobs: Mapping[str, int]) -> None:
        """Add numbers of jobs, by model. Jobs that could not be added are added by the next call.

        Each job counts once, also where the answer of Redis was lost.
        """
        self._waiting.update(jobs)
        async with self._adding:
            while self._unconfirmed or self._waiting:
                if not self._unconfirmed:
                    self._number += 1
                    self._unconfirmed = self._waiting
                    self._waiting = Counter()
                await self._add.call(
                    keys.PRESENCE,
                    jobs=self._unconfirmed,
                    half_life_ms=self._half_life_ms,
                    source=self._source,
                    number=self._number,
                )
                self._unconfirmed = {}

    async def forget_unwanted(self, *, dry_run: bool = False) -> int:
        """Forget models that had no job for FORGOTTEN_S. Return how many."""
        pipe = self._redis.pipeline(transaction=False)
        pipe.hgetall(keys.POPULARITY)
        pipe.time()
        records, (seconds, _) = await pipe.execute()
        unwanted = []
        for model, record in records.items():
            _, at_ms, _ = record.split()
            if seconds - float(at_ms) / 1000 > FORGOTTEN_S:
                unwanted.append(model)
        if unwanted and not dry_run:
            await cast(Awaitable[int], self._redis.hdel(keys.POPULARITY, *unwanted))
        return len(unwanted)

    async def per_minute(self) -> dict[str, float]:
        """Return the jobs a minute of each model that ever had one."""
        pipe = self._redis.pipeline(transaction=False)
        pipe.hgetall(keys.POPULARITY)
        pipe.time()
        records, time = await pipe.execute()
        return jobs_per_minute(records, time)


def jobs_per_minute(
    records: Mapping[bytes, bytes], redis_time: tuple[int, int]
) -> dict[str, float]:
    """Return the jobs a minute by model, as `records` of the hash have decayed until now."""
    seconds, micros = redis_time
    now_ms = seconds * 1000 + micros / 1000
    popularity: dict[str, float] = {}
    for model, record in records.items():
        per_ms, at_ms, half_life_ms = [float(part) for part in record.split()]
        age_ms = max(0.0, now_ms - at_ms)
        popularity[model.decode()] = _MS_A_MINUTE * per_ms * math.pow(0.5, age_ms / half_life_ms)
    return popularity
