"""Mean pooling of hidden states, step by step. Plain Python over floats."""

import math
from array import array
from operator import add

from shared.tasks.vectors import pack
from worker.engine.sequence import Pooled


def joined(one: Pooled | None, other: Pooled) -> Pooled:
    """Return the sum of the states of some tokens and of the tokens behind them."""
    if one is None:
        return other
    return Pooled(array("d", map(add, one.sums, other.sums)), one.num_tokens + other.num_tokens)


def mean_of(pooled: Pooled, *, normalize: bool) -> bytes:
    """Return the mean state in the form of the wire, of length 1 if `normalize`, unless it is
    zero."""
    mean = [value / pooled.num_tokens for value in pooled.sums]
    length = 1.0
    if normalize:
        length = math.hypot(*mean) or 1.0
    return pack(value / length for value in mean)
