"""Rows of tokens that look at stored tokens only, laid out for a kernel over pages: int32, and
nothing padded."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor


class Kernel(Protocol):
    """A function that computes a span's attention over whole pools of pages."""

    __name__: str

    def __call__(
        self,
        span: "PagedSpan",
        keys: Tensor,
        values: Tensor,
        query: Tensor,
        *,
        scale: float,
        window: int | None,
    ) -> Tensor:
        """Return the output [n, heads, head_dim] of the span's `query`, of the same shape.

        `keys` and `values` are pools [num_pages, page_size, kv_heads, head_dim].
        """


@dataclass(frozen=True)
class PagedSpan:
    """Flat tokens `start` to `stop` as N rows: each holds the last of its `lengths` [N] stored
    tokens.

    Row n's tokens begin at `query_starts[n]` [N + 1], counted from `start`. Its keys are in the
    pages `block_table[n]` [N, P]; behind the row's end the table names any page. `key_starts`
    [N + 1] counts the tokens that the table has room for, row by row. All tensors are int32. No row
    has more than `max_queries` tokens or room for more than `max_keys` keys. `kernel` computes the
    span.
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
    *,
    page_size: int,
    kernel: Kernel,
    device: torch.device | None = None,
) -> PagedSpan:
    """Return the span of rows laid out from the flat token `start` on.

    Row n is the last `num_queries[n]` of `lengths[n]` stored tokens, whose keys lie in `pages[n]`.
    All rows name equally many pages.
    """

    def as_ints(values: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    query_starts = [0, *accumulate(num_queries)]
    room = len(pages[0]) * page_size
    key_starts = as_ints(range(0, (len(pages) + 1) * room, room))
    return PagedSpan(
        start=start,
        stop=start + query_starts[-1],
        query_starts=as_ints(query_starts),
        key_starts=key_starts,
        lengths=as_ints(lengths),
        block_table=as_ints(pages),
        max_queries=max(num_queries),
        max_keys=room,
        kernel=kernel,
    )
