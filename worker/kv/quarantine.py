"""NaN and infinities stay with the sequence that has them: found in what a step computed, taken out
of the store.

A place in the store outlives its sequence, and others read it under a mask, where 0 times NaN is
still NaN. So what a failing slice has stored is cleared. Part of a prompt samples nothing by which
it would fail: it is looked at here, before it is known as a prefix. A token sees itself: where its
keys or values are broken, its state is.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from worker.kv.attention import AttentionPlan
from worker.kv.store import KVStore
from worker.sequence import Slice


def find_broken(
    slices: Sequence[Slice], plan: AttentionPlan, hidden: Tensor, page_size: int
) -> list[int]:
    """Indices of the slices that stored tokens whose states [T, hidden] are not finite."""
    if plan.rows is None:
        return []
    states = hidden if plan.kept is None else hidden[plan.kept]
    broken = set(plan.rows[~torch.isfinite(states).all(dim=-1)].tolist())
    return (
        [index for index, part in enumerate(slices) if broken.intersection(_rows(part, page_size))]
        if broken
        else []
    )


def clear(store: KVStore, slices: Sequence[Slice], page_size: int) -> None:
    """Take out of the store what the slices have just put there."""
    rows = [row for part in slices for row in _rows(part, page_size)]
    if rows:
        store.clear(torch.tensor(rows, device=store.device))


def _rows(part: Slice, page_size: int) -> list[int]:
    """The store's rows of the slice's tokens."""
    first, pages = part.sequence.num_computed, part.sequence.pages
    return [
        pages[at // page_size] * page_size + at % page_size
        for at in range(first, first + part.num_tokens)
    ]
