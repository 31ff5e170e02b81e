"""Attention over fresh tokens (prefill, scoring) or over the store (decode), as plans that are made once per step.

A plan is built from lengths and pages before the forward and used unchanged by every layer slot. Masks are boolean,
True where a query may look.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.kv.store import KVStore


@dataclass(frozen=True)
class FreshPlan:
    """Rows are whole token runs from position 0, right-padded. `mask` [B, 1, N, N]; `flat` and `rows` say which tokens
    of the flattened [B * N] are stored, and where; both are None when nothing is kept (scoring)."""

    positions: Tensor
    mask: Tensor
    flat: Tensor | None = None
    rows: Tensor | None = None


@dataclass(frozen=True)
class DecodePlan:
    """One new token a row: `rows` [B] where it is stored, `context` [B, L] what it sees (itself included), `mask`
    [B, 1, 1, L] which of these are real."""

    positions: Tensor
    rows: Tensor
    context: Tensor
    mask: Tensor


Plan = FreshPlan | DecodePlan


def prefix_mask(prefix_lengths: Sequence[int], lengths: Sequence[int], device: torch.device) -> Tensor:
    """[B, 1, N, N]: causal, and free inside the first `prefix_lengths[b]` tokens; padding sees and is seen by itself.

    With a prefix of 0 it is a causal mask. Tokens behind the prefix see all before them, the prefix never sees them:
    one pass over prompt and response equals prefill and then token-by-token decoding.
    """
    width = max(lengths)
    index = torch.arange(width, device=device)
    causal = index[None, :] <= index[:, None]
    prefix = torch.tensor(prefix_lengths, device=device)[:, None, None]
    inside = (index[None, None, :] < prefix) & (index[None, :, None] < prefix)
    real = index[None, None, :] < torch.tensor(lengths, device=device)[:, None, None]
    itself = torch.eye(width, dtype=torch.bool, device=device)
    return (((causal[None] | inside) & real) | itself)[:, None]


def attend(
    plan: Plan, store: KVStore | None, slot: int, query: Tensor, key: Tensor, value: Tensor, scale: float
) -> Tensor:
    """Attention output [B, N, heads, head_dim]; `key` and `value` may have fewer heads (grouped queries).

    All of query, key and value come as [B, N, heads, head_dim]; new keys and values are stored as the plan says.
    """
    if isinstance(plan, DecodePlan):
        assert store is not None
        store.write(slot, plan.rows, key[:, 0], value[:, 0])
        key, value = store.read(slot, plan.context)
    elif plan.flat is not None and plan.rows is not None:
        assert store is not None
        store.write(slot, plan.rows, key.flatten(0, 1)[plan.flat], value.flatten(0, 1)[plan.flat])
    grouped = key.shape[2] != query.shape[2]
    out = F.scaled_dot_product_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        attn_mask=plan.mask,
        scale=scale,
        enable_gqa=grouped,
    )
    return out.transpose(1, 2)
