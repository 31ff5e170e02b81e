"""What a run reads the time from.

Wall time is what counts. The CPU time of this process is for a machine that others keep busy: with one thread on each
side it gives steady ratios where wall time gives none. It says nothing of threads, sleep or other processes.
"""

import time
from collections.abc import Callable

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


class _Clock:
    def __init__(self) -> None:
        self.read = CLOCKS["wall"]


_clock = _Clock()


def use(name: str) -> None:
    """Choose for this process, before anything is timed."""
    _clock.read = CLOCKS[name]


def now() -> float:
    """Seconds from an arbitrary moment; on the wall clock the same for all processes of a Linux machine."""
    return _clock.read()
