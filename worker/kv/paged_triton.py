"""Attention over pages in Triton, where torch's own kernel cannot be used.

It works with older versions of torch, and with pages of any size. One program computes one head of
a block of a row's queries. It walks the row's keys, `_KEYS` at a time, with a running softmax. It
never splits a row's keys, so that a row's result does not depend on the other rows of its batch.
"""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-decorators=False

import torch
import triton
import triton.language as tl
from torch import Tensor

from worker.kv.spans import PagedSpan

_NO_WINDOW = 1 << 30
_LOG2_E = 1.4426950408889634
_FEW_QUERIES = 16
"""The smallest dimension of a matrix product on the device."""
_MANY_QUERIES = 64
_KEYS = 64
"""Keys that a program reads in one turn of its loop."""


@triton.jit
def _attend(
    out,
    query,
    keys,
    values,
    table,
    query_starts,
    lengths,
    scale,
    window,
    page_size,
    query_token,
    query_head,
    out_token,
    out_head,
    page_stride,
    offset_stride,
    head_stride,
    table_row,
    group: tl.constexpr,
    head_dim: tl.constexpr,
    dim_block: tl.constexpr,
    queries: tl.constexpr,
    block: tl.constexpr,
):
    row = tl.program_id(0)
    head = tl.program_id(1)
    first = tl.load(query_starts + row)
    count = tl.load(query_starts + row + 1) - first
    length = tl.load(lengths + row)
    start = tl.program_id(2) * queries
    if start < count:
        index = start + tl.arange(0, queries)
        dims = tl.arange(0, dim_block)
        is_dim = dims < head_dim
        is_query = (index < count)[:, None] & is_dim[None, :]
        query_offsets = (first + index)[:, None] * query_token + head * query_head + dims[None, :]
        some_queries = tl.load(query + query_offsets, mask=is_query, other=0.0)

        # The row's queries are the last of its stored tokens.
        position = length - count + index
        largest = tl.full([queries], float("-inf"), tl.float32)
        total = tl.zeros([queries], tl.float32)
        mixed = tl.zeros([queries, dim_block], tl.float32)

        # No query sees keys behind the block's last query, or before its first query's window.
        end = tl.minimum(length, length - count + start + queries)
        begin = tl.maximum(length - count + start - window + 1, 0) // block * block
        for block_start in range(begin, end, block):
            key = block_start + tl.arange(0, block)
            page = tl.load(table + row * table_row + key // page_size, mask=key < end, other=0)
            # 64 bits: the offset of a page in a large pool does not fit into 32.
            key_offset = (
                page.to(tl.int64) * page_stride
                + (key % page_size) * offset_stride
                + (head // group) * head_stride
            )
            key_offsets = key_offset[:, None] + dims[None, :]
            is_key = (key < end)[:, None] & is_dim[None, :]
            some_keys = tl.load(keys + key_offsets, mask=is_key, other=0.0)
            scores = tl.dot(some_queries, tl.trans(some_keys)) * scale
            distance = position[:, None] - key[None, :]
            scores = tl.where((distance >= 0) & (distance < window), scores, float("-inf"))

            # The running softmax: the sums so far are rescaled to the new largest score.
            new_largest = tl.maximum(largest, tl.max(scores, 1))
            # A query that has seen no key yet has -inf, and -inf minus itself is NaN.
            base = tl.where(new_largest == float("-inf"), 0.0, new_largest)
            weights = tl.exp2(scores - base[:, None])
            rescale = tl.exp2(largest - base)
            some_values = tl.load(values + key_offsets, mask=is_key, other=0.0)
            mixed = mixed * rescale[:, None] + tl.dot(weights.to(some_values.dtype), some_values)
            total = total * rescale + tl.sum(weights, 1)
            largest = new_largest

        out_offsets = (first + index)[:, None] * out_token + head * out_head + dims[None, :]
        result = (mixed / total[:, None]).to(out.dtype.element_ty)
        tl.store(out + out_offsets, result, mask=is_query)


def attend(
    span: PagedSpan,
    keys: Tensor,
    values: Tensor,
    query: Tensor,
    *,
    scale: float,
    window: int | None,
) -> Tensor:
    """Return the output [n, heads, head_dim] of the span's `query` [n, heads, head_dim].

    `keys` and `values` are pools [num_pages, page_size, kv_heads, head_dim]. With a `window` a
    query sees that many positions, its own included.
    """
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    heads, head_dim = query.shape[1:]
    queries = _FEW_QUERIES if span.max_queries <= _FEW_QUERIES else _MANY_QUERIES
    dim_block = max(16, 1 << (head_dim - 1).bit_length())
    grid = (len(span.lengths), heads, -(-span.max_queries // queries))
    _attend[grid](
        out,
        query,
        keys,
        values,
        table=span.block_table,
        query_starts=span.query_starts,
        lengths=span.lengths,
        scale=scale * _LOG2_E,  # the kernel's exponentials are powers of two
        window=_NO_WINDOW if window is None else window,
        page_size=keys.shape[1],
        query_token=query.stride(0),
        query_head=query.stride(1),
        out_token=out.stride(0),
        out_head=out.stride(1),
        page_stride=keys.stride(0),
        offset_stride=keys.stride(1),
        head_stride=keys.stride(2),
        table_row=span.block_table.stride(0),
        group=heads // keys.shape[2],
        head_dim=head_dim,
        dim_block=dim_block,
        queries=queries,
        block=_KEYS,
        num_stages=2 if dim_block > 128 else 3,
    )
    return out
