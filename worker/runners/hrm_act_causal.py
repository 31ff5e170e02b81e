"""Causal ACTv1 brains behind `PagedRunner`: keys and values of every pass through a layer, in every
segment.

A token starts its next segment from its own z_H alone, and looks, in that segment, at the keys of
that same segment. So a token's states depend on nothing behind it, and a new token runs all its
segments over its own row only.

With `q_halt` a row gets as many segments as its first token asks for: upstream reads the q head at
position 0, which here sees itself alone. The count is thus known from the first token's id, holds
for the whole row from its first segment on, and cannot change as the row grows.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from worker.engine_stats import count_segments
from worker.kv.attention import AttentionPlan, attend
from worker.kv.store import KVShape, KVStore
from worker.models.hrm_act import ActModel


class ActCausalNet:
    """`segments`: `compat` (one), `max` (halt_max_steps) or `q_halt`."""

    is_prefix = False
    q_head: Callable[[Tensor], Tensor] | None = (
        None  # the network's own decides on segments, at a row's first token
    )

    def __init__(self, model: ActModel, device: torch.device, segments: str) -> None:
        config = model.config
        self.model = model
        self.device = device
        self.dtype = model.inner.embed_tokens.embedding_weight.dtype
        self._max_segments = 1 if segments == "compat" else config.halt_max_steps
        self._may_halt = segments == "q_halt"
        self._depths: dict[int, int] = {}
        num_slots = self._max_segments * config.slots_per_segment
        self.kv_shape = KVShape(num_slots, config.num_heads, config.head_dim)
        self._scale = config.head_dim**-0.5

    def hidden(self, ids: Tensor, plan: AttentionPlan, store: KVStore | None) -> Tensor:
        """z_H [T, hidden] of each token at the segment in which its row halts.

        Rows that have halted stay in the batch, to no effect, until the last one has: most rows
        begin alike.
        """

        def look(slot: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return attend(
                plan, store, slot, query, key, value, self._scale, self.model.config.window_size
            )

        depths = self._row_depths(plan.first_ids) if self._may_halt else None
        count = self._max_segments if depths is None else int(depths.max())
        count_segments(len(ids) * count if depths is None else int(depths.sum()), len(ids))
        settled = carry = self.model.initial_carry(len(ids))
        for segment in range(count):
            carry = self.model.forward_tokens(ids, plan.positions, carry, look, segment)
            settled = (
                carry
                if depths is None
                else torch.where((depths > segment)[:, None], carry, settled)
            )
        return settled

    def logits(self, hidden: Tensor) -> Tensor:
        return self.model.logits(hidden)

    def _row_depths(self, first_ids: Tensor) -> Tensor:
        """How many segments [T] the rows get that begin with these ids [T]."""
        depths = [self._depth(token) for token in first_ids.tolist()]
        return torch.tensor(depths, device=self.device)

    def _depth(self, token: int) -> int:
        """Segments until q_halt exceeds q_continue at a row's first token; run once for each id, by
        itself."""
        if token not in self._depths:
            ids = torch.tensor([token], device=self.device)
            carry, depth, halted = self.model.initial_carry(1), 0, False
            while not halted and depth < self._max_segments:
                carry = self.model.forward_tokens(ids, torch.zeros_like(ids), carry, _see_yourself)
                depth += 1
                q_halt, q_continue = self.model.halting(carry[0])
                halted = bool(q_halt > q_continue)
            self._depths[token] = depth
        return self._depths[token]


def _see_yourself(_slot: int, _query: Tensor, _key: Tensor, value: Tensor) -> Tensor:
    """Attention of a token that sees no other."""
    return value
