"""The metrics of a process itself: its memory, when it began, and how far its event loop lags."""

import asyncio
import time
from collections import deque

from shared.queue.broker import Broker
from shared.telemetry.histogram import BucketHistogram
from shared.telemetry.memory import resident_bytes
from shared.telemetry.metrics import ProcessMetrics

_TURN_S = 0.5
# Fifteen seconds of turns are kept, so that no scrape misses one that came late.
_TURNS = 30


class LoopLag:
    """Measures how late the event loop was at its worst, lately."""

    def __init__(self) -> None:
        self._late_s: deque[float] = deque([0.0], maxlen=_TURNS)

    @property
    def worst_s(self) -> float:
        return max(self._late_s)

    async def watch(self) -> None:
        """Measure until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due_s = loop.time() + _TURN_S
            await asyncio.sleep(_TURN_S)
            self._late_s.append(max(0.0, loop.time() - due_s))


def measure_process(metrics: ProcessMetrics, broker: Broker, lag: LoopLag) -> None:
    """Connect the metrics of this process with their sources."""
    began_s = time.time()

    def redis_calls() -> dict[tuple[str, ...], BucketHistogram]:
        # A copy, since the first call of another script may add to it meanwhile.
        calls = list(broker.calls.items())
        return {(script,): histogram for script, histogram in calls}

    metrics.redis_calls.read = redis_calls
    metrics.memory.read = lambda: {(): resident_bytes()}
    metrics.lag.read = lambda: {(): lag.worst_s}
    metrics.started.show({(): began_s})
