"""The choice of a kernel that attends to pages where they lie, on CUDA.

It is a flash attention in half precision. Torch's (2) takes a block table from torch 2.13 on; it
needs compute capability 8.0 and pages of a multiple of 256 tokens. Where it cannot be used, our own
kernel in Triton is used. A kernel must first pass a trial.

No kernel splits a row's keys, so that a row's result does not depend on the other rows of its
batch. Attention is causal, and the last query of a row stands at the row's last stored token.
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
    """Attend with torch's kernel. Arguments and result are those of `Kernel`."""
    # The import takes seconds, and on a CPU it is never needed.
    from torch.nn.attention.varlen import varlen_attn_out

    # Torch's window counts the keys to the left of the query. Ours counts the query's own key, too.
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
    """Attend with our own kernel. Arguments and result are those of `Kernel`."""
    # Imported here, because only a torch for CUDA brings Triton along.
    from worker.kv.paged_triton import attend

    return attend(span, keys, values, query, scale=scale, window=window)


def choose_kernel(
    device: torch.device, dtype: torch.dtype, shape: KVShape, page_size: int
) -> tuple[Kernel | None, str]:
    """Return the best kernel that passes its trial, and why no better one is used.

    The kernel is None where none can be used. The reason is a text for a log, empty for the best
    kernel of the device. `dtype` is that of queries and of the store, `shape` and `page_size` (in
    tokens) are those of the store.
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
    """Return why neither kernel can be used, as far as it is known without a trial.

    Return None if there is no such reason.
    """
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
    kernel: Kernel,
    device: torch.device,
    dtype: torch.dtype,
    shape: KVShape,
    page_size: int,
) -> str | None:
    """Compare a small attention over shuffled pages with SDPA over the same keys.

    Return what is wrong with the kernel, or None. The arguments are those of `choose_kernel`.
    """
    per_row = -(-max(_TRIAL_LENGTHS) // page_size)
    num_pages = len(_TRIAL_LENGTHS) * per_row
    one_slot = KVShape(1, num_heads=shape.num_heads, head_dim=shape.head_dim)
    store = KVStore(one_slot, num_pages, page_size=page_size, dtype=dtype, device=device)
    rows = torch.arange(num_pages * page_size, device=device)
    size = (2, len(rows), shape.num_heads, shape.head_dim)
    store.write(0, rows, *torch.randn(size, dtype=dtype, device=device))
    keys, values = store.pool(0)

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

    # A kernel is foreign code: this torch may lack the function, or this device its code.
    try:
        out = kernel(span, keys, values, query, scale=scale, window=None)
    except Exception as error:
        return f"{kernel.__name__} failed its trial: {type(error).__name__}: {error}"

    reference = _reference(store, table.to(device), query, scale)
    largest_error = (out - reference).abs().max().item()
    # Not `>`: this way a NaN, for which no comparison is true, is a fault, too.
    if not largest_error <= _TRIAL_TOLERANCE:
        return f"{kernel.__name__} is off by {largest_error:.3g} in its trial"
    return None


def _reference(store: KVStore, table: Tensor, query: Tensor, scale: float) -> Tensor:
    """Return the output [n, heads, head_dim] of the trial's queries by SDPA, row by row."""
    keys, values = store.read(0, table, query.dtype)
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
