"""Export the metrics of a front and those of the whole fleet.

The fleet's are read from Redis when a scraper asks for them, at most twice a second however many
ask. While Redis does not answer they are left out, but for `aios_redis_up`.
"""

import asyncio
from contextlib import suppress

from api.fleet import FleetView
from shared.errors import BrokerUnavailable
from shared.fleet.sums import Values, of_queues, of_workers
from shared.queue.broker import UNAVAILABLE
from shared.queue.queue_stats import QueueStats
from shared.telemetry.metrics import Metrics

_PATIENCE_S = 1.0
_MAX_AGE_S = 0.5


class MetricsExporter:
    def __init__(self, fleet: FleetView, queues: QueueStats, metrics: Metrics) -> None:
        self._fleet = fleet
        self._queues = queues
        self._metrics = metrics
        self._reading: asyncio.Task[None] | None = None
        self._expires_s = 0.0

    async def render(self) -> bytes:
        """Return the metrics in Prometheus's exposition format."""
        is_old = asyncio.get_running_loop().time() >= self._expires_s
        if self._reading is None or (self._reading.done() and is_old):
            self._reading = asyncio.create_task(self._read(), name="fleet-report")
        # The read is for all that wait: one that leaves does not cancel it.
        await asyncio.shield(self._reading)
        return self._metrics.render()

    async def _read(self) -> None:
        values: dict[str, Values] = {"redis_up": {(): 0}}
        with suppress(BrokerUnavailable, TimeoutError, *UNAVAILABLE):
            async with asyncio.timeout(_PATIENCE_S):
                fleet = await self._fleet.now()
                queues, num_dead = await self._queues.look(sorted(fleet.models))
            values = {
                "redis_up": {(): 1},
                "dead_jobs": {(): num_dead},
                **of_workers(fleet),
                **of_queues(queues, fleet),
            }
        self._expires_s = asyncio.get_running_loop().time() + _MAX_AGE_S
        for name, metric in self._metrics.fleet.by_name.items():
            metric.show(values.get(name, {}))
