"""From slices to one flat batch: token ids, attention spans, and which token's state predicts what.

Decoding rows come first, grouped by length; then prompts, one span a run; then continuations, one span a context, every
continuation seeing the stored context and itself. Continuations are not stored: nobody goes on from them.
"""

from collections.abc import Sequence as Rows
from dataclasses import dataclass, field

import torch
from torch import Tensor

from worker.kv.attention import Plan, Span, length_groups
from worker.sequence import Sequence, Slice


@dataclass(frozen=True)
class Batch:
    """`ids` [T]. `samplers` are (slice index, flat index of the state to sample from); `scored` are the slices with
    continuations, and `predictors` the flat indices of the states that predict their targets, one after the other."""

    ids: Tensor
    plan: Plan
    samplers: tuple[tuple[int, int], ...]
    scored: tuple[int, ...]
    predictors: tuple[int, ...]


@dataclass
class BatchBuilder:
    """Builds one step. `is_prefix`: a prompt sees itself in both directions."""

    page_size: int
    device: torch.device
    is_prefix: bool
    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    first_ids: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    samplers: list[tuple[int, int]] = field(default_factory=list)
    scored: list[int] = field(default_factory=list)
    predictors: list[int] = field(default_factory=list)

    def build(self, slices: Rows[Slice]) -> Batch:
        decoding = [index for index, part in enumerate(slices) if part.num_tokens == 1 and part.sequence.num_computed]
        for group in length_groups([slices[index].sequence.num_computed + 1 for index in decoding]):
            self._decode([(decoding[at], slices[decoding[at]]) for at in group])
        for index, part in enumerate(slices):
            if part.num_tails:
                self._continue(index, part)
            elif index not in set(decoding):
                self._prefill(index, part)
        all_kept = len(self.kept) == len(self.ids)
        plan = Plan(
            self._tensor(self.positions),
            self._tensor(self.first_ids),
            tuple(self.spans),
            self._tensor(self.rows) if self.rows else None,
            None if all_kept else self._tensor(self.kept),
        )
        return Batch(self._tensor(self.ids), plan, tuple(self.samplers), tuple(self.scored), tuple(self.predictors))

    def _decode(self, group: list[tuple[int, Slice]]) -> None:
        """One new token a row; it looks at all its stored predecessors and at itself."""
        start = len(self.ids)
        for index, part in group:
            self._store(part.sequence, part.sequence.num_computed, 1)
            self._note_sampler(index, part)
        positions = self._tensor(self.positions[start:])[:, None]
        width = max(self.positions[start:]) + 1
        mask = torch.arange(width, device=self.device)[None, :] <= positions
        pages = self._pages([part.sequence for _, part in group], width)
        self.spans.append(Span(start, len(self.ids), positions, pages, width, mask=mask[:, None, None, :]))

    def _prefill(self, index: int, part: Slice) -> None:
        """A run of tokens of one sequence: of a prefix prompt at once, of anything else causally."""
        sequence, first = part.sequence, part.sequence.num_computed
        end = first + part.num_tokens
        if self.is_prefix and first == 0:
            inside = min(end, len(sequence.encoded.prompt_ids))
            self._run(sequence, 0, inside, is_causal=False)
            first = inside
        if first < end:
            self._run(sequence, first, end, is_causal=True)
        self._note_sampler(index, part)

    def _run(self, sequence: Sequence, first: int, end: int, *, is_causal: bool) -> None:
        start = len(self.ids)
        self._store(sequence, first, end - first)
        positions = torch.arange(first, end, device=self.device)[None, :]
        if first == 0:
            self.spans.append(Span(start, len(self.ids), positions, has_fresh=True, is_causal=is_causal))
            return
        mask = torch.arange(end, device=self.device)[None, :] <= positions[0][:, None]
        pages = self._pages([sequence], end)
        self.spans.append(Span(start, len(self.ids), positions, pages, end, mask=mask[None, None]))

    def _continue(self, index: int, part: Slice) -> None:
        """The context's last token once more, as the root, then every continuation but its last token."""
        context, start = part.sequence.encoded.prompt_ids, len(self.ids)
        owners, depth = [-1], [0]
        self.ids.append(context[-1])
        for number, tail in enumerate(part.tails):
            first = len(self.ids)
            self.ids += tail[:-1]
            self.predictors += (start, *range(first, len(self.ids)))[part.sequence.encoded.num_given :]
            owners += [number] * (len(tail) - 1)
            depth += range(1, len(tail))
        self.positions += [len(context) - 1 + step for step in depth]
        self.first_ids += [context[0]] * len(depth)
        owner, level = self._tensor(owners), self._tensor(depth)
        own = (owner[:, None] == owner[None, :]) & (level[:, None] >= level[None, :]) & (owner[None, :] >= 0)
        mask = torch.cat((own.new_ones(len(owners), len(context)), own), dim=1)
        positions, pages = self._tensor(self.positions[start:])[None, :], self._pages([part.sequence], len(context))
        span = Span(start, len(self.ids), positions, pages, len(context), has_fresh=True, mask=mask[None, None])
        self.spans.append(span)
        self.scored.append(index)

    def _store(self, sequence: Sequence, first: int, count: int) -> None:
        size, pages = self.page_size, sequence.pages
        self.kept += range(len(self.ids), len(self.ids) + count)
        self.ids += sequence.tokens(first, first + count)
        self.positions += range(first, first + count)
        self.first_ids += [sequence.encoded.prompt_ids[0]] * count
        self.rows += [pages[at // size] * size + at % size for at in range(first, first + count)]

    def _note_sampler(self, index: int, part: Slice) -> None:
        if part.samples:
            self.samplers.append((index, len(self.ids) - 1))

    def _pages(self, sequences: Rows[Sequence], width: int) -> Tensor:
        """The pages of the first `width` tokens of each row [B, P].

        Behind a row's end its last one again: a page of another row may hold NaN, which no mask makes harmless.
        """
        count = -(-width // self.page_size)
        return self._tensor([(item.pages + item.pages[-1:] * count)[:count] for item in sequences])

    def _tensor(self, values: list[int] | list[list[int]]) -> Tensor:
        return torch.tensor(values, device=self.device)
