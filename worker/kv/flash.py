"""Attention over pages where they lie, on CUDA in half precision: which kernel does it, if any.

Torch's flash attention (2) takes a block table from torch 2.13 on. It asks for compute capability
8.0, pages of a multiple of 256 tokens, and one split, since with more its results over pages are
wrong. Where it does not serve, our own kernel in Triton does. Either must first pass a trial.
Neither splits a row's keys, so that a row's result does not depend on its batch mates. Rows see
what is stored up to themselves: causal, aligned at their last token.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.kv.spans import Kernel, PagedSpan, paged_span
from worker.kv.store import KVShape, KVStore

PAGE_SIZE = 256
"""Tokens of which a page must hold a multiple for torch's kernel."""

_LARGEST_HEAD = 256
_TRIAL_LENGTHS = (300, 1, 257)
_TRIAL_QUERIES = (1, 1, 40)
_TRIAL_TOLERANCE = 0.03


def varlen(
    span: PagedSpan, keys: Tensor, values: Tensor, query: Tensor, scale: float, window: int | None
) -> Tensor:
    """Torch's kernel."""
    from torch.nn.attention.varlen import (
        varlen_attn_out,
    )  # seconds of imports that a CPU does without

    out = torch.empty_like(query)
    varlen_attn_out(
        out,
        query,
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


def in_triton(
    span: PagedSpan, keys: Tensor, values: Tensor, query: Tensor, scale: float, window: int | None
) -> Tensor:
    """Ours."""
    from worker.kv.paged_triton import attend  # Triton comes with torch for CUDA alone

    return attend(span, keys, values, query, scale, window)


def choose_kernel(
    device: torch.device, dtype: torch.dtype, shape: KVShape, page_size: int
) -> tuple[Kernel | None, str]:
    """The kernel that attends to pages where they lie, or None, and why no better one, in words for
    a log."""
    obstacle = _obstacle(device, dtype, shape)
    if obstacle:
        return None, obstacle
    problem = (
        f"torch's kernel needs page_size to be a multiple of {PAGE_SIZE}"
        if page_size % PAGE_SIZE
        else None
    )
    problem = problem or trial(varlen, device, dtype, shape, page_size)
    if problem is None:
        return varlen, ""
    own_problem = trial(in_triton, device, dtype, shape, page_size)
    return (in_triton, problem) if own_problem is None else (None, f"{problem}; {own_problem}")


def _obstacle(device: torch.device, dtype: torch.dtype, shape: KVShape) -> str | None:
    if device.type != "cuda" or torch.version.hip is not None:
        return (
            "flash attention over pages needs CUDA, not "
            f"{device.type if torch.version.hip is None else 'ROCm'}"
        )
    if dtype not in (torch.bfloat16, torch.float16):
        return f"flash attention needs bfloat16 or float16, not {dtype}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return (
            "flash attention needs compute capability 8.0, not that of "
            f"{torch.cuda.get_device_name(device)}"
        )
    if shape.head_dim % 8 or shape.head_dim > _LARGEST_HEAD:
        return (
            f"flash attention needs a head dimension of a multiple of 8 up to {_LARGEST_HEAD}, "
            f"not {shape.head_dim}"
        )
    return None


@torch.inference_mode()
def trial(
    kernel: Kernel, device: torch.device, dtype: torch.dtype, shape: KVShape, page_size: int
) -> str | None:
    """Compare a small attention over shuffled pages with SDPA over the same keys; what is wrong
    with it, or None."""
    per_row = -(-max(_TRIAL_LENGTHS) // page_size)
    one_slot = KVShape(1, shape.num_heads, shape.head_dim)
    store = KVStore(one_slot, len(_TRIAL_LENGTHS) * per_row, page_size, dtype, device)
    for pool in store.pool(0):
        pool.normal_()
    table = torch.arange(len(_TRIAL_LENGTHS) * per_row).flip(0).view(-1, per_row)
    span = paged_span(0, _TRIAL_QUERIES, _TRIAL_LENGTHS, table.tolist(), page_size, kernel, device)
    query = torch.randn(span.stop, shape.num_heads, shape.head_dim, dtype=dtype, device=device)
    scale = shape.head_dim**-0.5
    try:
        got = kernel(span, *store.pool(0), query, scale, None)
    # the seam to foreign kernels: a torch without the function, a device without the code
    except Exception as error:
        return f"{kernel.__name__} failed its trial: {type(error).__name__}: {error}"
    gap = (got - _reference(store, table.to(device), query, scale)).abs().max().item()
    return (
        None if gap <= _TRIAL_TOLERANCE else f"{kernel.__name__} is off by {gap:.3g} in its trial"
    )


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
