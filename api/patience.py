"""How long a caller is kept waiting for an answer of Redis that should come at once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from shared.errors import BrokerUnavailable

MOST_S = 2.0


@asynccontextmanager
async def redis_answers() -> AsyncIterator[None]:
    """Around what asks Redis and follows nothing, or its decorator. Raises BrokerUnavailable when it takes long."""
    try:
        async with asyncio.timeout(MOST_S):
            yield
    except TimeoutError as error:
        raise BrokerUnavailable("Redis does not answer.", retry_after_s=1) from error
