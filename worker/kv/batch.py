"""The flat batch of a step: token ids, attention spans, and the states that predict tokens.

Decoding rows come first, each with its drafts. Prompts and continuations follow. A continuation
sees the stored context and itself. Continuations are not stored, because no sequence goes on from
them. The batch is laid out on the CPU and goes to the device in one copy.

With the kernel in C all tokens are one span. Elsewhere decoding rows are grouped by length, each run
of a prompt is a span, and so is each context with its continuations or, where results must not
depend on the rest of the step, each of these.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from worker.engine.sequence import Slice, TokenSequence
from worker.kv.attention import AttentionPlan, Span, length_groups
from worker.kv.paged_native import NativeRows, NativeSpan
from worker.kv.spans import Kernel, PagedSpan, paged_span
from worker.kv.tiles import TiledSpan, tiles_of
from worker.kv.transfer import to_device


@dataclass(frozen=True)
class Batch:
    """The token ids [T] of a step, and the indices that lead from its states to its results.

    `samplers` are the indices of the slices that sample. `sampled` are the flat indices of the
    states that they sample from: one for each slice, and one more for each of its drafts. `scored`
    are the indices of the slices with continuations. `predictors` are the flat indices of the
    states that predict their targets, slice after slice. `pooled` are (slice, first, end) of the
    flat tokens whose states are pooled.
    """

    ids: Tensor
    plan: AttentionPlan
    sampled: Tensor
    predictors: Tensor
    samplers: tuple[int, ...]
    scored: tuple[int, ...]
    pooled: tuple[tuple[int, int, int], ...]


@dataclass
class BatchBuilder:
    """Builder of one step's batch.

    With `is_prefix` the tokens of a prompt attend to each other in both directions. With `native`
    all tokens become rows of the kernel in C. Else `kernel` attends to the store's pages where they
    lie; without it, and for fresh keys, pages are gathered. With `is_tiled` results do not depend
    on how a sequence was cut into steps, or on what else is scored. With `native` they never do.
    """

    page_size: int
    device: torch.device
    is_prefix: bool
    kernel: Kernel | None = None
    native: NativeRows | None = None
    is_tiled: bool = False
    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    first_ids: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    spans: list[Span | PagedSpan | TiledSpan | NativeSpan] = field(default_factory=list)
    samplers: list[int] = field(default_factory=list)
    sampled: list[int] = field(default_factory=list)
    scored: list[int] = field(default_factory=list)
    predictors: list[int] = field(default_factory=list)
    pooled: list[tuple[int, int, int]] = field(default_factory=list)

    def build(self, slices: Sequence[Slice]) -> Batch:
        """Return the batch of these slices on the device. Call this once."""
        decoding = []
        lengths = []
        for index, part in enumerate(slices):
            if self._is_decoding(part):
                decoding.append(index)
                lengths.append(part.sequence.num_computed + part.num_tokens)
        for group in self._groups(lengths):
            self._decode([decoding[number] for number in group], slices)

        is_decoding = set(decoding)
        for index, part in enumerate(slices):
            if part.num_continuations:
                self._continue(index, part)
            elif index not in is_decoding:
                self._prefill(index, part)

        if self.native is not None:
            self.spans.append(self.native.span())
        has_unstored = len(self.kept) < len(self.ids)
        plan = AttentionPlan(
            positions=self._tensor(self.positions),
            first_ids=self._tensor(self.first_ids),
            spans=tuple(self.spans),
            rows=self._tensor(self.rows) if self.rows else None,
            kept=self._tensor(self.kept) if has_unstored else None,
        )
        batch = Batch(
            ids=self._tensor(self.ids),
            plan=plan,
            sampled=self._tensor(self.sampled),
            predictors=self._tensor(self.predictors),
            samplers=tuple(self.samplers),
            scored=tuple(self.scored),
            pooled=tuple(self.pooled),
        )
        return to_device(batch, self.device)

    def _is_decoding(self, part: Slice) -> bool:
        sequence = part.sequence
        if part.num_tokens != 1 + part.num_drafts or sequence.num_computed == 0:
            return False
        # A single token inside a prompt belongs to a tile. Rows of one query begin at the prompt's
        # last token.
        return not self.is_tiled or sequence.num_computed >= len(sequence.encoded.prompt_ids) - 1

    def _groups(self, lengths: list[int]) -> list[list[int]]:
        """Return the groups of rows that are computed together.

        A kernel over pages pads nothing, so it takes all rows at once.
        """
        if (self.kernel is not None or self.native is not None) and lengths:
            return [list(range(len(lengths)))]
        return length_groups(lengths)

    def _decode(self, group: list[int], slices: Sequence[Slice]) -> None:
        """Add one new token for each slice of the group, and its drafts.

        A token sees its stored predecessors and itself.
        """
        sequences = []
        firsts = []
        counts = []
        for index in group:
            part = slices[index]
            self._store(part.sequence, part.sequence.num_computed, part.num_tokens)
            self._note(index, part)
            sequences.append(part.sequence)
            firsts.append(part.sequence.num_computed)
            counts.append(part.num_tokens)
        self._look_back(sequences, firsts, counts)

    def _prefill(self, index: int, part: Slice) -> None:
        """Add the tokens of a slice of one sequence.

        With `is_prefix` the tokens of the prompt attend to each other; all others are causal.
        """
        sequence = part.sequence
        first = sequence.num_computed
        end = first + part.num_tokens

        # Each branch sets `first` to the first token that it has not laid out.
        if self.native is not None:
            self._store(sequence, first, end - first)
            self._add_row(self.native, sequence, first, end)
            first = end
        elif self.is_tiled:
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
        """Add the tokens of positions `first` to `end` as one span."""
        start = len(self.ids)
        self._store(sequence, first, end - first)
        if first:
            self._look_back([sequence], [first], [end - first])
            return

        # The run begins the sequence, so its own fresh keys are all the keys.
        positions = torch.arange(end)[None, :]
        span = Span(start, len(self.ids), positions, has_fresh=True, is_causal=is_causal)
        self.spans.append(span)

    def _tile(self, sequence: TokenSequence, first: int, end: int) -> None:
        """Add the tokens of positions `first` to `end` as one span of tiles."""
        start = len(self.ids)
        self._store(sequence, first, end - first)
        num_prompt = len(sequence.encoded.prompt_ids)
        tiles = tuple(
            tiles_of(start, first=first, end=end, num_prompt=num_prompt, is_prefix=self.is_prefix)
        )
        width = max(tile.num_keys for tile in tiles)
        pages = self._tensor(self._pages([sequence], width))
        self.spans.append(TiledSpan(start, len(self.ids), pages, tiles))

    def _look_back(
        self, sequences: Sequence[TokenSequence], firsts: Sequence[int], counts: Sequence[int]
    ) -> None:
        """Add the span of the tokens that were added last.

        Row n has `counts[n]` tokens and begins at position `firsts[n]` of `sequences[n]`. The
        tokens see the stored tokens up to themselves. Kernels alone take rows of unequal numbers of
        tokens.
        """
        start = len(self.ids) - sum(counts)
        ends = [first + count for first, count in zip(firsts, counts, strict=True)]
        if self.native is not None:
            for sequence, first, end in zip(sequences, firsts, ends, strict=True):
                self._add_row(self.native, sequence, first, end)
            return

        pages = self._pages(sequences, max(ends))
        if self.kernel is not None:
            span = paged_span(
                start, counts, ends, pages, page_size=self.page_size, kernel=self.kernel
            )
            self.spans.append(span)
            return

        [count] = set(counts)
        positions = self._tensor(list(firsts))[:, None] + torch.arange(count)
        gathering = Span(
            start,
            len(self.ids),
            positions,
            pages=self._tensor(pages),
            num_stored=len(pages[0]) * self.page_size,
            is_causal=True,
        )
        self.spans.append(gathering)

    def _add_row(self, rows: NativeRows, sequence: TokenSequence, first: int, end: int) -> None:
        """Add the stored tokens of positions `first` to `end` as a row."""
        num_open = len(sequence.encoded.prompt_ids) if self.is_prefix else 0
        ends = [max(position + 1, num_open) for position in range(first, end)]
        rows.add(sequence.pages, range(first, end), ends)

    def _continue(self, index: int, part: Slice) -> None:
        """Add the context's last token once more, as the root, and then the continuations.

        The last token of a continuation is left out, because it predicts nothing.
        """
        context = part.sequence.encoded.prompt_ids
        num_given = part.sequence.encoded.num_given
        start = len(self.ids)

        # Each token's continuation, and its depth in that. The root belongs to no continuation.
        owners = [-1]
        depths = [0]
        firsts = []
        self.ids.append(context[-1])
        for number, continuation in enumerate(part.continuations):
            first = len(self.ids)
            firsts.append(first)
            self.ids += continuation[:-1]
            # The root predicts a continuation's first token, and each token predicts the one behind
            # it. The first `num_given` tokens are not scored, so their predictors are left out.
            predictors = (start, *range(first, len(self.ids)))
            self.predictors += predictors[num_given:]
            owners += [number] * (len(continuation) - 1)
            depths += range(1, len(continuation))
        self.positions += [len(context) - 1 + depth for depth in depths]
        self.first_ids += [context[0]] * len(depths)
        self.scored.append(index)

        if self.native is not None:
            num_context = len(context)
            pages = part.sequence.pages
            self.native.add(pages, [num_context - 1], [num_context])
            for first, stop in pairwise([*firsts, len(self.ids)]):
                positions = self.positions[first:stop]
                if positions:
                    ends = [position + 1 for position in positions]
                    self.native.add(pages, positions, ends, num_context, first)
            return

        # The shape of a span's call must not depend on which continuations are scored together.
        if self.is_tiled:
            for first, stop in pairwise([start, *firsts, len(self.ids)]):
                self._continue_alone(part.sequence, first, stop)
            return

        # A token sees its continuation up to itself. No token sees the fresh root, because all see
        # the stored context, and the context's last token is in it.
        owner = self._tensor(owners)
        depth = self._tensor(depths)
        sees_fresh = owner[:, None] == owner[None, :]
        sees_fresh &= depth[:, None] >= depth[None, :]
        sees_fresh &= owner[None, :] >= 0
        sees_stored = sees_fresh.new_ones(len(owners), len(context))
        mask = torch.cat((sees_stored, sees_fresh), dim=1)

        span = Span(
            start,
            len(self.ids),
            self._tensor(self.positions[start:])[None, :],
            pages=self._tensor(self._pages([part.sequence], len(context))),
            num_stored=len(context),
            has_fresh=True,
            mask=mask[None, None],
        )
        self.spans.append(span)

    def _continue_alone(self, sequence: TokenSequence, first: int, stop: int) -> None:
        """Add the span of the flat tokens `first` to `stop`: those of a continuation, or the root.

        They see the stored context, and a continuation sees itself, too.
        """
        if first == stop:
            return
        num_context = len(sequence.encoded.prompt_ids)
        positions = self.positions[first:stop]
        span = Span(
            first,
            stop,
            self._tensor(positions)[None, :],
            pages=self._tensor(self._pages([sequence], num_context)),
            num_stored=num_context,
            # The root is in the context already.
            has_fresh=positions[0] >= num_context,
            is_causal=True,
        )
        self.spans.append(span)

    def _store(self, sequence: TokenSequence, first: int, count: int) -> None:
        """Add `count` tokens of the sequence from position `first` on. They go to the store."""
        size = self.page_size
        pages = sequence.pages
        end = first + count
        self.kept += range(len(self.ids), len(self.ids) + count)
        self.ids += sequence.tokens(first, end)
        self.positions += range(first, end)
        self.first_ids += [sequence.encoded.prompt_ids[0]] * count
        for position in range(first, end):
            self.rows.append(pages[position // size] * size + position % size)

    def _note(self, index: int, part: Slice) -> None:
        """Note the states that are sampled from or pooled. The slice's tokens were added last."""
        if part.sequence.encoded.is_pooled:
            self.pooled.append((index, len(self.ids) - part.num_tokens, len(self.ids)))
        if part.samples:
            self.samplers.append(index)
            self.sampled += range(len(self.ids) - 1 - part.num_drafts, len(self.ids))

    def _pages(self, sequences: Sequence[TokenSequence], width: int) -> list[list[int]]:
        """Return the pages [B, P] of the first `width` tokens of each row."""
        count = -(-width // self.page_size)
        tables = []
        for sequence in sequences:
            # Behind a row's end its own last page is read again. A page of another sequence may
            # hold NaN, which no mask makes harmless.
            padding = sequence.pages[-1:] * count
            tables.append((sequence.pages + padding)[:count])
        return tables

    def _tensor(self, values: list[int] | list[list[int]]) -> Tensor:
        # Of so few numbers `torch.tensor` makes a tensor three times as slowly.
        return torch.from_numpy(np.array(values, dtype=np.int64))
