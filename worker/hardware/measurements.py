"""The choice among shapes whose speeds were measured.

It is one rule, without torch or system calls.
"""

from collections.abc import Callable, Sequence

import msgspec

_AS_FAST = 0.95
"""Speeds from this share of the best count as equal: measured again, either may be the best."""


class Measurement(msgspec.Struct, frozen=True):
    """The speed of a fleet of `workers` with `threads` each, in tokens a second.

    `batch_tokens_per_s` is that of all workers, which share the rows of one full batch, and
    `row_tokens_per_s` that of one row alone.
    """

    workers: int
    threads: int
    batch_tokens_per_s: float
    row_tokens_per_s: float


def best_of(measurements: Sequence[Measurement]) -> Measurement:
    """Return the measurement of the shape to take.

    It is the fastest with a full batch. Of several it is the fastest with one row, and of several
    of these the one with the fewest workers, which take the least memory.
    """
    with_batch = _fastest(measurements, lambda measured: measured.batch_tokens_per_s)
    with_row = _fastest(with_batch, lambda measured: measured.row_tokens_per_s)
    return min(with_row, key=lambda measured: measured.workers)


def _fastest(
    measurements: Sequence[Measurement], speed: Callable[[Measurement], float]
) -> list[Measurement]:
    """Return the measurements whose speed is about the best."""
    least = _AS_FAST * max(speed(measured) for measured in measurements)
    return [measured for measured in measurements if speed(measured) >= least]


def in_words(measurements: Sequence[Measurement], rows: int) -> str:
    """Return the measurements of `rows` rows and of one, the shape to take first.

    An example is `1 x 2 does 186 tokens/s at 16 and 24 at 1, 2 x 1 165 and 13`.
    """
    best = best_of(measurements)
    others = [measured for measured in measurements if measured is not best]
    parts = [
        f"{best.workers} x {best.threads} does {_rounded(best.batch_tokens_per_s)} tokens/s at "
        f"{rows} and {_rounded(best.row_tokens_per_s)} at 1"
    ]
    for other in others:
        speeds = f"{_rounded(other.batch_tokens_per_s)} and {_rounded(other.row_tokens_per_s)}"
        parts.append(f"{other.workers} x {other.threads} {speeds}")
    return ", ".join(parts)


def _rounded(speed: float) -> str:
    decimals = 0 if speed >= 10 else 1
    return f"{speed:.{decimals}f}"
