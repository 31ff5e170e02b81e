"""A histogram that is cheap to add to from one thread and can be read from another."""

from bisect import bisect_left
from collections.abc import Sequence


class BucketHistogram:
    """A histogram with upper bounds, and the total of its values.

    `counts[i]` counts values above `bounds[i - 1]` and at most `bounds[i]`. The last count is that
    of values above all bounds.
    """

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
        """Return Prometheus's buckets: each bound, and how many values are at most that."""
        # A copy, so that buckets of one answer agree while another thread adds values.
        counts = list(self.counts)
        buckets = []
        num_values = 0
        for bound, count in zip(self.bounds, counts[:-1], strict=True):
            num_values += count
            buckets.append((str(float(bound)), float(num_values)))
        buckets.append(("+Inf", float(num_values + counts[-1])))
        return buckets
