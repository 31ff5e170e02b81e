"""Rate limits: a number of requests in any period of some seconds, counted for all fronts."""

import math
import secrets
from collections.abc import Mapping

from shared.access import Rate
from shared.errors import OverQuota
from shared.queue import keys
from shared.queue.broker import Broker
from shared.queue.script import Script


class RateLimiter:
    """Counts the requests of each key in Redis."""

    def __init__(self, broker: Broker) -> None:
        self._script = Script(broker, "rate_limit")
        self._num_shards = len(broker.shards)

    async def keep(self, who: str, rates: Mapping[str, Rate]) -> None:
        """Count one request of `who` against all of the rates, or against none.

        `rates` are by the endpoint that they limit, "" for all. Raise OverQuota where a rate has no
        room: it names the rate that is full the longest, and tells when it will have room.
        """
        if not rates:
            return
        limits = []
        for name, rate in rates.items():
            limits.append({"name": name, "times": rate.times, "window_ms": rate.seconds * 1000})
        shard = keys.shard_for(who, self._num_shards)
        number, wait_ms = await self._script.call(
            shard, who=who, call_id=secrets.token_hex(8), limits=limits
        )
        # The script counts from 1; 0 is no limit.
        if number > 0:
            name, rate = list(rates.items())[number - 1]
            endpoint = f" to {name}" if name else ""
            raise OverQuota(
                f"More than {rate.times} requests in {rate.seconds} s with one key{endpoint}.",
                retry_after_s=max(1, math.ceil(wait_ms / 1000)),
            )
