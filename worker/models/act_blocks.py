"""Blocks that the ACT networks share: AI-OS ACTv1 and the puzzle networks.

Parameters have the names that both have in common. A level is a stack of post-norm blocks without
biases or norm weights. Attention is an argument of each call, and so are rotary tables where
positions are rotary. The caller decides which keys a query sees, and keeps the keys.
"""

from collections.abc import Callable, Iterable
from math import sqrt
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.engine.heartbeat import heartbeat
from worker.native.operators import rms_norm, silu_gated

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""A function that attends: its arguments are slot, query, key and value.

All tensors, the output too, are [..., tokens, heads, head_dim]. A slot is one pass through one
layer.
"""


class AttentionContext(NamedTuple):
    """Attention between the tokens of a call, and their rotary tables [tokens, 1, head_dim].

    `rope` is None where positions are not rotary.
    """

    attend: Attend
    rope: tuple[Tensor, Tensor] | None


def whole_rows(mask: Tensor | None) -> Attend:
    """Return a function that attends within each of the rows [B, S, heads, head_dim].

    A query sees the keys where `mask` [B, 1, S, S] is True; without a mask it sees all keys of its
    row.
    """

    def attend(_: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = F.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attn_mask=mask
        )
        return out.transpose(1, 2)

    return attend


def rope_tables(positions: Tensor, head_size: int, theta: float) -> tuple[Tensor, Tensor]:
    """Return cosines and sines [tokens, 1, head_size] of `positions` [tokens] in fp32.

    They are in the half-rotated layout.
    """
    dims = torch.arange(0, head_size, 2, device=positions.device, dtype=torch.float32)
    frequency = theta ** (-dims / head_size)
    angle = torch.outer(positions.float(), frequency).repeat(1, 2)[:, None]
    return angle.cos(), angle.sin()


def _rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Return `x` [..., tokens, heads, head_dim] rotated by its positions.

    The rotation is computed in fp32, and the result has the dtype of `x`.
    """
    cos, sin = rope
    first, second = x.float().chunk(2, dim=-1)
    return (x * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


def drawn(*shape: int, std: float = 1.0) -> Tensor:
    """Return random numbers of a truncated normal distribution.

    `torch.randn` on the meta device would import torch's compiler, which takes seconds.
    """
    return nn.init.trunc_normal_(torch.empty(shape), std=std, a=-2 * std, b=2 * std)


class EmbeddingTable(nn.Module):
    """A table [rows, width] of token or position embeddings."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.embedding_weight = nn.Parameter(drawn(rows, width, std=1 / sqrt(width)))


class Attention(nn.Module):
    """Multi-head attention over states [..., tokens, H]. The caller's `attend` has the keys."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv_proj = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, x: Tensor, context: AttentionContext, slot: int) -> Tensor:
        heartbeat()
        query, key, value = self.qkv_proj(x).unflatten(-1, (3, self.num_heads, -1)).unbind(-3)
        if context.rope is not None:
            query = _rotate(query, context.rope)
            key = _rotate(key, context.rope)
        out: Tensor = self.o_proj(context.attend(slot, query, key, value).flatten(-2))
        return out


class SwiGlu(nn.Module):
    """Gated MLP over states [..., H]: down(silu(gate(x)) * up(x))."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(hidden_size, 2 * intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).flatten(0, -2).chunk(2, dim=-1)
        out: Tensor = self.down_proj(silu_gated(gate, up))
        return out.view(x.shape)


class Block(nn.Module):
    """Post-norm block: x = rms(x + attention(x)), then x = rms(x + mlp(x)).

    The norm has no weights and runs in fp32.
    """

    def __init__(self, self_attn: Attention, mlp: nn.Module, norm_eps: float) -> None:
        super().__init__()
        self.norm_eps = norm_eps
        self.self_attn = self_attn
        self.mlp = mlp

    def forward(self, x: Tensor, context: AttentionContext, slot: int) -> Tensor:
        x = rms_norm_rows(x + self.self_attn(x, context, slot), self.norm_eps)
        return rms_norm_rows(x + self.mlp(x), self.norm_eps)


def rms_norm_rows(x: Tensor, eps: float) -> Tensor:
    """Return states [..., width] over their root mean squares, computed in fp32."""
    return rms_norm(x.flatten(0, -2), eps).view(x.shape)


class Level(nn.Module):
    """A stack of blocks over `hidden` + `injection`, both [..., tokens, H].

    Its layers have the slots from `first_slot` on.
    """

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(blocks)

    def forward(
        self, hidden: Tensor, injection: Tensor, context: AttentionContext, first_slot: int
    ) -> Tensor:
        hidden = hidden + injection
        for number, layer in enumerate(self.layers):
            hidden = layer(hidden, context, first_slot + number)
        return hidden
