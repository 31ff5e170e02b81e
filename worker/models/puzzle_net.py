"""Recurrent puzzle networks: the maths of Sapient's HRM, of TRM and of URM.

Parameters have their checkpoint's names without the common prefix. This module knows nothing of
files or grids. One call of `segment` is one ACT segment over rows of equal, fixed length. The
caller keeps each row's carry and decides how many segments it gets, so rows of a batch may be at
different segments. The input x is the same in all segments of a row:

    x = sqrt(H) * [p ; E[ids]]
        or, with learned positions, sqrt(H) * sqrt(1/2) * ([p ; E[ids]] + P)

p is the puzzle's embedding, which fills the positions before the first cell. A carry [B, latents,
positions, H] begins with the network's initial latents at all positions. The answer and q are read
from its first latent.

Unlike in AI-OS ACTv1, all latents are kept from cycle to cycle and from segment to segment, and
nothing is clamped.

Sources: the repositories of HRM (arXiv 2506.21734), TRM (2510.04871) and URM (2512.14693).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import sqrt
from typing import Literal

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
    rms_norm_rows,
    rope_tables,
    whole_rows,
)
from worker.models.errors import ModelFormatError
from worker.native.operators import silu_gated

Family = Literal["hrm", "trm", "urm"]
Positions = Literal["rope", "learned", "none"]

_SLOT = 0
"""The slot of all passes. Rows that attend to themselves keep no keys, so slots do not matter."""


@dataclass(frozen=True)
class PuzzleNetConfig:
    """Sizes of one network.

    `seq_len` counts cells, and `puzzle_emb_len` the positions before them. A network with
    `puzzle_emb_ndim` 0 has no puzzle embeddings. Only HRM has `h_layers`. A network with
    `mixing_size`, the width of its MLPs over positions, has those in place of attention. The q head
    has `num_q` outputs. With `halts_over_zero` a row wants to halt where q_halt > 0, else where
    q_halt > q_continue.

    Raises ModelFormatError for numbers that describe no network.
    """

    family: Family
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
    pos_encoding: Positions
    puzzle_emb_ndim: int
    puzzle_emb_len: int
    num_identifiers: int
    mixing_size: int = 0
    num_q: int = 2
    halts_over_zero: bool = False
    rope_theta: float = 1e4
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.mixing_size:
            return
        if self.hidden_size % self.num_heads:
            problem = f"hidden size {self.hidden_size} does not divide into {self.num_heads} heads"
            raise ModelFormatError(f"{problem}; correct the configuration.")
        head_size = self.hidden_size // self.num_heads
        if self.pos_encoding == "rope" and head_size % 2:
            problem = f"rotary positions need an even head size, not {head_size}"
            raise ModelFormatError(f"{problem}; correct the configuration.")

    @property
    def num_positions(self) -> int:
        return self.puzzle_emb_len + self.seq_len


class RecurrentPuzzleModel(nn.Module, ABC):
    """A puzzle network.

    Start rows with `start`, repeat `segment` over what `embed` returns, and read the carry with
    `logits` and `q_values`.

    `puzzle_table` [identifiers, puzzle_emb_ndim] is no parameter: it stays on the CPU in the dtype
    of its file, which may be mapped into memory, and only rows of it are read.
    """

    def __init__(self, config: PuzzleNetConfig) -> None:
        super().__init__()
        self.config = config
        self.puzzle_table: Tensor | None = None
        self.embed_tokens = EmbeddingTable(config.vocab_size, config.hidden_size)
        if config.pos_encoding == "learned":
            self.embed_pos = EmbeddingTable(config.num_positions, config.hidden_size)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.q_head = nn.Linear(config.hidden_size, config.num_q)

    @abstractmethod
    def initial_latents(self) -> Tensor:
        """Return the latents [latents, H] before the first segment."""

    @abstractmethod
    def segment(self, x: Tensor, carry: Tensor) -> Tensor:
        """Return the carry after one ACT segment over the input `x` [B, positions, H]."""

    def start(self, batch: int) -> Tensor:
        """Return the carry of `batch` rows before their first segment."""
        latents = self.initial_latents()
        num_latents, width = latents.shape
        shape = (batch, num_latents, self.config.num_positions, width)
        return latents[None, :, None].expand(shape)

    def embed(self, ids: Tensor, identifiers: Tensor) -> Tensor:
        """Return the input x of the cells `ids` [B, seq_len] of the puzzles `identifiers` [B].

        Both are int64, the identifiers on the CPU.
        """
        config = self.config
        embedding = F.embedding(ids, self.embed_tokens.embedding_weight)
        if config.puzzle_emb_len:
            embedding = torch.cat((self._prefix(identifiers, embedding), embedding), dim=1)
        if config.pos_encoding == "learned":
            embedding = sqrt(0.5) * (embedding + self.embed_pos.embedding_weight)
        return sqrt(config.hidden_size) * embedding

    def logits(self, carry: Tensor) -> Tensor:
        """Return the cells' logits [B, seq_len, V] in fp32."""
        out: Tensor = self.lm_head(carry[:, 0, self.config.puzzle_emb_len :])
        return out.float()

    def q_values(self, carry: Tensor) -> tuple[Tensor, Tensor]:
        """Return q_halt and q_continue [B] in fp32.

        A network that has no q_continue has zeros there.
        """
        q: Tensor = self.q_head(carry[:, 0, 0]).float()
        if self.config.num_q == 1:
            return q[:, 0], torch.zeros_like(q[:, 0])
        return q[:, 0], q[:, 1]

    def wants_halt(self, q_halt: Tensor, q_continue: Tensor) -> Tensor:
        """Return which rows want to halt, [B] in bool.

        The networks that halt over zero were trained with no loss on q_continue, which is never
        large. To compare with it would halt their rows at once.
        """
        if self.config.halts_over_zero:
            return q_halt > 0
        return q_halt > q_continue

    def _prefix(self, identifiers: Tensor, like: Tensor) -> Tensor:
        """Return the puzzles' embeddings [B, puzzle_emb_len, H], padded with zeros to whole rows."""
        assert self.puzzle_table is not None
        rows = self.puzzle_table[identifiers].to(device=like.device, dtype=like.dtype)
        num_missing = self.config.puzzle_emb_len * self.config.hidden_size - rows.shape[1]
        padded = F.pad(rows, (0, num_missing))
        return padded.view(len(rows), self.config.puzzle_emb_len, -1)

    def _attention_context(self, device: torch.device) -> AttentionContext:
        config = self.config
        if config.pos_encoding != "rope" or config.mixing_size:
            return AttentionContext(whole_rows(None), None)
        positions = torch.arange(config.num_positions, device=device)
        size = config.hidden_size // config.num_heads
        return AttentionContext(whole_rows(None), rope_tables(positions, size, config.rope_theta))


