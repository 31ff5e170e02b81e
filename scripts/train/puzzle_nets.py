"""Trainable puzzle networks: TRM that mixes positions by an MLP, and the HRM of Sapient.

They are written from the published equations, apart from the worker's own, so that a checkpoint
made here is a test of its loader. Parameters have the names of the published checkpoints without
their prefix. One ACT segment is:

    x = sqrt(H) * [puzzle_emb ; E[ids]]
        or, with learned positions, sqrt(H) * sqrt(1/2) * ([puzzle_emb ; E[ids]] + P)
    repeat H_cycles: { repeat L_cycles: z_L = L(z_L + z_H + x);  z_H = H(z_H + z_L) }

In a TRM, L and H are the same layers. Gradients flow through the last H cycle alone.
"""

from dataclasses import dataclass
from math import ceil, sqrt
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Kind = Literal["trm", "hrm"]
Positions = Literal["none", "rope", "learned"]

NORM_EPS = 1e-5
ROPE_THETA = 1e4
PREFIX_LEN = 1
"""The positions before the cells. They hold the puzzle embedding, of which there is one row."""


@dataclass(frozen=True)
class NetConfig:
    """Sizes of a network. `num_layers` is that of L, and in an HRM also that of H.

    A TRM that mixes positions needs no encoding of them. An HRM has rotary or learned ones.
    """

    kind: Kind
    vocab_size: int
    seq_len: int
    hidden_size: int
    expansion: float
    num_heads: int
    num_layers: int
    h_cycles: int
    l_cycles: int
    halt_max_steps: int
    positions: Positions

    @property
    def num_positions(self) -> int:
        return PREFIX_LEN + self.seq_len


class Carry(NamedTuple):
    """State of rows between segments: z_H and z_L, each [rows, positions, H]."""

    z_h: Tensor
    z_l: Tensor


class Segment(NamedTuple):
    """Result of a segment: carry, logits of cells [rows, cells, V], q_halt and q_continue [rows]"""

    carry: Carry
    logits: Tensor
    q_halt: Tensor
    q_continue: Tensor


def intermediate_size(width: int, expansion: float) -> int:
    """Return the inner width of a SwiGLU, a multiple of 256 as in the published networks."""
    return ceil(round(expansion * width * 2 / 3) / 256) * 256


def _drawn(*shape: int, std: float) -> Tensor:
    """Return random numbers of a normal distribution, cut off at two standard deviations."""
    return nn.init.trunc_normal_(torch.empty(shape), std=std, a=-2 * std, b=2 * std)


def _linear(num_inputs: int, num_outputs: int) -> nn.Linear:
    layer = nn.Linear(num_inputs, num_outputs, bias=False)
    layer.weight = nn.Parameter(_drawn(num_outputs, num_inputs, std=1 / sqrt(num_inputs)))
    return layer


def _norm(x: Tensor) -> Tensor:
    """Return `x` divided by its root mean square over the last axis."""
    return F.rms_norm(x, x.shape[-1:], eps=NORM_EPS)


class _Embedding(nn.Module):
    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.embedding_weight = nn.Parameter(_drawn(rows, width, std=1 / sqrt(width)))


class _PuzzleEmbedding(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(1, width))


class _SwiGlu(nn.Module):
    def __init__(self, width: int, expansion: float) -> None:
        super().__init__()
        inner = intermediate_size(width, expansion)
        self.gate_up_proj = _linear(width, 2 * inner)
        self.down_proj = _linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        out: Tensor = self.down_proj(F.silu(gate) * up)
        return out


