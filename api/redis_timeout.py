"""The time limit for answers of Redis that should come at once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType

from shared.errors import BrokerUnavailable

REDIS_TIMEOUT_S = 2.0
_TICK_S = 0.25
_MOST_TICKS = int(REDIS_TIMEOUT_S / _TICK_S)


class redis_answers_in_time:
    """Raise TimeoutError when the body, which asks Redis, takes longer than two seconds.

    Turns of the event loop are counted, not seconds alone. When something holds this process up, an
    answer that has come meanwhile is read before Redis counts as away.
    """

    async def __aenter__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._num_ticks = 0
        self._timeout = asyncio.timeout(None)
        await self._timeout.__aenter__()
        self._timer = self._loop.call_later(_TICK_S, self._tick)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        await self._timeout.__aexit__(kind, error, trace)

    def _tick(self) -> None:
        self._num_ticks += 1
        if self._num_ticks == _MOST_TICKS:
            self._timeout.reschedule(self._loop.time())
        else:
            self._timer = self._loop.call_later(_TICK_S, self._tick)


@asynccontextmanager
async def redis_answers() -> AsyncIterator[None]:
    """Raise BrokerUnavailable when the body, which asks Redis, takes longer than two seconds.

    It is a decorator too. It is not for bodies that follow a job, which may take any time.
    """
    try:
        async with redis_answers_in_time():
            yield
    except TimeoutError as error:
        raise BrokerUnavailable("Redis does not answer.", retry_after_s=1) from error
