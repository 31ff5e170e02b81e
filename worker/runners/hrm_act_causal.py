"""Causal ACTv1 brains behind `PagedRunner`: keys and values of every pass through a layer, in every
segment.

A token starts its next segment from its own z_H alone. In that segment it looks at the keys of the
same segment. So a token's states depend on nothing behind it, and a new token runs all its segments
by itself.

With `q_halt` a row gets as many segments as its first token decides: upstream reads the q head at
position 0, which here sees itself alone. The count is thus known from the first token's id, holds
for the whole row from its first segment on, and cannot change as the row grows.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from worker.engine.engine_stats import count_segments
from worker.kv.attention import AttentionPlan, attend
from worker.kv.store import KVShape, KVStore
from worker.models.hrm_act import ActModel


class ActCausalNet:
    """A causal ACTv1 network as a `Net`.

    A row runs one segment where `segments` is `compat`, halt_max_steps for `max`, and for `q_halt`
    as many as its first token decides.
    """

    is_prefix = False
    # The network has a q head, but that decides on segments, at a row's first token alone.
    q_head: Callable[[Tensor], Tensor] | None = None

    def __init__(self, model: ActModel, device: torch.device, segments: str) -> None:
        config = model.config
        self.model = model
        self.device = device
        self.dtype = model.inner.embed_tokens.embedding_weight.dtype
        self.max_segments = 1 if segments == "compat" else config.halt_max_steps
        self._may_halt = segments == "q_halt"
        self._depths: dict[int, int] = {}
        num_slots = self.max_segments * config.slots_per_segment
        self.kv_shape = KVShape(num_slots, num_heads=config.num_heads, head_dim=config.head_dim)
        self._scale = config.head_dim**-0.5

    def hidden(self, ids: Tensor, plan: AttentionPlan, store: KVStore | None) -> Tensor:
        """Return z_H [T, hidden] of each token at the segment in which its row halts.

        Rows that have halted stay in the batch, to no effect, until the last one has: most rows
        begin alike.
        """
        window = self.model.config.window_size

        def look(slot: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return attend(
                plan,
                store,
                slot,
                query=query,
                key=key,
                value=value,
                scale=self._scale,
                window=window,
            )

        depths: Tensor | None = None
        num_segments = self.max_segments
        num_run = len(ids) * num_segments
        if self._may_halt:
            depths = self._row_depths(plan.first_ids)
            num_segments = int(depths.max())
            num_run = int(depths.sum())
        count_segments(num_run, len(ids))

        carry = self.model.initial_carry(len(ids))
        settled = carry
        for segment in range(num_segments):
            carry = self.model.forward_tokens(ids, plan.positions, carry, look, segment)
            if depths is None:
                settled = carry
            else:
                is_running = (depths > segment)[:, None]
                settled = torch.where(is_running, carry, settled)
        return settled

    def logits(self, hidden: Tensor) -> Tensor:
        return self.model.logits(hidden)

    def _row_depths(self, first_ids: Tensor) -> Tensor:
        """Return the number of segments [T] of rows that begin with these ids [T]."""
        depths = [self._depth(token) for token in first_ids.tolist()]
        return torch.tensor(depths, device=self.device)

    def _depth(self, token: int) -> int:
        """Return the number of segments until q_halt exceeds q_continue at a row's first token.

        It is found by running the token by itself, once for each id.
        """
        if token not in self._depths:
            ids = torch.tensor([token], device=self.device)
            carry = self.model.initial_carry(1)
            depth = 0
            halted = False
            while not halted and depth < self.max_segments:
                carry = self.model.forward_tokens(ids, torch.zeros_like(ids), carry, _see_yourself)
                depth += 1
                q_halt, q_continue = self.model.halting(carry[0])
                halted = bool(q_halt > q_continue)
            self._depths[token] = depth
        return self._depths[token]


def _see_yourself(_slot: int, _query: Tensor, _key: Tensor, value: Tensor) -> Tensor:
    """Return the attention output of a token that sees itself alone."""
    return value
