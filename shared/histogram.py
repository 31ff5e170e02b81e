"""A histogram that is cheap to add to from one thread and can be read from another."""

from bisect import bisect_left
from collections.abc import Sequence


class BucketHistogram:
    """`counts[i]` values lie above `bounds[i - 1]` and at most at `bounds[i]`; the last one those
    above all bounds."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        return sum(self.counts)

    def cumulative(self) -> list[tuple[str, float]]:
        """Prometheus's buckets: each bound, and how many values are at most that."""
        so_far, buckets = 0, []
        for bound, count in zip((*map(float, self.bounds), "+Inf"), list(self.counts), strict=True):
            so_far += count
            buckets.append((str(bound), float(so_far)))
        return buckets
