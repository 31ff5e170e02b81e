"""Causal ACTv1 brains behind `PagedRunner`.

Every pass through a layer in every segment has its own keys and values. A token starts its next
segment from its own z_H alone, and sees only keys of the same segment. So a token's states depend
on no token behind it, and a new token can run all its segments by itself.

With `q_halt` a row's first token decides how many segments the row gets, because upstream reads the
q head at position 0. Here this position sees itself alone. So the number of segments follows from
the first token's id, and stays the same as the row grows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from shared.messages import Depth, HaltState
from worker.engine.depth import DepthsByEffort, checked_steps, spread
from worker.engine.engine_stats import count_segments
from worker.engine.sequence import TokenSequence
from worker.kv.attention import AttentionPlan, attend
from worker.kv.store import KVShape, KVStore
from worker.models.hrm_act import ActModel
from worker.runners.net import Depths, Draft, Layers


class ActCausalNet:
    """A causal ACTv1 network as a `Net`.

    A row runs one segment if `segments` is `compat`, halt_max_steps for `max`, and for `q_halt` as
    many as its first token decides. With `max_segments` it runs no more than that, and as many for
    all but `q_halt`.
    """

    is_prefix = False
    draft: Draft | None = None
    layers: Layers | None = None

    def __init__(
        self,
        model: ActModel,
        device: torch.device,
        segments: str,
        efforts: DepthsByEffort | None = None,
        *,
        max_segments: int | None = None,
    ) -> None:
        config = model.config
        self.model = model
        self.device = device
        self.dtype = model.inner.embed_tokens.embedding_weight.dtype
        if max_segments is None:
            max_segments = 1 if segments == "compat" else config.halt_max_steps
        self.max_segments = max_segments
        self._segments = segments
        self._may_halt = segments == "q_halt"
        self._halts: dict[tuple[int, int], HaltState] = {}
        num_slots = self.max_segments * config.slots_per_segment
        self.kv_shape = KVShape(num_slots, num_heads=config.num_heads, head_dim=config.head_dim)
        self._scale = config.head_dim**-0.5
        if efforts is None:
            efforts = spread(max_segments, lambda count: Depth(max_steps=count))
        self.depths = Depths(Depth(max_steps=max_segments), efforts, self._net_at)

    def hidden(self, ids: Tensor, plan: AttentionPlan, store: KVStore | None) -> Tensor:
        """Return z_H [T, hidden] of each token at the segment in which its row halts.

        Rows that have halted stay in the batch, without effect, until the last row has halted. Few
        rows do so, because most begin with the same token.
        """
        window = self.model.config.window_size

        def attend_slot(slot: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
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
            carry = self.model.forward_tokens(ids, plan.positions, carry, attend_slot, segment)
            if depths is None:
                settled = carry
            else:
                is_running = (depths > segment)[:, None]
                settled = torch.where(is_running, carry, settled)
        return settled

    def logits(self, hidden: Tensor) -> Tensor:
        return self.model.logits(hidden)

    def halts(self, _states: Tensor, sequences: Sequence[TokenSequence]) -> list[HaltState]:
        """Return where the rows of the sequences stop: at the same segment for all their tokens."""
        found: list[HaltState] = []
        for sequence in sequences:
            encoded = sequence.encoded
            max_segments = self.max_segments
            if encoded.depth is not None and encoded.depth.max_steps is not None:
                max_segments = encoded.depth.max_steps
            found.append(self._halt(encoded.prompt_ids[0], max_segments))
        return found

    def _net_at(self, depth: Depth) -> "ActCausalNet":
        # Each pass through a layer has a slot of keys and values, and they are counted at the start.
        num_segments = checked_steps(depth, self.max_segments)
        return ActCausalNet(
            self.model,
            self.device,
            self._segments,
            self.depths.efforts,
            max_segments=num_segments,
        )

    def _row_depths(self, first_ids: Tensor) -> Tensor:
        """Return the number of segments [T] of rows that begin with these ids [T]."""
        depths = [self._halt(token, self.max_segments).segments for token in first_ids.tolist()]
        return torch.tensor(depths, device=self.device)

    def _halt(self, token: int, max_segments: int) -> HaltState:
        """Return where a row that begins with this token stops, after at most so many segments.

        The token is run by itself, once for each id: the q head is read at a row's first token.
        """
        found = self._halts.get((token, max_segments))
        if found is not None:
            return found
        ids = torch.tensor([token], device=self.device)
        carry = self.model.initial_carry(1)
        segments = 0
        has_halted = False
        position = torch.zeros_like(ids)
        while not has_halted:
            carry = self.model.forward_tokens(ids, position, carry, _attend_to_itself)
            segments += 1
            q_halt, q_continue = (float(value) for value in self.model.halting(carry[0]))
            wants_halt = self._may_halt and q_halt > q_continue
            has_halted = wants_halt or segments == max_segments
        halt = HaltState(q_halt, q_continue, segments)
        self._halts[token, max_segments] = halt
        return halt


def _attend_to_itself(_slot: int, _query: Tensor, _key: Tensor, value: Tensor) -> Tensor:
    """Return the attention output of a token that sees itself alone.

    Its value is not rounded as a stored one may be, which is the same wherever a row is computed.
    """
    return value