class _Attention(nn.Module):
    """Attention between all positions of a row. Rotary ones count from 0."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.is_rotary = config.positions == "rope"
        self.qkv_proj = _linear(config.hidden_size, 3 * config.hidden_size)
        self.o_proj = _linear(config.hidden_size, config.hidden_size)
        head_size = config.hidden_size // config.num_heads
        frequency = ROPE_THETA ** (-torch.arange(0, head_size, 2) / head_size)
        angle = torch.outer(torch.arange(config.num_positions), frequency).repeat(1, 2)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.qkv_proj(x).unflatten(-1, (3, self.num_heads, -1))
        # Each [rows, heads, positions, head_size]. On CPUs these products are faster than torch's
        # fused attention, whose backward in bfloat16 takes several times as long.
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        query = self._rotate(query) / sqrt(query.shape[-1])
        weights = (query @ self._rotate(key).transpose(-1, -2)).softmax(-1)
        out: Tensor = self.o_proj((weights @ value).transpose(1, 2).flatten(-2))
        return out

    def _rotate(self, x: Tensor) -> Tensor:
        if not self.is_rotary:
            return x
        first, second = x.chunk(2, dim=-1)
        return x * self.cos + torch.cat((-second, first), dim=-1) * self.sin


class _AttentionBlock(nn.Module):
    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self.self_attn = _Attention(config)
        self.mlp = _SwiGlu(config.hidden_size, config.expansion)

    def forward(self, h: Tensor) -> Tensor:
        h = _norm(h + self.self_attn(h))
        return _norm(h + self.mlp(h))


class _MixingBlock(nn.Module):
    """A block whose first MLP runs over the positions, for each of the hidden dimensions."""

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self.mlp_t = _SwiGlu(config.num_positions, config.expansion)
        self.mlp = _SwiGlu(config.hidden_size, config.expansion)

    def forward(self, h: Tensor) -> Tensor:
        across = h.transpose(1, 2).contiguous()
        across = _norm(across + self.mlp_t(across))
        h = across.transpose(1, 2).contiguous()
        return _norm(h + self.mlp(h))


class _Level(nn.Module):
    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        block = _MixingBlock if config.kind == "trm" else _AttentionBlock
        self.layers = nn.ModuleList(block(config) for _ in range(config.num_layers))

    def forward(self, h: Tensor, injection: Tensor) -> Tensor:
        h = h + injection
        for layer in self.layers:
            h = layer(h)
        return h


class PuzzleNet(nn.Module):
    """A TRM or an HRM. Start rows with `initial_carry`, then call it once for each segment."""

    H_init: Tensor
    L_init: Tensor

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.register_buffer("H_init", _drawn(width, std=1.0))
        self.register_buffer("L_init", _drawn(width, std=1.0))
        self.embed_tokens = _Embedding(config.vocab_size, width)
        self.puzzle_emb = _PuzzleEmbedding(PREFIX_LEN * width)
        if config.positions == "learned":
            self.embed_pos = _Embedding(config.num_positions, width)
        self.lm_head = _linear(width, config.vocab_size)
        self.q_head = nn.Linear(width, 2)
        self.L_level = _Level(config)
        if config.kind == "hrm":
            self.H_level = _Level(config)

        # At first no row halts: sigmoid(-5) is 0.007.
        nn.init.zeros_(self.q_head.weight)
        nn.init.constant_(self.q_head.bias, -5.0)

    def initial_carry(self, num_rows: int) -> Carry:
        shape = (num_rows, self.config.num_positions, -1)
        return Carry(self.H_init.expand(shape), self.L_init.expand(shape))

    def forward(self, ids: Tensor, carry: Carry) -> Segment:
        """Run one segment of the cells `ids` [rows, cells], which are int64.

        The logits and q are float32, also under autocast.
        """
        x = self._embed(ids)
        with torch.no_grad():
            for _ in range(self.config.h_cycles - 1):
                carry = self._cycle(carry, x)
        carry = self._cycle(carry, x)

        logits = self.lm_head(carry.z_h[:, PREFIX_LEN:]).float()
        q_halt, q_continue = self.q_head(carry.z_h[:, 0]).float().unbind(-1)
        return Segment(carry, logits, q_halt, q_continue)

    def _cycle(self, carry: Carry, x: Tensor) -> Carry:
        z_h, z_l = carry
        for _ in range(self.config.l_cycles):
            z_l = self.L_level(z_l, z_h + x)
        upper = self.H_level if self.config.kind == "hrm" else self.L_level
        return Carry(upper(z_h, z_l), z_l)

    def _embed(self, ids: Tensor) -> Tensor:
        tokens = F.embedding(ids, self.embed_tokens.embedding_weight)
        prefix = self.puzzle_emb.weights.view(1, PREFIX_LEN, -1).expand(len(ids), -1, -1)
        x = torch.cat((prefix, tokens), dim=1)
        if self.config.positions == "learned":
            x = sqrt(0.5) * (x + self.embed_pos.embedding_weight)
        return sqrt(self.config.hidden_size) * x


def num_parameters(net: PuzzleNet) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def flops_per_segment(config: NetConfig) -> int:
    """Return the floating point operations of the matrix products of one segment of one row."""
    positions = config.num_positions
    width = config.hidden_size
    per_layer = 6 * positions * width * intermediate_size(width, config.expansion)
    if config.kind == "trm":
        per_layer += 6 * width * positions * intermediate_size(positions, config.expansion)
    else:
        per_layer += 8 * positions * width**2 + 4 * positions**2 * width
    num_passes = config.h_cycles * (config.l_cycles + 1)
    return num_passes * config.num_layers * per_layer
