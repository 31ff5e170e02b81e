"""Rows of tokens that look at stored tokens only, as a kernel over pages wants them: int32, and
nothing padded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

Kernel = Callable[["PagedSpan", Tensor, Tensor, Tensor, float, int | None], Tensor]
"""(span, keys, values, query, scale, window): attention output of the span's `query`, over whole
pools of pages."""


@dataclass(frozen=True)
class PagedSpan:
    """Flat tokens `start` to `stop`: N rows, each the last tokens of its `lengths` [N] stored ones.

    Row n's tokens begin at `query_starts[n]` [N + 1], counted from `start`; its keys are in the
    pages `block_table[n]` [N, P] (behind its end: any page). `key_starts` [N + 1] counts the places
    of the block table. All int32. No row has more than `max_queries` tokens or `max_keys` places.
    `kernel` computes it.
    """

    start: int
    stop: int
    query_starts: Tensor
    key_starts: Tensor
    lengths: Tensor
    block_table: Tensor
    max_queries: int
    max_keys: int
    kernel: Kernel


def paged_span(
    start: int,
    num_queries: Sequence[int],
    lengths: Sequence[int],
    pages: Sequence[Sequence[int]],
    page_size: int,
    kernel: Kernel,
    device: torch.device | None = None,
) -> PagedSpan:
    """The span of rows of `num_queries` tokens each, laid out from `start`, `pages` of each row
    equally many."""

    def as_ints(values: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    query_starts = [0, *accumulate(num_queries)]
    room = len(pages[0]) * page_size
    key_starts = as_ints(range(0, (len(pages) + 1) * room, room))
    return PagedSpan(
        start,
        start + query_starts[-1],
        as_ints(query_starts),
        key_starts,
        as_ints(lengths),
        as_ints(pages),
        max(num_queries),
        room,
        kernel,
    )
