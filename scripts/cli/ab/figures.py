"""Statistics of answers to the same questions: shares, paired differences, percentiles."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

_Z = 1.96
_RESAMPLES = 2000


@dataclass(frozen=True)
class Share:
    """So many of `total`, with an interval of 95 %."""

    count: int
    total: int
    low: float
    high: float

    @property
    def value(self) -> float:
        return self.count / self.total


def share_of(count: int, total: int) -> Share:
    """Return a share with Wilson's score interval (Wilson, 1927). `total` is at least 1."""
    share = count / total
    scale = 1 + _Z**2 / total
    center = (share + _Z**2 / (2 * total)) / scale
    half = _Z / scale * math.sqrt(share * (1 - share) / total + _Z**2 / (4 * total**2))
    # At 0 and 1 a bound is the share itself, but for rounding.
    return Share(
        count, total, min(share, max(0.0, center - half)), max(share, min(1.0, center + half))
    )


@dataclass(frozen=True)
class PairedTest:
    """Two sides on the same questions: what only the one or only the other answered right.

    `p` is of McNemar's exact test, two-sided: the chance of a difference at least as large if both
    sides were equally good. `difference` is the first side's share less the second's, with a
    bootstrap interval of 95 %.
    """

    only_first: int
    only_second: int
    p: float
    difference: float
    low: float
    high: float


def paired_test(first: Sequence[bool], second: Sequence[bool], *, seed: int = 0) -> PairedTest:
    """Compare two sides by their answers to the same questions, of which there is at least one."""
    gains = []
    for is_right, is_other_right in zip(first, second, strict=True):
        gains.append(int(is_right) - int(is_other_right))
    only_first = gains.count(1)
    only_second = gains.count(-1)

    rng = random.Random(seed)
    means = []
    for _ in range(_RESAMPLES):
        drawn = rng.choices(gains, k=len(gains))
        means.append(sum(drawn) / len(drawn))
    means.sort()
    return PairedTest(
        only_first=only_first,
        only_second=only_second,
        p=_mcnemar(only_first, only_second),
        difference=sum(gains) / len(gains),
        low=percentile(means, 2.5),
        high=percentile(means, 97.5),
    )


def _mcnemar(one: int, other: int) -> float:
    """Return the two-sided p value of so many differences in each direction."""
    total = one + other
    tail = sum(math.comb(total, k) for k in range(min(one, other) + 1))
    return min(1.0, float(2 * tail / 2**total))


def percentile(values: Sequence[float], percent: float) -> float:
    """Return a percentile of sorted values, by linear interpolation between neighbours."""
    place = (len(values) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(values) - 1)
    return values[below] + (values[above] - values[below]) * (place - below)
