"""Polling for the effects of other processes, none of which notifies this one."""

import asyncio
import time
from collections.abc import Awaitable, Callable


async def came_true(
    condition: Callable[[], Awaitable[bool]], within_s: float, every_s: float = 0.02
) -> bool:
    """Return True as soon as `condition()` holds, and False if it does not within `within_s`."""
    deadline = time.monotonic() + within_s
    while not await condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(every_s)
    return True