class TrmPuzzleModel(RecurrentPuzzleModel):
    """TRM: one network for both latents.

    repeat H_cycles: { repeat L_cycles: z_L = L(z_L + z_H + x);  z_H = L(z_H + z_L) }
    """

    H_init: Tensor
    L_init: Tensor

    def __init__(self, config: PuzzleNetConfig) -> None:
        super().__init__(config)
        self.register_buffer("H_init", drawn(config.hidden_size))
        self.register_buffer("L_init", drawn(config.hidden_size))
        self.L_level = _level(config, config.l_layers)

    def initial_latents(self) -> Tensor:
        return torch.stack((self.H_init, self.L_init))

    def high_level(self) -> Level:
        """Return the network that computes z_H."""
        return self.L_level

    def segment(self, x: Tensor, carry: Tensor) -> Tensor:
        context = self._attention_context(x.device)
        z_h, z_l = carry.unbind(1)
        for _ in range(self.config.h_cycles):
            for _ in range(self.config.l_cycles):
                z_l = self.L_level(z_l, z_h + x, context, _SLOT)
            z_h = self.high_level()(z_h, z_l, context, _SLOT)
        return torch.stack((z_h, z_l), dim=1)


class HrmPuzzleModel(TrmPuzzleModel):
    """Sapient's HRM: as TRM, but z_H has a network of its own.

    repeat H_cycles: { repeat L_cycles: z_L = L(z_L + z_H + x);  z_H = H(z_H + z_L) }
    """

    def __init__(self, config: PuzzleNetConfig) -> None:
        super().__init__(config)
        self.H_level = _level(config, config.h_layers)

    def high_level(self) -> Level:
        return self.H_level


