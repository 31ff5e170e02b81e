"""Statistics of answers: shares, means, percentiles, and tests of differences."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

_Z = 1.96
_RESAMPLES = 2000
# Of more values than these a mean is distributed normally, and drawing samples would only take long.
_MOST_RESAMPLED = 1000


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
    """Return a share with Wilson's score interval. `total` is at least 1."""
    low, high = wilson_interval(count / total, total)
    return Share(count, total, low, high)


def wilson_interval(mean: float, count: int) -> tuple[float, float]:
    """Return Wilson's score interval of 95 % (Wilson, 1927) of a mean of 0s and 1s.

    Of other values from 0 to 1, which vary less around the same mean, it is wider than need be.
    `count` is at least 1.
    """
    scale = 1 + _Z**2 / count
    center = (mean + _Z**2 / (2 * count)) / scale
    half = _Z / scale * math.sqrt(mean * (1 - mean) / count + _Z**2 / (4 * count**2))
    # At 0 and 1 a bound is the mean itself, but for rounding.
    low = min(mean, max(0.0, center - half))
    high = max(mean, min(1.0, center + half))
    return low, high


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


@dataclass(frozen=True)
class Mean:
    """The mean of so many values, with an interval of 95 %."""

    count: int
    value: float
    low: float
    high: float


def mean_of(values: Sequence[float], *, seed: int = 0) -> Mean:
    """Return the mean of values, of which there is at least one, with a bootstrap interval."""
    count = len(values)
    value = sum(values) / count
    if count > _MOST_RESAMPLED:
        half = _Z * math.sqrt(_variance(values) / count)
        return Mean(count, value, value - half, value + half)

    rng = random.Random(seed)
    means = [sum(rng.choices(values, k=count)) / count for _ in range(_RESAMPLES)]
    means.sort()
    return Mean(count, value, percentile(means, 2.5), percentile(means, 97.5))


def permutation_test(first: Sequence[float], second: Sequence[float], *, seed: int = 0) -> float:
    """Return the two-sided p value of the difference of two means.

    It is the share of ways to deal the same values to two groups of these sizes whose means differ
    at least as much. Each group has at least one value. Of many values the normal distribution
    stands for the ways.
    """
    pooled = [*first, *second]
    total = sum(pooled)
    observed = abs(sum(first) / len(first) - sum(second) / len(second))
    if len(pooled) > _MOST_RESAMPLED:
        error = math.sqrt(_variance(pooled) * (1 / len(first) + 1 / len(second)))
        return math.erfc(observed / error / math.sqrt(2)) if error else 1.0

    rng = random.Random(seed)
    num_as_far = 0
    for _ in range(_RESAMPLES):
        part = sum(rng.sample(pooled, len(first)))
        difference = abs(part / len(first) - (total - part) / len(second))
        # Sums of the same values in another order differ in their last digits.
        num_as_far += difference >= observed - 1e-12
    return (num_as_far + 1) / (_RESAMPLES + 1)


def fisher_test(first: Share, second: Share) -> float:
    """Return the two-sided p value of the difference of two shares, by Fisher's exact test."""
    count = first.count + second.count
    total = first.total + second.total

    def log_ways(in_first: int) -> float:
        ways = _log_choose(first.total, in_first) + _log_choose(second.total, count - in_first)
        return ways - _log_choose(total, count)

    observed = log_ways(first.count)
    p = 0.0
    for in_first in range(max(0, count - second.total), min(count, first.total) + 1):
        chance = log_ways(in_first)
        # Tables that are as likely as the observed one may differ from it by rounding.
        if chance <= observed + 1e-7:
            p += math.exp(chance)
    return min(1.0, p)


def _log_choose(total: int, count: int) -> float:
    return math.lgamma(total + 1) - math.lgamma(count + 1) - math.lgamma(total - count + 1)


def _variance(values: Sequence[float]) -> float:
    """Return the sample variance of at least two values."""
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / (len(values) - 1)


def percentile(values: Sequence[float], percent: float) -> float:
    """Return a percentile of sorted values, by linear interpolation between neighbours."""
    place = (len(values) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(values) - 1)
    return values[below] + (values[above] - values[below]) * (place - below)
