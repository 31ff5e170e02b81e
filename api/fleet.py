"""The front's view of the fleet, read from Redis.

It is read at most twice a second, by one reader for all requests. A read that fails is remembered
as long as one that succeeds, so a hanging Redis costs its time limit once, not once per request.
"""

import asyncio

from api.redis_timeout import redis_answers_in_time
from shared.errors import BrokerUnavailable
from shared.fleet.presence import Fleet, Presence
from shared.queue.broker import UNAVAILABLE


class FleetView:
    def __init__(self, presence: Presence, *, max_age_s: float = 0.5) -> None:
        self._presence = presence
        self._max_age_s = max_age_s
        self._reading: asyncio.Task[Fleet | None] | None = None
        self.expires_at = 0.0

    async def now(self) -> Fleet:
        """Return the fleet as it was at most `max_age_s` ago. Raise BrokerUnavailable."""
        is_old = asyncio.get_running_loop().time() >= self.expires_at
        if self._reading is None or (self._reading.done() and is_old):
            self._reading = asyncio.create_task(self._read(), name="fleet-view")
        # The read is for all that wait: one that leaves does not cancel it.
        fleet = await asyncio.shield(self._reading)
        if fleet is None:
            raise BrokerUnavailable("Redis is not reachable.", retry_after_s=1)
        return fleet

    def invalidate(self) -> None:
        """Have the next request read the fleet, because this front has just changed it."""
        self.expires_at = 0.0

    async def order_unload(self, model_id: str) -> int:
        """Order every worker to give the model's memory back.

        Return the number of the order. Raise BrokerUnavailable.
        """
        try:
            async with redis_answers_in_time():
                return await self._presence.order_unload(model_id)
        except (TimeoutError, *UNAVAILABLE) as error:
            raise BrokerUnavailable("Redis did not take the order.", retry_after_s=1) from error

    async def _read(self) -> Fleet | None:
        try:
            async with redis_answers_in_time():
                return await self._presence.fleet()
        except (TimeoutError, *UNAVAILABLE):
            return None
        finally:
            self.expires_at = asyncio.get_running_loop().time() + self._max_age_s
