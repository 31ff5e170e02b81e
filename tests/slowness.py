"""Limits in seconds that a busy machine does not spoil: they are stretched by how slow the machine
is meanwhile."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

_WORK_S = 0.05


def slowness() -> float:
    """How many seconds pass for one second of work; 1.0 on a machine that has nothing else to
    do."""
    begun = time.monotonic()
    worked_until = time.thread_time() + _WORK_S
    while time.thread_time() < worked_until:
        pass
    return max(1.0, (time.monotonic() - begun) / _WORK_S)


@contextmanager
def within(limit_s: float, what: str) -> Iterator[None]:
    """Fail when the body takes longer than `limit_s`, times the machine's slowness before or after
    it.

    What must not happen should take far longer than that: a minute, where the limit is two seconds.
    """
    stretched = slowness()
    begun = time.monotonic()
    yield
    took_s = time.monotonic() - begun
    stretched = max(stretched, slowness())
    assert took_s < limit_s * stretched, (
        f"{what}: {took_s:.2f} s, not {limit_s} s (x {stretched:.1f}, a busy machine)"
    )
