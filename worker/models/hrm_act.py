"""The AI-OS ACTv1 network: its maths, under its checkpoint's parameter names.

It knows nothing of files, tokenizers or sampling. One call is one ACT segment. It runs over
right-padded rows that attend to themselves, or over a flat run of tokens whose keys the caller
keeps and whose attention is an argument. The caller also keeps the carry, and decides how many
segments a row gets.
"""

from dataclasses import dataclass
from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.models.act_blocks import (
    Attend,
    Attention,
    AttentionContext,
    Block,
    EmbeddingTable,
    Level,
    SwiGlu,
    drawn,
    rope_tables,
    whole_rows,
)
from worker.models.act_config import ActConfig


@dataclass(frozen=True)
class ActOutput:
    """Result of a segment: `hidden` (z_H) [B, S, H], and `q_halt` and `q_continue` [B] in fp32."""

    hidden: Tensor
    q_halt: Tensor
    q_continue: Tensor

    @property
    def carry(self) -> Tensor:
        """Return the start of the next segment: z_H alone, because H cycles reset z_L to L_init."""
        return self.hidden


def attention_mask(lengths: Tensor, width: int, config: ActConfig) -> Tensor:
    """Return the mask [B, 1, S, S] of rows of `lengths` [B], True where a query sees a key.

    With a window W a query sees the keys (query - W, query], in bidirectional attention, too. Rows
    of at most W tokens have no window. These are the rules of AI-OS under SDPA; its flash-attention
    path has a symmetric window instead.
    """
    position = torch.arange(width, device=lengths.device)
    distance = position[:, None] - position
    allowed = (position < lengths[:, None])[:, None, :].expand(-1, width, -1)
    if config.attention == "causal":
        allowed = allowed & (distance >= 0)
    if config.window_size is not None:
        is_near = (distance >= 0) & (distance < config.window_size)
        is_short = (lengths <= config.window_size)[:, None, None]
        allowed = allowed & (is_near | is_short)

    # Every position sees itself, so that padding, which no real position sees, stays finite.
    allowed = allowed | (distance == 0)
    return allowed.unsqueeze(1)


class _Expert(nn.Module):
    """One expert: w2(gelu(w1(x)))."""

    def __init__(self, config: ActConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.w2(F.gelu(self.w1(x)))
        return out


class _Router(nn.Module):
    """The choice of `experts_per_token` experts for each token."""

    def __init__(self, config: ActConfig) -> None:
        super().__init__()
        self.experts_per_token = config.experts_per_token
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights and the numbers [T, k] of the k experts of each of `tokens` [T, H].

        The weights are a softmax over the k largest logits only.
        """
        logits, chosen = self.gate(tokens).float().topk(self.experts_per_token, dim=-1)
        return logits.softmax(-1).to(tokens.dtype), chosen


class _Experts(nn.Module):
    """A mixture of experts: the weighted sum of the chosen experts' outputs."""

    def __init__(self, config: ActConfig) -> None:
        super().__init__()
        self.router = _Router(config)
        self.experts = nn.ModuleList(_Expert(config) for _ in range(config.num_experts))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, -2)
        weights, chosen = self.router(tokens)
        out = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            rows, ranks = torch.where(chosen == number)
            out.index_add_(0, rows, expert(tokens[rows]) * weights[rows, ranks, None])
        return out.view_as(x)


class _MoeMlp(nn.Module):
    """A wrapper that adds `moe.` to the parameter names."""

    def __init__(self, config: ActConfig) -> None:
        super().__init__()
        self.moe = _Experts(config)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.moe(x)
        return out


def _level(config: ActConfig, num_layers: int) -> Level:
    blocks = []
    for _ in range(num_layers):
        attention = Attention(config.hidden_size, config.num_heads)
        blocks.append(Block(attention, _mlp(config), config.norm_eps))
    return Level(blocks)


def _mlp(config: ActConfig) -> nn.Module:
    if config.num_experts:
        return _MoeMlp(config)
    return SwiGlu(config.hidden_size, config.intermediate_size)


