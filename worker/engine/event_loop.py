"""Calls from the threads that compute to the event loop of the process."""

import asyncio
import contextlib
from collections.abc import Callable


def call_in_loop(
    loop: asyncio.AbstractEventLoop, function: Callable[..., object], *args: object
) -> None:
    """Let an event loop call a function soon, from any thread.

    Do nothing when the loop has ended. A step may take longer than a worker waits for it when it
    leaves, and then nobody is there to hear of it.
    """
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *args)
