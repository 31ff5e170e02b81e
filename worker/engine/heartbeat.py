"""Heartbeats of the threads that compute, on which the leases of their jobs depend.

`heartbeat` costs next to nothing. All code that takes time calls it: steps, layers, segments. Each
thread that computes has a `Heartbeat`, which the event loop reads.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Heartbeat:
    """The moment of a thread's last sign of life, None while the thread has nothing to do.

    A moment in the future means that the thread has announced silence until then (`silent_for`).
    """

    def __init__(self) -> None:
        self.last_s: float | None = None

    def silence_s(self) -> float:
        """Return the seconds since the thread's last sign of life, 0 for a thread that rests."""
        # Read once: the other thread may set it to None meanwhile.
        last_s = self.last_s
        if last_s is None:
            return 0.0
        return max(0.0, time.monotonic() - last_s)


# Threads that nobody watches share the default.
_heartbeat = ContextVar("heartbeat", default=Heartbeat())  # noqa: B039


def adopt(heartbeat: Heartbeat) -> None:
    """Show this thread's signs of life in `heartbeat` from now on."""
    _heartbeat.set(heartbeat)


def heartbeat() -> None:
    """Note that this thread has made progress."""
    _heartbeat.get().last_s = time.monotonic()


@contextmanager
def resting() -> Iterator[None]:
    """Mark this thread as resting while it waits for others: it is not thought to hang."""
    _heartbeat.get().last_s = None
    try:
        yield
    finally:
        heartbeat()


@contextmanager
def silent_for(at_most_s: float) -> Iterator[None]:
    """Announce work that gives no signs of life, such as one long step of a foreign library.

    Silence counts only from `at_most_s` seconds after this call.
    """
    _heartbeat.get().last_s = time.monotonic() + at_most_s
    try:
        yield
    finally:
        heartbeat()
