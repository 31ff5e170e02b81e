"""Whether the engine's thread gets on: what its leases depend on.

One engine thread a process, so this is the process's. `beat` costs next to nothing and is called by whatever takes
time: steps, layers, segments. Written by the engine's thread, read by the event loop.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class _Pulse:
    """When the last sign of life came; None while there is nothing to do."""

    last_s: float | None = None


def beat() -> None:
    """Something got done."""
    _Pulse.last_s = time.monotonic()


@contextmanager
def resting() -> Iterator[None]:
    """For a wait on somebody else: silence means nothing then."""
    _Pulse.last_s = None
    try:
        yield
    finally:
        beat()


def silence_s() -> float:
    """Seconds since the last sign of life of a thread that has work; 0 for one that rests."""
    last_s = _Pulse.last_s
    return 0.0 if last_s is None else time.monotonic() - last_s
