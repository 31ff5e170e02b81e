"""Whether an engine's thread gets on: what its leases depend on.

`beat` costs next to nothing and is called by whatever takes time: steps, layers, segments. Each engine thread has a
pulse of its own, which the event loop reads.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Pulse:
    """When the last sign of life came; None while there is nothing to do."""

    def __init__(self) -> None:
        self.last_s: float | None = None

    def silence_s(self) -> float:
        """Seconds since the last sign of life of a thread that has work; 0 for one that rests."""
        last_s = self.last_s
        return 0.0 if last_s is None else time.monotonic() - last_s


_own = ContextVar("pulse", default=Pulse())  # noqa: B039 - threads that nobody watches share one


def adopt(pulse: Pulse) -> None:
    """Whatever this thread does from now on shows in `pulse`."""
    _own.set(pulse)


def beat() -> None:
    """Something got done."""
    _own.get().last_s = time.monotonic()


@contextmanager
def resting() -> Iterator[None]:
    """For a wait on somebody else: silence means nothing then."""
    _own.get().last_s = None
    try:
        yield
    finally:
        beat()
