"""Waiting for what other processes do: nothing rings when they have done it."""

import asyncio
import time
from collections.abc import Awaitable, Callable


async def came_true(
    condition: Callable[[], Awaitable[bool]], within_s: float, every_s: float = 0.02
) -> bool:
    """Whether `condition()` holds within the time; returns as soon as it does."""
    deadline = time.monotonic() + within_s
    while not await condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(every_s)
    return True
