"""The metrics of a process itself: its memory, when it began, and how far its event loop lags."""

import asyncio
import time
from collections import deque

from shared.queue.broker import Broker
from shared.telemetry.memory import resident_bytes
from shared.telemetry.metrics import ProcessMetrics

_TURN_S = 0.5
# The worst of fifteen seconds, so that no scrape misses a turn that came late.
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


def tell(metrics: ProcessMetrics, broker: Broker, lag: LoopLag) -> None:
    """Let the metrics of a process be read."""
    began_s = time.time()
    metrics.redis_calls.read = lambda: {
        (call,): histogram for call, histogram in list(broker.calls.items())
    }
    metrics.memory.read = lambda: {(): resident_bytes()}
    metrics.lag.read = lambda: {(): lag.worst_s}
    metrics.started.show({(): began_s})
