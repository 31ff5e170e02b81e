"""Attention over pages on a CPU, by the kernels in C."""

import torch
from torch import Tensor

from worker.kv.spans import PagedSpan
from worker.native.operators import ELEMENT_TYPES, kernels_for

MAX_QUERIES = 8
"""The queries of a row up to which the kernel is used. For more, keys are gathered for SDPA.

The kernel reads a row's keys once for each query, and SDPA once for many.
"""


def in_native(
    span: PagedSpan,
    keys: Tensor,
    values: Tensor,
    query: Tensor,
    *,
    scale: float,
    window: int | None,
) -> Tensor:
    """Attend with the kernel in C. Arguments and result are those of `Kernel`.

    Keys and values may be in another dtype than queries: fp32, bf16 or int8.
    """
    kernels = kernels_for(query, query.shape[2])
    assert kernels is not None
    assert keys.dtype == values.dtype
    num_queries, num_heads, head_dim = query.shape
    if query.stride()[1:] != (head_dim, 1):
        query = query.contiguous()
    _, page_size, kv_heads, _ = keys.shape
    out = query.new_empty(num_queries, num_heads, head_dim)
    kernels.paged_attention(
        out.data_ptr(),
        query.data_ptr(),
        query.stride(0),
        keys.data_ptr(),
        values.data_ptr(),
        span.block_table.data_ptr(),
        span.block_table.shape[1],
        span.lengths.data_ptr(),
        span.query_starts.data_ptr(),
        len(span.lengths),
        kv_heads,
        num_heads // kv_heads,
        head_dim,
        page_size,
        scale,
        window or 0,
        ELEMENT_TYPES[query.dtype],
        ELEMENT_TYPES[keys.dtype],
        torch.get_num_threads(),
    )
    return out
