"""The Sapient HRM network for puzzles: its maths.

Parameters have their checkpoint's names without the common prefix. This module knows nothing of
files or grids. One call is one ACT segment over rows of equal, fixed length. The caller keeps each
row's carry and decides how many segments it gets, so rows of a batch may be at different segments.
One segment is:

    x = sqrt(H) * [puzzle_emb ; E[ids]]
        or, with learned positions, sqrt(H) * sqrt(1/2) * ([puzzle_emb ; E[ids]] + P)
    repeat H_cycles: { repeat L_cycles: z_L = L(z_L + z_H + x);  z_H = H(z_H + z_L) }

Unlike in AI-OS ACTv1, z_L is kept from cycle to cycle and from segment to segment, and nothing is
clamped.
"""

from dataclasses import dataclass
from math import sqrt
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.models.act_blocks import (
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
from worker.models.errors import ModelFormatError

_SLOT = 0
"""The slot of all passes. Rows that attend to themselves keep no keys, so slots do not matter."""


@dataclass(frozen=True)
class SapientConfig:
    """Sizes of one network.

    `seq_len` counts cells. A network with `puzzle_emb_ndim` 0 has no puzzle embeddings. Raises
    ModelFormatError for numbers that describe no network.
    """

    vocab_size: int
    seq_len: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    h_layers: int
    l_layers: int
    h_cycles: int
    l_cycles: int
    halt_max_steps: int
    pos_encoding: Literal["rope", "learned"]
    puzzle_emb_ndim: int
    num_identifiers: int
    rope_theta: float = 1e4
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            problem = f"hidden size {self.hidden_size} does not divide into {self.num_heads} heads"
            raise ModelFormatError(f"{problem}; correct all_config.yaml.")
        head_size = self.hidden_size // self.num_heads
        if self.pos_encoding == "rope" and head_size % 2:
            problem = f"rotary positions need an even head size, not {head_size}"
            raise ModelFormatError(f"{problem}; correct all_config.yaml.")

    @property
    def puzzle_emb_len(self) -> int:
        """Return the number of positions before the first cell. They hold the puzzle embedding."""
        return -(-self.puzzle_emb_ndim // self.hidden_size)

    @property
    def num_positions(self) -> int:
        return self.puzzle_emb_len + self.seq_len


class Carry(NamedTuple):
    """State between segments: z_H and z_L, each [B, num_positions, H]."""

    z_h: Tensor
    z_l: Tensor


@dataclass(frozen=True)
class SegmentOutput:
    """Result of a segment: the new carry, and `q_halt` and `q_continue` [B] in fp32."""

    carry: Carry
    q_halt: Tensor
    q_continue: Tensor


class _PuzzleTable(nn.Module):
    """Table of puzzle embeddings, a row of `width` numbers for each identifier."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(rows, width))


def _level(config: SapientConfig, num_layers: int) -> Level:
    blocks = []
    for _ in range(num_layers):
        attention = Attention(config.hidden_size, config.num_heads)
        mlp = SwiGlu(config.hidden_size, config.intermediate_size)
        blocks.append(Block(attention, mlp, config.norm_eps))
    return Level(blocks)


class SapientModel(nn.Module):
    """A puzzle network.

    Start rows with `initial_carry`, repeat `forward_segment`, and pass z_H to `logits`.
    """

    H_init: Tensor
    L_init: Tensor

    def __init__(self, config: SapientConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("H_init", drawn(config.hidden_size))
        self.register_buffer("L_init", drawn(config.hidden_size))
        self.embed_tokens = EmbeddingTable(config.vocab_size, config.hidden_size)
        if config.puzzle_emb_ndim:
            self.puzzle_emb = _PuzzleTable(config.num_identifiers, config.puzzle_emb_ndim)
        if config.pos_encoding == "learned":
            self.embed_pos = EmbeddingTable(config.num_positions, config.hidden_size)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.q_head = nn.Linear(config.hidden_size, 2)
        self.H_level = _level(config, config.h_layers)
        self.L_level = _level(config, config.l_layers)

    def initial_carry(self, batch: int) -> Carry:
        """Return the carry of `batch` rows before their first segment.

        It is H_init and L_init at every position.
        """
        shape = (batch, self.config.num_positions, -1)
        return Carry(self.H_init.expand(shape), self.L_init.expand(shape))

    def forward_segment(self, ids: Tensor, identifiers: Tensor, carry: Carry) -> SegmentOutput:
        """Run one ACT segment of the cells `ids` [B, seq_len] of the puzzles `identifiers` [B].

        Both are int64.
        """
        context = self._attention_context(ids.device)
        embedding = self._embed(ids, identifiers)
        z_h, z_l = carry
        for _ in range(self.config.h_cycles):
            for _ in range(self.config.l_cycles):
                z_l = self.L_level(z_l, z_h + embedding, context, _SLOT)
            z_h = self.H_level(z_h, z_l, context, _SLOT)
        q_halt, q_continue = self.q_head(z_h[:, 0]).float().unbind(-1)
        return SegmentOutput(Carry(z_h, z_l), q_halt, q_continue)

    def logits(self, z_h: Tensor) -> Tensor:
        """Return the cells' logits [B, seq_len, V] in fp32, of `z_h` [B, num_positions, H]."""
        out: Tensor = self.lm_head(z_h[:, self.config.puzzle_emb_len :])
        return out.float()

    def _attention_context(self, device: torch.device) -> AttentionContext:
        config = self.config
        if config.pos_encoding == "learned":
            return AttentionContext(whole_rows(None), None)
        positions = torch.arange(config.num_positions, device=device)
        size = config.hidden_size // config.num_heads
        return AttentionContext(whole_rows(None), rope_tables(positions, size, config.rope_theta))

    def _embed(self, ids: Tensor, identifiers: Tensor) -> Tensor:
        config = self.config
        embedding = F.embedding(ids, self.embed_tokens.embedding_weight)
        if config.puzzle_emb_ndim:
            # Padded with zeros to fill whole positions before the cells.
            num_missing = config.puzzle_emb_len * config.hidden_size - config.puzzle_emb_ndim
            puzzle = F.pad(F.embedding(identifiers, self.puzzle_emb.weights), (0, num_missing))
            prefix = puzzle.unflatten(-1, (config.puzzle_emb_len, -1))
            embedding = torch.cat((prefix, embedding), dim=1)
        if config.pos_encoding == "learned":
            embedding = sqrt(0.5) * (embedding + self.embed_pos.embedding_weight)
        return sqrt(config.hidden_size) * embedding