class _Inner(nn.Module):
    H_init: Tensor
    L_init: Tensor

    def __init__(self, config: ActConfig) -> None:
        super().__init__()
        self.register_buffer("H_init", drawn(config.hidden_size))
        self.register_buffer("L_init", drawn(config.hidden_size))
        self.embed_tokens = EmbeddingTable(config.vocab_size, config.hidden_size)
        if config.pos_encoding == "learned":
            self.embed_pos = EmbeddingTable(config.max_seq_len, config.hidden_size)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.q_head = nn.Linear(config.hidden_size, 2)
        self.H_level = _level(config, config.h_layers)
        self.L_level = _level(config, config.l_layers)


class ActModel(nn.Module):
    """The network in segments.

    Start with `initial_carry`, repeat one of the two forwards, and pass the states to `logits`.
    """

    def __init__(self, config: ActConfig) -> None:
        super().__init__()
        self.config = config
        self.inner = _Inner(config)

    def initial_carry(self, *shape: int) -> Tensor:
        """Return z_H [*shape, H] of tokens before their first segment: H_init everywhere."""
        return self.inner.H_init.expand(*shape, -1)

    def forward_segment(self, ids: Tensor, lengths: Tensor, carry: Tensor) -> ActOutput:
        """Run one ACT segment of `ids` [B, S] int64, right-padded with any valid id.

        The first `lengths` [B] ids of each row are no padding. A row's result is that of the row
        alone; padding has finite numbers without meaning. `carry` is [B, S, H]. Raise ValueError
        where S exceeds the longest sequence that the network knows.
        """
        width = ids.shape[1]
        if width > self.config.max_seq_len:
            raise ValueError(f"{width} tokens exceed the network's {self.config.max_seq_len}")
        attend = whole_rows(attention_mask(lengths, width, self.config))
        z_h = self.forward_tokens(ids, torch.arange(width, device=ids.device), carry, attend)
        q_halt, q_continue = self.halting(z_h[:, 0])
        return ActOutput(z_h, q_halt, q_continue)

    def forward_tokens(
        self, ids: Tensor, positions: Tensor, carry: Tensor, attend: Attend, segment: int = 0
    ) -> Tensor:
        """Run segment number `segment` of `ids` [..., tokens] at `positions` [tokens].

        Return z_H [..., tokens, H]. Slots are numbered through all segments, in the order of
        segment, H cycle, L cycles before the H level, layer.
        """
        config = self.config
        rope = None
        if config.pos_encoding == "rope":
            rope = rope_tables(positions, config.head_dim, config.rope_theta)
        context = AttentionContext(attend, rope)
        embedding = self._embed(ids, positions)
        z_h = carry
        slot = segment * config.slots_per_segment
        for _ in range(config.h_cycles):
            z_l = self.inner.L_init.expand_as(z_h)
            for _ in range(config.l_cycles):
                z_l = self.inner.L_level(z_l, z_h + embedding, context, slot)
                slot += config.l_layers
            z_h = self.inner.H_level(z_h, z_l, context, slot)
            slot += config.h_layers
        return z_h

    def halting(self, first: Tensor) -> tuple[Tensor, Tensor]:
        """Return q_halt and q_continue [...] in fp32 of rows.

        `first` [..., H] are the z_H of their first tokens.
        """
        q_halt, q_continue = self.inner.q_head(first).float().unbind(-1)
        return q_halt, q_continue

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits [..., V] in fp32, within +-20, of `hidden` [..., H]."""
        out: Tensor = self.inner.lm_head(hidden)
        return out.clamp(-20.0, 20.0).float()

    def _embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        embedding = F.embedding(ids, self.inner.embed_tokens.embedding_weight)
        if self.config.pos_encoding == "learned":
            embedding = sqrt(0.5) * (embedding + self.inner.embed_pos.embedding_weight[positions])
        scale = 1.0
        if self.config.hidden_size >= 512:
            scale = sqrt(self.config.hidden_size)
        return (scale * embedding).clamp(-10.0, 10.0)
