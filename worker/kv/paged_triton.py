"""Attention over pages in Triton, for what torch's own kernel does not do: older torch, pages of
any size.

One program computes one head of a block of a row's queries, walking its keys page by page with a
running softmax. It never splits a row's keys, so that a row's result does not depend on its batch
mates.
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
_FEW_QUERIES, _MANY_QUERIES = 16, 64
"""Queries of a program; 16 is the least that a matrix product on the device takes."""
_KEYS = 64


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
    place_stride,
    head_stride,
    table_row,
    group: tl.constexpr,
    head_dim: tl.constexpr,
    dim_block: tl.constexpr,
    queries: tl.constexpr,
    block: tl.constexpr,
):
    row, head = tl.program_id(0), tl.program_id(1)
    first = tl.load(query_starts + row)
    count = tl.load(query_starts + row + 1) - first
    length = tl.load(lengths + row)
    start = tl.program_id(2) * queries
    if start < count:
        index, dims = start + tl.arange(0, queries), tl.arange(0, dim_block)
        is_dim = dims < head_dim
        is_query = (index < count)[:, None] & is_dim[None, :]
        places = (first + index)[:, None] * query_token + head * query_head + dims[None, :]
        wanted = tl.load(query + places, mask=is_query, other=0.0)
        position = length - count + index
        largest = tl.full([queries], float("-inf"), tl.float32)
        total = tl.zeros([queries], tl.float32)
        mixed = tl.zeros([queries, dim_block], tl.float32)
        end = tl.minimum(length, length - count + start + queries)
        begin = tl.maximum(length - count + start - window + 1, 0) // block * block
        for at in range(begin, end, block):
            key = at + tl.arange(0, block)
            page = tl.load(table + row * table_row + key // page_size, mask=key < end, other=0).to(
                tl.int64
            )
            place = (
                page * page_stride
                + (key % page_size) * place_stride
                + (head // group) * head_stride
            )
            is_key = (key < end)[:, None] & is_dim[None, :]
            some_keys = tl.load(keys + place[:, None] + dims[None, :], mask=is_key, other=0.0)
            scores = tl.dot(wanted, tl.trans(some_keys)) * scale
            behind = position[:, None] - key[None, :]
            scores = tl.where((behind >= 0) & (behind < window), scores, float("-inf"))
            now = tl.maximum(largest, tl.max(scores, 1))
            base = tl.where(now == float("-inf"), 0.0, now)  # a query that has seen nothing yet
            weights, rest = tl.exp2(scores - base[:, None]), tl.exp2(largest - base)
            some_values = tl.load(values + place[:, None] + dims[None, :], mask=is_key, other=0.0)
            mixed = mixed * rest[:, None] + tl.dot(weights.to(some_values.dtype), some_values)
            total = total * rest + tl.sum(weights, 1)
            largest = now
        places = (first + index)[:, None] * out_token + head * out_head + dims[None, :]
        tl.store(out + places, (mixed / total[:, None]).to(out.dtype.element_ty), mask=is_query)


def attend(
    span: PagedSpan, keys: Tensor, values: Tensor, query: Tensor, scale: float, window: int | None
) -> Tensor:
    """Output [n, heads, head_dim] of the span's queries over pools [num_pages, page_size, kv_heads,
    head_dim]."""
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
        span.block_table,
        span.query_starts,
        span.lengths,
        scale * _LOG2_E,
        _NO_WINDOW if window is None else window,
        keys.shape[1],
        query.stride(0),
        query.stride(1),
        out.stride(0),
        out.stride(1),
        keys.stride(0),
        keys.stride(1),
        keys.stride(2),
        span.block_table.stride(0),
        group=heads // keys.shape[2],
        head_dim=head_dim,
        dim_block=dim_block,
        queries=queries,
        block=_KEYS,
        num_stages=2 if dim_block > 128 else 3,
    )
    return out
