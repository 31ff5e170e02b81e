"""The popularity of models: jobs a minute, an average in which the past counts ever less.

It is kept in Redis for the whole fleet, so it survives the end of any process. Workers count the
jobs that they take, and add them now and then.
"""

import math
from collections.abc import Mapping

from redis.asyncio import Redis

from shared.queue import keys
from shared.queue.broker import Broker
from shared.queue.script import Script

_MS_A_MINUTE = 60_000


class Popularity:
    """Adds to the popularity of models, and reads it.

    A job counts half after `half_life_s`. All methods raise redis-py's errors.
    """

    def __init__(self, broker: Broker, half_life_s: float) -> None:
        self._redis: Redis = broker.client(keys.PRESENCE)
        self._add = Script(broker, "popularity")
        self._half_life_ms = half_life_s * 1000

    async def add(self, jobs: Mapping[str, int]) -> None:
        """Add numbers of jobs, by model."""
        if jobs:
            await self._add.call(keys.PRESENCE, jobs=jobs, half_life_ms=self._half_life_ms)

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
