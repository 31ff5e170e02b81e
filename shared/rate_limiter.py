"""Rate limits: so many times in any so many seconds, counted in Redis for all fronts together."""

import math
import secrets
from collections.abc import Mapping

from shared import keys
from shared.access import Rate
from shared.broker import Broker
from shared.errors import OverQuota
from shared.script import Script


class RateLimiter:
    def __init__(self, broker: Broker) -> None:
        self._script = Script(broker, "rate_limit")
        self._num_shards = len(broker.shards)

    async def keep(self, who: str, rates: Mapping[str, Rate]) -> None:
        """Count one of `who` against each of the rates, by what they limit, or against none of
        them.

        Raises OverQuota, which says for which there was no room and when there will be.
        """
        if not rates:
            return
        limits = [
            {"name": name, "times": rate.times, "window_ms": rate.seconds * 1000}
            for name, rate in rates.items()
        ]
        shard = keys.shard_for(who, self._num_shards)
        place, wait_ms = await self._script.call(
            shard, who=who, mark=secrets.token_hex(8), limits=limits
        )
        if place > 0:
            name, rate = list(rates.items())[place - 1]
            words = (
                f"More than {rate.times} requests in {rate.seconds} s with one "
                f"key{name and f' to {name}'}."
            )
            raise OverQuota(words, retry_after_s=max(1, math.ceil(wait_ms / 1000)))
