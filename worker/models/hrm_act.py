"""The AI-OS ACTv1 network: its maths under its checkpoint's parameter names.

It knows nothing of files, tokenizers or sampling. One call is one ACT segment over right-padded rows; the caller keeps
each row's carry and decides how many segments the row gets, so rows of a batch may be at different segments.
"""

from dataclasses import dataclass
from math import sqrt
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.models.act_blocks import Attention, Block, Level, Sight, SwiGlu, Table, rope_tables
from worker.models.errors import ModelFormatError


@dataclass(frozen=True)
class ActConfig:
    """Sizes and switches of one network; `num_experts` 0 is dense, `window_size` None is full attention.

    Raises ModelFormatError where the numbers describe no network.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    h_layers: int
    l_layers: int
    h_cycles: int
    l_cycles: int
    num_experts: int
    experts_per_token: int
    pos_encoding: Literal["rope", "learned"]
    max_seq_len: int
    halt_max_steps: int
    window_size: int | None = None
    rope_theta: float = 1e4
    norm_eps: float = 1e-5
    attention: Literal["bidirectional", "causal"] = "bidirectional"

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ModelFormatError(f"hidden size {self.hidden_size} does not divide into {self.num_heads} heads")
        if self.pos_encoding == "rope" and self.hidden_size // self.num_heads % 2:
            raise ModelFormatError(f"rotary positions need an even head size, not {self.hidden_size // self.num_heads}")
        if self.num_experts and self.experts_per_token > self.num_experts:
            raise ModelFormatError(f"{self.experts_per_token} experts per token, but only {self.num_experts} experts")


@dataclass(frozen=True)
class ActOutput:
    """What a segment leaves: `hidden` (z_H) [B, S, H], and `q_halt` and `q_continue` [B], fp32."""

    hidden: Tensor
    q_halt: Tensor
    q_continue: Tensor

    @property
    def carry(self) -> Tensor:
        """What the next segment starts from: z_H alone, since every H cycle sets z_L back to L_init."""
        return self.hidden


def attention_mask(lengths: Tensor, width: int, config: ActConfig) -> Tensor:
    """Boolean [B, 1, S, S], true where the query may see the key.

    A window W reaches keys (query - W, query]: past only, in bidirectional attention too, and not at all in a row no
    longer than W. That is AI-OS under SDPA; its flash-attention path has a symmetric window instead. Every position
    sees itself, so that padding, which no real position sees, stays finite.
    """
    position = torch.arange(width, device=lengths.device)
    behind = position[:, None] - position
    allowed = (position < lengths[:, None])[:, None, :].expand(-1, width, -1)
    if config.attention == "causal":
        allowed = allowed & (behind >= 0)
    if config.window_size is not None:
        near = (behind >= 0) & (behind < config.window_size)
        allowed = allowed & (near | (lengths <= config.window_size)[:, None, None])
    return (allowed | (behind == 0)).unsqueeze(1)


class _Expert(nn.Module):
    def __init__(self, config: ActConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.w2(F.gelu(self.w1(x)))
        return out


class _Router(nn.Module):
    def __init__(self, config: ActConfig) -> None:
        super().__init__()
        self.experts_per_token = config.experts_per_token
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and expert numbers [T, k]: softmax over the k largest logits only."""
        logits, chosen = self.gate(tokens).float().topk(self.experts_per_token, dim=-1)
        return logits.softmax(-1).to(tokens.dtype), chosen


class _Experts(nn.Module):
    def __init__(self, config: ActConfig) -> None:
        super().__init__()
        self.router = _Router(config)
        self.experts = nn.ModuleList(_Expert(config) for _ in range(config.num_experts))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, 1)
        weights, chosen = self.router(tokens)
        out = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            rows, places = torch.where(chosen == number)
            out.index_add_(0, rows, expert(tokens[rows]) * weights[rows, places, None])
        return out.view_as(x)


class _MoeMlp(nn.Module):
    """Exists for the `moe.` in the parameter names."""

    def __init__(self, config: ActConfig) -> None:
        super().__init__()
        self.moe = _Experts(config)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.moe(x)
        return out


def _level(config: ActConfig, num_layers: int) -> Level:
    return Level(
        Block(
            Attention(config.hidden_size, config.num_heads),
            _MoeMlp(config) if config.num_experts else SwiGlu(config.hidden_size, config.intermediate_size),
            config.norm_eps,
        )
        for _ in range(num_layers)
    )


class _Inner(nn.Module):
    H_init: Tensor
    L_init: Tensor

    def __init__(self, config: ActConfig) -> None:
        super().__init__()
        self.register_buffer("H_init", torch.randn(config.hidden_size))
        self.register_buffer("L_init", torch.randn(config.hidden_size))
        self.embed_tokens = Table(config.vocab_size, config.hidden_size)
        if config.pos_encoding == "learned":
            self.embed_pos = Table(config.max_seq_len, config.hidden_size)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.q_head = nn.Linear(config.hidden_size, 2)
        self.H_level = _level(config, config.h_layers)
        self.L_level = _level(config, config.l_layers)


class ActModel(nn.Module):
    """ACTv1 as batched segments: start rows with `initial_carry`, repeat `forward_segment`, read with `logits`."""

    def __init__(self, config: ActConfig) -> None:
        super().__init__()
        self.config = config
        self.inner = _Inner(config)

    def initial_carry(self, batch: int, length: int) -> Tensor:
        """z_H [B, S, H] of rows that have not run a segment yet: H_init at every position."""
        return self.inner.H_init.expand(batch, length, -1)

    def forward_segment(self, ids: Tensor, lengths: Tensor, carry: Tensor) -> ActOutput:
        """One ACT segment of `ids` [B, S] int64, right-padded with any valid id, of which `lengths` [B] are real.

        A row's result is that of the row alone; positions at or past its length hold finite numbers without meaning.
        Raises ValueError where S exceeds the longest sequence the network knows.
        """
        sight, embedding = self._sight(lengths, ids.shape[1]), self._embed(ids)
        z_h = carry
        for _ in range(self.config.h_cycles):
            z_l = self.inner.L_init.expand_as(z_h)
            for _ in range(self.config.l_cycles):
                z_l = self.inner.L_level(z_l, z_h + embedding, sight)
            z_h = self.inner.H_level(z_h, z_l, sight)
        q_halt, q_continue = self.inner.q_head(z_h[:, 0]).float().unbind(-1)
        return ActOutput(z_h, q_halt, q_continue)

    def logits(self, hidden: Tensor) -> Tensor:
        """fp32 [..., V] within +-20 for `hidden` [..., H]; pass only the positions you need."""
        out: Tensor = self.inner.lm_head(hidden)
        return out.clamp(-20.0, 20.0).float()

    def _sight(self, lengths: Tensor, width: int) -> Sight:
        if width > self.config.max_seq_len:
            raise ValueError(f"{width} tokens exceed the network's {self.config.max_seq_len}")
        rotary = self.config.pos_encoding == "rope"
        size = self.config.hidden_size // self.config.num_heads
        rope = rope_tables(width, size, self.config.rope_theta, lengths.device) if rotary else None
        return Sight(attention_mask(lengths, width, self.config), rope)

    def _embed(self, ids: Tensor) -> Tensor:
        embedding = F.embedding(ids, self.inner.embed_tokens.embedding_weight)
        if self.config.pos_encoding == "learned":
            embedding = sqrt(0.5) * (embedding + self.inner.embed_pos.embedding_weight[: ids.shape[1]])
        scale = sqrt(self.config.hidden_size) if self.config.hidden_size >= 512 else 1.0
        return (scale * embedding).clamp(-10.0, 10.0)
