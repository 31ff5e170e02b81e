"""The configuration of an AI-OS ACTv1 network: sizes and switches. No tensors."""

from dataclasses import dataclass
from typing import Literal

from worker.models.errors import ModelFormatError


@dataclass(frozen=True)
class ActConfig:
    """Sizes and switches of one network.

    A network with `num_experts` 0 is dense. `window_size` (in tokens) is None for full attention.
    Raises ModelFormatError for numbers that describe no network.
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

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def slots_per_segment(self) -> int:
        """Return the number of passes through layers in one segment.

        Each pass has its own keys and values.
        """
        return self.h_cycles * (self.l_cycles * self.l_layers + self.h_layers)

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            problem = f"hidden size {self.hidden_size} does not divide into {self.num_heads} heads"
            raise ModelFormatError(f"{problem}; correct brain.json.")
        if self.pos_encoding == "rope" and self.head_dim % 2:
            raise ModelFormatError(
                f"rotary positions need an even head size, not {self.head_dim}; correct brain.json."
            )
        if self.num_experts and self.experts_per_token > self.num_experts:
            problem = (
                f"{self.experts_per_token} experts per token, but only {self.num_experts} experts"
            )
            raise ModelFormatError(f"{problem}; correct brain.json.")
