"""Attention over pages where they lie, on CUDA: torch's flash attention reads the store through a block table.

What the built-in kernel (flash attention 2) asks for: bfloat16 or float16, compute capability 8.0 or more, pages of a
multiple of 256 tokens, and one split, since with more its results over pages are wrong. One split also makes a row's
result independent of its batch mates. Rows see what is stored up to themselves: causal, aligned at their last token.
"""

from collections.abc import Sequence as Rows
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.kv.store import KVShape, KVStore

PAGE_SIZE = 256
"""Tokens of which a page must hold a multiple."""

_LARGEST_HEAD = 256
_TRIAL_LENGTHS = (300, 1, 257)
_TRIAL_QUERIES = (1, 1, 40)
_TRIAL_TOLERANCE = 0.03


@dataclass(frozen=True)
class PagedSpan:
    """Flat tokens `start` to `stop`: N rows, each the last tokens of its `lengths` [N] stored ones.

    Row n's tokens begin at `query_starts[n]` [N + 1], counted from `start`; its keys are in the pages
    `block_table[n]` [N, P] (behind its end: any page). `key_starts` [N + 1] counts the places of the block table.
    All int32. No row has more than `max_queries` tokens or `max_keys` places.
    """

    start: int
    stop: int
    query_starts: Tensor
    key_starts: Tensor
    lengths: Tensor
    block_table: Tensor
    max_queries: int
    max_keys: int


def paged_span(
    start: int,
    num_queries: Rows[int],
    lengths: Rows[int],
    pages: Rows[Rows[int]],
    page_size: int,
    device: torch.device | None = None,
) -> PagedSpan:
    """The span of rows of `num_queries` tokens each, laid out from `start`, `pages` of each row equally many."""

    def as_ints(values: Rows[int] | Rows[Rows[int]]) -> Tensor:
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
    )


def attend_pages(
    span: PagedSpan, store: KVStore | None, slot: int, query: Tensor, scale: float, window: int | None
) -> Tensor:
    """Attention output of a span; the arguments are those of `attend`, the span's own keys already stored."""
    from torch.nn.attention.varlen import varlen_attn_out  # seconds of imports that a CPU does without

    assert store is not None
    keys, values = store.pool(slot)
    queries = query[span.start : span.stop]
    out = torch.empty_like(queries)
    varlen_attn_out(
        out,
        queries,
        keys,
        values,
        span.query_starts,
        span.key_starts,
        span.max_queries,
        span.max_keys,
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=keys.shape[2] != query.shape[1],
        seqused_k=span.lengths,
        block_table=span.block_table,
        num_splits=1,
    )
    return out


def obstacle(device: torch.device, dtype: torch.dtype, shape: KVShape, page_size: int) -> str | None:
    """Why pages cannot be attended to where they lie, in words for a log; None if they can."""
    if device.type != "cuda" or torch.version.hip is not None:
        return f"flash attention over pages needs CUDA, not {device.type if torch.version.hip is None else 'ROCm'}"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"flash attention needs bfloat16 or float16, not {dtype}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"flash attention needs compute capability 8.0, not that of {torch.cuda.get_device_name(device)}"
    if shape.head_dim % 8 or shape.head_dim > _LARGEST_HEAD:
        return f"flash attention needs a head dimension of a multiple of 8 up to {_LARGEST_HEAD}, not {shape.head_dim}"
    if page_size % PAGE_SIZE:
        return f"flash attention over pages needs page_size to be a multiple of {PAGE_SIZE}, not {page_size}"
    return trial(device, dtype, shape, page_size)


@torch.inference_mode()
def trial(device: torch.device, dtype: torch.dtype, shape: KVShape, page_size: int) -> str | None:
    """Compare a small attention over shuffled pages with SDPA over the same keys; what is wrong with it, or None."""
    per_row = -(-max(_TRIAL_LENGTHS) // page_size)
    one_slot = KVShape(1, shape.num_heads, shape.head_dim)
    store = KVStore(one_slot, len(_TRIAL_LENGTHS) * per_row, page_size, dtype, device)
    for pool in store.pool(0):
        pool.normal_()
    table = torch.arange(len(_TRIAL_LENGTHS) * per_row).flip(0).view(-1, per_row)
    span = paged_span(0, _TRIAL_QUERIES, _TRIAL_LENGTHS, table.tolist(), page_size, device)
    query = torch.randn(span.stop, shape.num_heads, shape.head_dim, dtype=dtype, device=device)
    scale = shape.head_dim**-0.5
    try:
        got = attend_pages(span, store, 0, query, scale, None)
    except RuntimeError as error:  # a kernel that this build or device lacks
        return f"flash attention over pages failed its trial: {error}"
    gap = (got - _reference(store, table.to(device), query, scale)).abs().max().item()
    return None if gap <= _TRIAL_TOLERANCE else f"flash attention over pages is off by {gap:.3g} in its trial"


def _reference(store: KVStore, table: Tensor, query: Tensor, scale: float) -> Tensor:
    keys, values = store.read(0, table)
    parts = []
    for row, (length, count) in enumerate(zip(_TRIAL_LENGTHS, _TRIAL_QUERIES, strict=True)):
        first = sum(_TRIAL_QUERIES[:row])
        places = torch.arange(length, device=query.device)
        mask = places[None, :] <= places[length - count :, None]
        heads = (query[first : first + count], keys[row, :length], values[row, :length])
        q, k, v = (item.transpose(0, 1)[None] for item in heads)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        parts.append(out[0].transpose(0, 1))
    return torch.cat(parts)
