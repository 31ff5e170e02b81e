"""Signs of life of the threads that compute, on which the leases of their jobs depend.

`heartbeat` costs next to nothing and is called by whatever takes time: steps, layers, segments.
Each such thread has a `Heartbeat` of its own, which the event loop reads.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Heartbeat:
    """The moment of a thread's last sign of life, None while it has nothing to do.

    A moment in the future is one until which silence was announced.
    """

    def __init__(self) -> None:
        self.last_s: float | None = None

    def silence_s(self) -> float:
        """Return the seconds since the last sign of life of a thread that has work; 0 for one that
        rests."""
        # Read once: the other thread may set it to None meanwhile.
        last_s = self.last_s
        if last_s is None:
            return 0.0
        return max(0.0, time.monotonic() - last_s)


_own = ContextVar("heartbeat", default=Heartbeat())  # noqa: B039 - threads that nobody watches share one


def adopt(heartbeat: Heartbeat) -> None:
    """Show what this thread does from now on in `heartbeat`."""
    _own.set(heartbeat)


def heartbeat() -> None:
    """Note that something got done."""
    _own.get().last_s = time.monotonic()


@contextmanager
def resting() -> Iterator[None]:
    """Wait for somebody else, in a silence that means nothing."""
    _own.get().last_s = None
    try:
        yield
    finally:
        heartbeat()


@contextmanager
def silent_for(at_most_s: float) -> Iterator[None]:
    """Do what cannot give signs of life, such as one long step of a foreign library.

    The thread is thought to hang only when it has been silent for longer than `at_most_s`.
    """
    _own.get().last_s = time.monotonic() + at_most_s
    try:
        yield
    finally:
        heartbeat()