class UrmPuzzleModel(RecurrentPuzzleModel):
    """URM: one latent, and MLPs that see the position before their own.

    repeat H_cycles * L_cycles: h = layers(h + x)
    """

    init_hidden: Tensor

    def __init__(self, config: PuzzleNetConfig) -> None:
        super().__init__(config)
        self.register_buffer("init_hidden", drawn(config.hidden_size))
        blocks = []
        for _ in range(config.l_layers):
            attention = Attention(config.hidden_size, config.num_heads)
            mlp = ConvSwiGlu(config.hidden_size, config.intermediate_size)
            blocks.append(Block(attention, mlp, config.norm_eps))
        self.layers = nn.ModuleList(blocks)

    def initial_latents(self) -> Tensor:
        return self.init_hidden[None]

    def segment(self, x: Tensor, carry: Tensor) -> Tensor:
        context = self._attention_context(x.device)
        hidden = carry[:, 0]
        for _ in range(self.config.h_cycles * self.config.l_cycles):
            hidden = hidden + x
            for layer in self.layers:
                hidden = layer(hidden, context, _SLOT)
        return hidden[:, None]


MODELS: dict[Family, type[RecurrentPuzzleModel]] = {
    "hrm": HrmPuzzleModel,
    "trm": TrmPuzzleModel,
    "urm": UrmPuzzleModel,
}


class MixingBlock(nn.Module):
    """Block of an MLP over positions and one over the hidden size, on states [B, positions, H].

    x = rms(x + mlp_t(x)) with each column of x in place of a row, its norm too, then
    x = rms(x + mlp(x)).
    """

    def __init__(self, config: PuzzleNetConfig) -> None:
        super().__init__()
        self.norm_eps = config.norm_eps
        self.mlp_t = SwiGlu(config.num_positions, config.mixing_size)
        self.mlp = SwiGlu(config.hidden_size, config.intermediate_size)

    def forward(self, x: Tensor, context: AttentionContext, slot: int) -> Tensor:
        columns = x.transpose(1, 2).contiguous()
        columns = rms_norm_rows(columns + self.mlp_t(columns), self.norm_eps)
        x = columns.transpose(1, 2).contiguous()
        return rms_norm_rows(x + self.mlp(x), self.norm_eps)


class ConvSwiGlu(nn.Module):
    """Gated MLP over states [B, positions, H], with a convolution over two positions in its middle.

    a = silu(gate(x)) * up(x);  b[t] = w0 a[t - 1] + w1 a[t] + bias;  down(silu(b))

    Before the first position there is 0.
    """

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(hidden_size, 2 * intermediate_size, bias=False)
        self.dwconv = nn.Conv1d(
            intermediate_size, intermediate_size, kernel_size=2, groups=intermediate_size
        )
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).flatten(0, -2).chunk(2, dim=-1)
        inner = silu_gated(gate, up).unflatten(0, x.shape[:-1])
        before = F.pad(inner, (0, 0, 1, 0))[:, :-1]
        weight = self.dwconv.weight[:, 0]
        mixed = before * weight[:, 0] + inner * weight[:, 1] + self.dwconv.bias
        rows = mixed.flatten(0, -2)
        # Not by F.silu, in which the last bits of an element depend on the number of elements.
        opened = silu_gated(rows, torch.ones_like(rows))
        out: Tensor = self.down_proj(opened)
        return out.view(x.shape)


def _level(config: PuzzleNetConfig, num_layers: int) -> Level:
    blocks: list[nn.Module] = []
    for _ in range(num_layers):
        if config.mixing_size:
            blocks.append(MixingBlock(config))
            continue
        attention = Attention(config.hidden_size, config.num_heads)
        mlp = SwiGlu(config.hidden_size, config.intermediate_size)
        blocks.append(Block(attention, mlp, config.norm_eps))
    return Level(blocks)
