"""How long a caller is kept waiting for an answer of Redis that should come at once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from shared.errors import BrokerUnavailable

MOST_S = 2.0
_TICK_S = 0.25
_MOST_TICKS = int(MOST_S / _TICK_S)


@asynccontextmanager
async def redis_answers_in_time() -> AsyncIterator[None]:
    """Raise TimeoutError when the body, which asks Redis, takes longer than two seconds.

    Turns of the event loop are counted, not seconds alone: when something holds this process up, an answer that has
    come meanwhile is read before Redis is said to be away.
    """
    loop = asyncio.get_running_loop()
    num_ticks = 0
    timer: asyncio.TimerHandle | None = None
    async with asyncio.timeout(None) as timeout:

        def tick() -> None:
            nonlocal num_ticks, timer
            num_ticks += 1
            if num_ticks == _MOST_TICKS:
                timeout.reschedule(loop.time())
            else:
                timer = loop.call_later(_TICK_S, tick)

        timer = loop.call_later(_TICK_S, tick)
        try:
            yield
        finally:
            timer.cancel()


@asynccontextmanager
async def redis_answers() -> AsyncIterator[None]:
    """Around what asks Redis and follows nothing, or its decorator. Raises BrokerUnavailable when it takes long."""
    try:
        async with redis_answers_in_time():
            yield
    except TimeoutError as error:
        raise BrokerUnavailable("Redis does not answer.", retry_after_s=1) from error
