"""Quarantine of NaN and infinities, which must stay with the sequence that has them.

A row of the store outlives its sequence, and other sequences read it under a mask, where 0 times
NaN is still NaN. So the rows that a failing slice has stored are cleared.

A slice that is part of a prompt samples no token, by which it would fail. Its states are checked
here, before others may share it as a prefix. A token attends to itself, so where its keys or values
are broken, its state is broken, too.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from worker.engine.sequence import Slice
from worker.kv.attention import AttentionPlan
from worker.kv.store import KVStore


def find_broken(
    slices: Sequence[Slice], plan: AttentionPlan, hidden: Tensor, page_size: int
) -> list[int]:
    """Return the indices of the slices that stored tokens whose states are not finite.

    `hidden` are the states [T, hidden] of the step's flat tokens.
    """
    if plan.rows is None or not slices:
        return []
    states = hidden if plan.kept is None else hidden[plan.kept]
    is_broken = ~torch.isfinite(states).all(dim=-1)
    broken_rows = set(plan.rows[is_broken].tolist())
    if not broken_rows:
        return []

    indices = []
    for index, part in enumerate(slices):
        if broken_rows.intersection(_rows(part, page_size)):
            indices.append(index)
    return indices


def clear(store: KVStore, slices: Sequence[Slice], page_size: int) -> None:
    """Clear the rows of the store that the slices have just written."""
    rows: list[int] = []
    for part in slices:
        rows += _rows(part, page_size)
    if rows:
        store.clear(torch.tensor(rows, device=store.device))


def _rows(part: Slice, page_size: int) -> list[int]:
    """Return the store's rows of the slice's tokens."""
    pages = part.sequence.pages
    first = part.sequence.num_computed
    rows = []
    for position in range(first, first + part.num_tokens):
        rows.append(pages[position // page_size] * page_size + position % page_size)
    return rows
