"""From slices to one flat batch: token ids, attention spans, and which token's state predicts what.

Decoding rows come first, grouped by length; then prompts, one span a run; then continuations, one
span a context, every continuation seeing the stored context and itself. Continuations are not
stored: nobody goes on from them. The batch is laid out on the CPU and goes to the device in one
piece.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from worker.kv.attention import AttentionPlan, Span, length_groups
from worker.kv.spans import Kernel, PagedSpan, paged_span
from worker.kv.tiles import TiledSpan, tiles_of
from worker.kv.transfer import to_device
from worker.sequence import Slice, TokenSequence


@dataclass(frozen=True)
class Batch:
    """`ids` [T]. `samplers` are the slices that sample, `sampled` the flat indices of the states
    they sample from; `scored` are the slices with continuations, and `predictors` the flat indices
    of the states that predict their targets, one after the other. `pooled` are (slice, first, end)
    of the flat places whose states are wanted whole."""

    ids: Tensor
    plan: AttentionPlan
    sampled: Tensor
    predictors: Tensor
    samplers: tuple[int, ...]
    scored: tuple[int, ...]
    pooled: tuple[tuple[int, int, int], ...]


@dataclass
class BatchBuilder:
    """Builds one step. `is_prefix`: a prompt sees itself in both directions. `kernel`: what attends
    to the store's pages where they lie, if anything does. `is_tiled`: no sum depends on how a
    sequence was cut into steps."""

    page_size: int
    device: torch.device
    is_prefix: bool
    kernel: Kernel | None = None
    is_tiled: bool = False
    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    first_ids: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    spans: list[Span | PagedSpan | TiledSpan] = field(default_factory=list)
    samplers: list[int] = field(default_factory=list)
    sampled: list[int] = field(default_factory=list)
    scored: list[int] = field(default_factory=list)
    predictors: list[int] = field(default_factory=list)
    pooled: list[tuple[int, int, int]] = field(default_factory=list)

    def build(self, slices: Sequence[Slice]) -> Batch:
        decoding = [index for index, part in enumerate(slices) if self._is_decoding(part)]
        for group in self._groups([slices[index].sequence.num_computed + 1 for index in decoding]):
            self._decode([(decoding[at], slices[decoding[at]]) for at in group])
        done = set(decoding)
        for index, part in enumerate(slices):
            if part.num_continuations:
                self._continue(index, part)
            elif index not in done:
                self._prefill(index, part)
        all_kept = len(self.kept) == len(self.ids)
        plan = AttentionPlan(
            self._tensor(self.positions),
            self._tensor(self.first_ids),
            tuple(self.spans),
            self._tensor(self.rows) if self.rows else None,
            None if all_kept else self._tensor(self.kept),
        )
        ids, sampled, predictors = map(self._tensor, (self.ids, self.sampled, self.predictors))
        chosen = (tuple(self.samplers), tuple(self.scored), tuple(self.pooled))
        batch = Batch(ids, plan, sampled, predictors, *chosen)
        return to_device(batch, self.device)

    def _is_decoding(self, part: Slice) -> bool:
        sequence = part.sequence
        is_one = part.num_tokens == 1 and sequence.num_computed > 0
        return is_one and not (
            self.is_tiled and sequence.num_computed < len(sequence.encoded.prompt_ids) - 1
        )

    def _groups(self, lengths: list[int]) -> list[list[int]]:
        """Rows that are computed together: in place all of them, since nothing is padded there."""
        return (
            [list(range(len(lengths)))]
            if self.kernel is not None and lengths
            else length_groups(lengths)
        )

    def _decode(self, group: list[tuple[int, Slice]]) -> None:
        """One new token a row; it looks at all its stored predecessors and at itself."""
        start = len(self.ids)
        for index, part in group:
            self._store(part.sequence, part.sequence.num_computed, 1)
            self._note(index, part)
        self._look_back([part.sequence for _, part in group], self.positions[start:], 1)

    def _prefill(self, index: int, part: Slice) -> None:
        """A run of tokens of one sequence: of a prefix prompt at once, of anything else
        causally."""
        sequence, first = part.sequence, part.sequence.num_computed
        end = first + part.num_tokens
        if self.is_tiled:
            self._tile(sequence, first, end)
            first = end
        if self.is_prefix and first == 0:
            inside = min(end, len(sequence.encoded.prompt_ids))
            self._run(sequence, 0, inside, is_causal=False)
            first = inside
        if first < end:
            self._run(sequence, first, end, is_causal=True)
        self._note(index, part)

    def _run(self, sequence: TokenSequence, first: int, end: int, *, is_causal: bool) -> None:
        start = len(self.ids)
        self._store(sequence, first, end - first)
        if first:
            self._look_back([sequence], [first], end - first)
            return
        positions = torch.arange(end)[None, :]
        self.spans.append(
            Span(start, len(self.ids), positions, has_fresh=True, is_causal=is_causal)
        )

    def _tile(self, sequence: TokenSequence, first: int, end: int) -> None:
        start = len(self.ids)
        self._store(sequence, first, end - first)
        tiles = tuple(
            tiles_of(start, first, end, len(sequence.encoded.prompt_ids), is_prefix=self.is_prefix)
        )
        pages = self._tensor(self._pages([sequence], max(tile.num_keys for tile in tiles)))
        self.spans.append(TiledSpan(start, len(self.ids), pages, tiles))

    def _look_back(
        self, sequences: Sequence[TokenSequence], firsts: Sequence[int], count: int
    ) -> None:
        """The latest tokens are rows of `count`, stored from `firsts` on; they see what is stored
        up to themselves."""
        start, width = len(self.ids) - len(firsts) * count, max(firsts) + count
        pages = self._pages(sequences, width)
        if self.kernel is not None:
            lengths = [first + count for first in firsts]
            self.spans.append(
                paged_span(
                    start, [count] * len(firsts), lengths, pages, self.page_size, self.kernel
                )
            )
            return
        positions = self._tensor(list(firsts))[:, None] + torch.arange(count)
        room = len(pages[0]) * self.page_size
        self.spans.append(
            Span(start, len(self.ids), positions, self._tensor(pages), room, is_causal=True)
        )

    def _continue(self, index: int, part: Slice) -> None:
        """The context's last token once more, as the root, then every continuation but its last
        token."""
        context, start = part.sequence.encoded.prompt_ids, len(self.ids)
        owners, depth = [-1], [0]
        self.ids.append(context[-1])
        for number, continuation in enumerate(part.continuations):
            first = len(self.ids)
            self.ids += continuation[:-1]
            self.predictors += (start, *range(first, len(self.ids)))[
                part.sequence.encoded.num_given :
            ]
            owners += [number] * (len(continuation) - 1)
            depth += range(1, len(continuation))
        self.positions += [len(context) - 1 + step for step in depth]
        self.first_ids += [context[0]] * len(depth)
        owner, level = self._tensor(owners), self._tensor(depth)
        own = (
            (owner[:, None] == owner[None, :])
            & (level[:, None] >= level[None, :])
            & (owner[None, :] >= 0)
        )
        mask = torch.cat((own.new_ones(len(owners), len(context)), own), dim=1)
        positions = self._tensor(self.positions[start:])[None, :]
        pages = self._tensor(self._pages([part.sequence], len(context)))
        span = Span(
            start,
            len(self.ids),
            positions,
            pages,
            len(context),
            has_fresh=True,
            mask=mask[None, None],
        )
        self.spans.append(span)
        self.scored.append(index)

    def _store(self, sequence: TokenSequence, first: int, count: int) -> None:
        size, pages = self.page_size, sequence.pages
        self.kept += range(len(self.ids), len(self.ids) + count)
        self.ids += sequence.tokens(first, first + count)
        self.positions += range(first, first + count)
        self.first_ids += [sequence.encoded.prompt_ids[0]] * count
        self.rows += [pages[at // size] * size + at % size for at in range(first, first + count)]

    def _note(self, index: int, part: Slice) -> None:
        """What is wanted of the slice whose tokens were stored last."""
        if part.sequence.encoded.is_pooled:
            self.pooled.append((index, len(self.ids) - part.num_tokens, len(self.ids)))
        if part.samples:
            self.samplers.append(index)
            self.sampled.append(len(self.ids) - 1)

    def _pages(self, sequences: Sequence[TokenSequence], width: int) -> list[list[int]]:
        """The pages of the first `width` tokens of each row [B, P].

        Behind a row's end its last one again: a page of another row may hold NaN, which no mask
        makes harmless.
        """
        count = -(-width // self.page_size)
        return [(item.pages + item.pages[-1:] * count)[:count] for item in sequences]

    def _tensor(self, values: list[int] | list[list[int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64)
