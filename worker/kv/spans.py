"""Rows of tokens that attend to stored tokens only, in the layout of a kernel over pages.

The layout is int32 and has no padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor


class Kernel(Protocol):
    """A function that computes a span's attention over whole pools of pages.

    Attention is causal, and the last query of a row stands at the row's last stored token. With a
    `window` a query sees that many positions, its own included.
    """

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
        """Return the output [n, heads, head_dim] of the span's `query` [n, heads, head_dim].

        `keys` and `values` are pools [num_pages, page_size, kv_heads, head_dim] of a store.
        """


@dataclass(frozen=True)
class PagedSpan:
    """Flat tokens `start` to `stop` as N rows of queries.

    Row n has `lengths[n]` stored tokens, of which its queries are the last. `query_starts` [N + 1]
    says where each row's queries begin, counted from `start`. The keys of a row lie in the pages
    `block_table` [N, P]; entries behind the row's end may be any page. `key_starts` [N + 1] counts
    the tokens for which the table has room, row by row. All tensors are int32. No row has more than
    `max_queries` queries, or room for more than `max_keys` keys. `kernel` computes the span.
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
    """Return the span of rows that begin at the flat token `start`.

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
