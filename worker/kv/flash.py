"""The choice of a kernel that attends to pages where they lie, on CUDA in half precision.

Torch's flash attention (2) takes a block table from torch 2.13 on. It asks for compute capability
8.0 and for pages of a multiple of 256 tokens. Where it cannot be used, our own kernel in Triton is.
Either must first pass a trial.

Neither kernel splits a row's keys, so that a row's result does not depend on its batch mates. Rows
see what is stored up to themselves: attention is causal, aligned at their last token.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.kv.spans import Kernel, PagedSpan, paged_span
from worker.kv.store import KVShape, KVStore

PAGE_SIZE = 256
"""The size of a page, in tokens, must be a multiple of this for torch's kernel."""

_LARGEST_HEAD = 256
_TRIAL_LENGTHS = (300, 1, 257)
_TRIAL_QUERIES = (1, 1, 40)
_TRIAL_TOLERANCE = 0.03


def varlen(
    span: PagedSpan,
    keys: Tensor,
    values: Tensor,
    query: Tensor,
    *,
    scale: float,
    window: int | None,
) -> Tensor:
    """Attend with torch's kernel; arguments and result are those of `Kernel`."""
    # The import takes seconds, and on a CPU it is never needed.
    from torch.nn.attention.varlen import varlen_attn_out

    # Torch's window counts the keys to the left of the query, ours counts the query's own too.
    left = -1 if window is None else window - 1
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
        window_size=(left, 0),
        enable_gqa=keys.shape[2] != query.shape[1],
        seqused_k=span.lengths,
        block_table=span.block_table,
        num_splits=1,  # with more, its results over pages are wrong
    )
    return out


def in_triton(
    span: PagedSpan,
    keys: Tensor,
    values: Tensor,
    query: Tensor,
    *,
    scale: float,
    window: int | None,
) -> Tensor:
    """Attend with our own kernel; arguments and result are those of `Kernel`."""
    # Triton comes with torch for CUDA alone.
    from worker.kv.paged_triton import attend

    return attend(span, keys, values, query, scale=scale, window=window)


def choose_kernel(
    device: torch.device, dtype: torch.dtype, shape: KVShape, page_size: int
) -> tuple[Kernel | None, str]:
    """Return the best kernel that passes its trial, and why a better one does not serve.

    The kernel is None where no kernel serves. The reason is a text for a log, empty for torch's
    kernel.
    """
    obstacle = _obstacle(device, dtype, shape)
    if obstacle:
        return None, obstacle

    if page_size % PAGE_SIZE:
        problem: str | None = f"torch's kernel needs page_size to be a multiple of {PAGE_SIZE}"
    else:
        problem = trial(varlen, device, dtype, shape, page_size)
    if problem is None:
        return varlen, ""

    own_problem = trial(in_triton, device, dtype, shape, page_size)
    if own_problem is None:
        return in_triton, problem
    return None, f"{problem}; {own_problem}"


def _obstacle(device: torch.device, dtype: torch.dtype, shape: KVShape) -> str | None:
    """Return why neither kernel can serve, as far as it is known without a trial; None if nothing
    is in the way."""
    if torch.version.hip is not None:
        return "flash attention over pages needs CUDA, not ROCm"
    if device.type != "cuda":
        return f"flash attention over pages needs CUDA, not {device.type}"
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
    """Compare a small attention over shuffled pages with SDPA over the same keys.

    Return what is wrong with the kernel, or None.
    """
    per_row = -(-max(_TRIAL_LENGTHS) // page_size)
    num_pages = len(_TRIAL_LENGTHS) * per_row
    one_slot = KVShape(1, num_heads=shape.num_heads, head_dim=shape.head_dim)
    store = KVStore(one_slot, num_pages, page_size=page_size, dtype=dtype, device=device)
    keys, values = store.pool(0)
    keys.normal_()
    values.normal_()

    table = torch.arange(num_pages).flip(0).view(-1, per_row)
    span = paged_span(
        0,
        _TRIAL_QUERIES,
        _TRIAL_LENGTHS,
        table.tolist(),
        page_size=page_size,
        kernel=kernel,
        device=device,
    )
    query = torch.randn(span.stop, shape.num_heads, shape.head_dim, dtype=dtype, device=device)
    scale = shape.head_dim**-0.5

    # The seam to foreign kernels: a torch without the function, a device without the code.
    try:
        out = kernel(span, keys, values, query, scale=scale, window=None)
    except Exception as error:
        return f"{kernel.__name__} failed its trial: {type(error).__name__}: {error}"

    gap = (out - _reference(store, table.to(device), query, scale)).abs().max().item()
    # Written so that a NaN, which no comparison holds for, is a fault too.
    if not gap <= _TRIAL_TOLERANCE:
        return f"{kernel.__name__} is off by {gap:.3g} in its trial"
    return None


def _reference(store: KVStore, table: Tensor, query: Tensor, scale: float) -> Tensor:
    """Attend row by row with SDPA."""
    keys, values = store.read(0, table)
    parts = []
    first = 0
    for row, (length, count) in enumerate(zip(_TRIAL_LENGTHS, _TRIAL_QUERIES, strict=True)):
        positions = torch.arange(length, device=query.device)
        mask = positions[None, :] <= positions[length - count :, None]
        row_query = query[first : first + count].transpose(0, 1)[None]
        row_keys = keys[row, :length].transpose(0, 1)[None]
        row_values = values[row, :length].transpose(0, 1)[None]
        out = F.scaled_dot_product_attention(
            row_query, row_keys, row_values, attn_mask=mask, scale=scale
        )
        parts.append(out[0].transpose(0, 1))
        first += count
    return torch.cat(parts)
