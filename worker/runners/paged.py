"""The runner of all networks with keys and values.

A step is one flat forward over a `Net`. A `Language` translates between text and tokens.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, Protocol

import torch
from torch import Tensor

from shared.errors import FleetError
from shared.messages import Depth, Task
from shared.tasks.runner_options import KVDtype, PagedOptions
from shared.telemetry.logging_setup import fields
from worker.engine.depth import at_depth, depth_of, indices_by_depth, named
from worker.engine.runner import RunnerOptions, RunnerSpec
from worker.engine.sampler import broken, draw, sample
from worker.engine.scoring import score_slices
from worker.engine.sequence import (
    Encoded,
    Sampled,
    Slice,
    StepResult,
    TokenSequence,
    Verified,
)
from worker.engine.states import pooled
from worker.engine.weights import UNKNOWN_SIZE, WeightSize
from worker.hardware.memory import kv_memory
from worker.kv import flash, paged_native, quarantine
from worker.kv.batch import Batch, BatchBuilder
from worker.kv.spans import Kernel
from worker.kv.store import KVStore
from worker.kv.transfer import moved
from worker.models.errors import ModelFormatError
from worker.runners.allocation import tells_out_of_memory
from worker.runners.decode_graphs import DecodeGraphs, capture_decoding
from worker.runners.efforts import check_efforts
from worker.runners.net import Forward, Layers, Net, joined
from worker.text.encoding import TextTask, text_task

logger = logging.getLogger("aios.paged")


class Language(Protocol):
    """A model family's rules for prompts as tokens, and for tokens as text."""

    eos_ids: frozenset[int]

    def encode(self, task: TextTask, window: int) -> Encoded:
        """Return a task as token ids, for a context window in tokens. Raise InvalidRequest."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of response tokens, special tokens left out."""


@dataclass
class _Group:
    """Slices with one batch, whose `forward` is computed up to the layer `end`."""

    slices: Sequence[Slice]
    batch: Batch
    forward: Forward
    end: int


class PagedRunner:
    """A `Net` that is stepped over live sequences whose keys and values lie in pages.

    `kind` is the runner's row in `shared/tasks/runner_table.py`. `found` describes the model for
    people. `window` is the context window in tokens, `weights` the size of the network.
    """

    def __init__(
        self,
        kind: str,
        found: str,
        *,
        net: Net,
        language: Language,
        window: int,
        options: RunnerOptions,
        weights: WeightSize = UNKNOWN_SIZE,
    ) -> None:
        if net.depths is not None:
            check_efforts(net.depths.efforts, net.depths.net_at)
        declared = options.declared(PagedOptions)
        kv_dtype = stored_dtype(declared.kv_dtype, net)
        if kv_dtype != net.dtype:
            found += f", keys and values in {declared.kv_dtype}"

        self.kernel: Kernel | None = None
        self.is_native = False
        obstacle = ""
        if declared.flash_attention:
            page_size = options.page_size
            if net.device.type == "cpu":
                lack = paged_native.obstacle(net.dtype, net.kv_shape, page_size, kv_dtype)
                self.is_native = not lack
            if not self.is_native:
                self.kernel, obstacle = flash.choose_kernel(
                    net.device, net.dtype, net.kv_shape, page_size
                )

        # Graphs write the tokens of their padding rows to a spare page behind the others.
        use_graphs = self.kernel is not None and declared.cuda_graphs
        num_spare = 1 if use_graphs else 0
        num_pages = count_pages(net, window, options, kv_dtype=kv_dtype, num_spare=num_spare)

        reuse: Literal["prefix", "prompt", "none"] = "none"
        if options.prefix_cache:
            reuse = "prompt" if net.is_prefix else "prefix"
        self.spec = RunnerSpec(
            kind,
            options.name,
            found=found,
            context_window=window,
            max_batch=options.max_batch,
            step_tokens=options.step_tokens,
            num_pages=num_pages,
            page_size=options.page_size,
            reuse=reuse,
            num_layers=net.layers.count if net.layers is not None else 0,
            weights=weights,
        )
        self.eos_ids = language.eos_ids
        self.net = net
        self._shallow_nets: dict[Depth, Net] = {}
        self._is_tiled = options.is_lossy and not self.is_native
        self._language = language
        # Forwards of prompts that are computed layer by layer, between two steps.
        self._forwards: dict[TokenSequence, Forward] = {}
        self.store = KVStore(
            net.kv_shape,
            num_pages + num_spare,
            page_size=options.page_size,
            dtype=kv_dtype,
            device=net.device,
        )

        if net.device.type == "cuda" and obstacle:
            instead = "our own kernel" if self.kernel else "stored keys gathered for every step"
            extra = fields(model=options.name, instead=instead, error=obstacle)
            logger.warning("flash attention not used", extra=extra)

        self.decoder: DecodeGraphs | None = None
        if self.kernel is not None and use_graphs:
            self.decoder = capture_decoding(net, self.store, self.kernel, self.spec)
        draft = net.draft
        if draft is not None and self._keeps_rows_apart(draft.max_tokens):
            self.spec = replace(self.spec, max_drafts=draft.max_tokens, draft_cost=draft.cost)

    @property
    def has_graphs(self) -> bool:
        """Return whether steps are decoded by CUDA graphs."""
        return self.decoder is not None

    def encode(self, task: Task) -> Encoded:
        encoded = self._language.encode(text_task(task), self.spec.context_window)
        depths = self.net.depths
        asked = depth_of(task)
        if depths is None or asked is None:
            return encoded

        asked = named(depths.efforts, asked)
        net = self._net_at(asked)
        if net is self.net:
            return at_depth(encoded, asked=asked, depth=None)
        num_layers = net.layers.count if net.layers is not None else None
        return at_depth(encoded, asked=asked, depth=asked, num_layers=num_layers)

    def _net_at(self, depth: Depth | None) -> Net:
        """Return the network at a depth. Raise InvalidRequest for one at which it cannot run."""
        depths = self.net.depths
        if depth is None or depths is None or depth == depths.own:
            return self.net
        # The threads that encode and the one that steps may both make one, and either will do.
        if depth not in self._shallow_nets:
            self._shallow_nets[depth] = depths.net_at(depth)
        return self._shallow_nets[depth]

    def decode(self, token_ids: Sequence[int]) -> str:
        return self._language.decode(token_ids)

    def release(self, sequence: TokenSequence) -> None:
        self._forwards.pop(sequence, None)

    @tells_out_of_memory
    @torch.inference_mode()
    def step(self, slices: Sequence[Slice]) -> list[StepResult | FleetError]:
        """Compute all slices of a depth in one forward, and drafts in small ones before it.

        A step that raised may be repeated with fewer slices.
        """
        self._copy_pages(slices)
        drafted = self._with_drafts(slices)
        forwards: dict[TokenSequence, Forward] = {}
        results: list[StepResult | FleetError] = [None] * len(slices)
        for depth, indices in indices_by_depth(drafted).items():
            parts = [drafted[index] for index in indices]
            computed = self._compute(self._net_at(depth), parts, forwards)
            for index, result in zip(indices, computed, strict=True):
                results[index] = result

        failed = []
        for part, result in zip(drafted, results, strict=True):
            if isinstance(result, FleetError):
                failed.append(part)
        quarantine.clear(self.store, failed, self.spec.page_size)

        # Last, because a step that raises is repeated from where it began.
        for part in slices:
            self._forwards.pop(part.sequence, None)
        self._forwards |= forwards
        return results

    def _with_drafts(self, slices: Sequence[Slice]) -> list[Slice]:
        """Return the slices with as many drafts as each may have.

        They are drafted in turn, all slices together. A slice whose draft ends the response gets no
        more.
        """
        draft = self.net.draft
        drafting = [index for index, part in enumerate(slices) if part.max_drafts]
        if not drafting:
            return list(slices)

        ids: list[list[int]] = [[] for _ in slices]
        while drafting:
            assert draft is not None
            parts = [slices[index].behind_drafts(ids[index]) for index in drafting]
            batch = self._batch(parts)
            states = draft.hidden(batch.ids, batch.plan, self.store)
            logits = self.net.logits(states[batch.sampled])
            sequences = [parts[number].sequence for number in batch.samplers]
            chosen = draw(logits, sequences, self.eos_ids)

            remaining = []
            for number, token in zip(batch.samplers, chosen, strict=True):
                index = drafting[number]
                ids[index].append(token)
                if len(ids[index]) < slices[index].max_drafts and token not in self.eos_ids:
                    remaining.append(index)
            drafting = remaining

        drafted = []
        for part, drafts in zip(slices, ids, strict=True):
            drafted.append(part.with_drafts(drafts) if drafts else part)
        return drafted

    def _batch(self, slices: Sequence[Slice]) -> Batch:
        builder = BatchBuilder(
            self.spec.page_size,
            self.net.device,
            is_prefix=self.net.is_prefix,
            kernel=self.kernel,
            native=paged_native.new_rows() if self.is_native else None,
            is_tiled=self._is_tiled,
        )
        return builder.build(slices)

    def _compute(
        self, net: Net, slices: Sequence[Slice], forwards: dict[TokenSequence, Forward]
    ) -> list[StepResult | FleetError]:
        """Compute slices in one forward of `net`. Return their results.

        Forwards of which layers are left for later steps go to `forwards`.
        """
        whole: list[Slice] = []
        cut: list[Slice] = []
        whole_indices: list[int] = []
        cut_indices: list[int] = []
        for index, part in enumerate(slices):
            if part.num_layers:
                cut.append(part)
                cut_indices.append(index)
            else:
                whole.append(part)
                whole_indices.append(index)

        if not cut:
            return self._compute_whole(net, slices)
        results: list[StepResult | FleetError] = [None] * len(slices)
        computed = self._compute_by_layers(net, whole, cut, forwards)
        for index, result in zip([*whole_indices, *cut_indices], computed, strict=True):
            results[index] = result
        return results

    def _compute_whole(self, net: Net, slices: Sequence[Slice]) -> list[StepResult | FleetError]:
        """Compute all layers of the slices in one forward. Return their results."""
        if self.decoder is not None and net is self.net:
            decoded = self.decoder.decode(slices)
            if decoded is not None:
                results: list[StepResult | FleetError] = [None] * len(slices)
                states, logits = decoded
                self._sample(range(len(slices)), states, logits, slices, results)
                return results
        batch = self._batch(slices)
        hidden = net.hidden(batch.ids, batch.plan, self.store)
        return self._results(slices, batch, hidden)

    def _compute_by_layers(
        self,
        net: Net,
        whole: Sequence[Slice],
        cut: Sequence[Slice],
        forwards: dict[TokenSequence, Forward],
    ) -> list[StepResult | FleetError]:
        """Compute all layers of the `whole` slices and some layers of those that are `cut`.

        Return the results, those of the whole ones first. A slice that is cut takes part in the
        forward of the others from its first layer to its last. Forwards of which layers are left
        for later steps go to `forwards`.
        """
        layers = net.layers
        assert layers is not None
        groups: list[_Group] = []
        if whole:
            groups.append(self._group(whole, layers, end=layers.count))
        for part in cut:
            end = part.sequence.num_layers + part.num_layers
            groups.append(self._group([part], layers, end=end))
        self._advance(groups, layers)

        results: list[StepResult | FleetError] = []
        for group in groups:
            part = group.slices[0]
            if not part.has_more_layers:
                results += self._results(group.slices, group.batch, group.forward.hidden)
            elif torch.isfinite(group.forward.hidden).all():
                forwards[part.sequence] = group.forward
                results.append(None)
            else:
                results.append(broken(self.spec.name))
        return results

    def _group(self, slices: Sequence[Slice], layers: Layers, *, end: int) -> "_Group":
        batch = self._batch(slices)
        sequence = slices[0].sequence
        if sequence.num_layers:
            return _Group(slices, batch, self._forwards[sequence], end)
        return _Group(slices, batch, layers.begin(batch.ids, batch.plan), end)

    def _advance(self, groups: Sequence["_Group"], layers: Layers) -> None:
        """Compute each group's layers. Groups share the forward of those that both compute."""
        ends = {group.end for group in groups}
        bounds = sorted(ends | {group.forward.num_layers for group in groups})
        for first, end in pairwise(bounds):
            present = []
            for group in groups:
                if group.forward.num_layers == first and group.end >= end:
                    present.append(group)
            if not present:
                continue
            # The tokens of a batch lie in the order of its groups, because those behind the first
            # one do not decode.
            plan = present[0].batch.plan
            if len(present) > 1:
                slices: list[Slice] = []
                for group in present:
                    slices += group.slices
                plan = self._batch(slices).plan
            forward = joined([group.forward for group in present])
            forward = layers.advance(forward, plan, self.store, end - first)
            sizes = [len(group.batch.ids) for group in present]
            for group, own in zip(present, forward.split(sizes), strict=True):
                group.forward = own

    def _results(
        self, slices: Sequence[Slice], batch: Batch, hidden: Tensor
    ) -> list[StepResult | FleetError]:
        """Return the results of slices whose batch has the states `hidden`."""
        results: list[StepResult | FleetError] = [None] * len(slices)
        if batch.samplers:
            states = hidden[batch.sampled]
            self._sample(batch.samplers, states, self.net.logits(states), slices, results)
        self._score(batch, hidden, slices, results)
        for index, first, end in batch.pooled:
            results[index] = pooled(hidden[first:end], self.spec.name)

        # A slice that is part of a prompt has no result that could fail, so its states are checked.
        unsampled = [index for index, result in enumerate(results) if result is None]
        parts = [slices[index] for index in unsampled]
        for number in quarantine.find_broken(parts, batch.plan, hidden, self.spec.page_size):
            results[unsampled[number]] = broken(self.spec.name)
        return results

    def _sample(
        self,
        samplers: Sequence[int],
        states: Tensor,
        logits: Tensor,
        slices: Sequence[Slice],
        results: list[StepResult | FleetError],
    ) -> None:
        """Sample a token for each of the slices `samplers`, and each draft, into `results`.

        `states` [B, hidden] and `logits` [B, vocab] have a row for each of them.
        """
        sequences: list[TokenSequence] = []
        for index in samplers:
            sequences += slices[index].sampled_from
        sampled = sample(logits, sequences, self.eos_ids, self.spec.name)

        if self.net.halts is not None:
            for row, halt in enumerate(self.net.halts(states, sequences)):
                result = sampled[row]
                if isinstance(result, Sampled):
                    sampled[row] = replace(result, halt=halt)

        first = 0
        for index in samplers:
            end = first + 1 + slices[index].num_drafts
            results[index] = self._verified(slices[index], sampled[first:end])
            first = end

    def _verified(
        self, part: Slice, sampled: Sequence[Sampled | FleetError]
    ) -> Sampled | Verified | FleetError:
        """Return the tokens of a slice, up to the first draft that is not what was sampled."""
        first = sampled[0]
        if not part.num_drafts or isinstance(first, FleetError):
            return first

        tokens = [first]
        for draft, result in zip(part.draft_ids, sampled[1:], strict=True):
            # What fails behind right drafts fails again in the next step, then alone.
            if tokens[-1].token != draft or isinstance(result, FleetError):
                break
            tokens.append(result)
        verified = Verified(tuple(tokens), part.num_drafts)
        if any(isinstance(result, FleetError) for result in sampled):
            wrong = part.rejected(verified.num_accepted)
            quarantine.clear(self.store, [wrong], self.spec.page_size)
        return verified

    def _score(
        self,
        batch: Batch,
        hidden: Tensor,
        slices: Sequence[Slice],
        results: list[StepResult | FleetError],
    ) -> None:
        """Score the continuations of the batch, into `results`."""
        if not batch.scored:
            return
        parts = [slices[index] for index in batch.scored]
        states = hidden[batch.predictors]
        scores = score_slices(self.net.logits, states, parts, self.spec.name)
        for index, result in zip(batch.scored, scores, strict=True):
            results[index] = result

    @torch.inference_mode()
    def _keeps_rows_apart(self, max_drafts: int) -> bool:
        """Return whether tokens of one forward have the bits of forwards of their own.

        Only then verifying drafts together changes no answer. It is tried in the empty store, with
        as many tokens of a sequence as can be verified, behind a first one.
        """
        last = max_drafts + 1
        if not self.is_native or self.spec.context_window <= last:
            return False
        ids = tuple(position % 2 for position in range(last + 1))
        pages = list(range(-(-len(ids) // self.spec.page_size)))

        # All but the first token are a response, because those of a prompt may see each other.
        sequence = TokenSequence(
            "trial", Encoded(ids[:1]), sampling=None, output_ids=list(ids[1:]), pages=pages
        )
        whole = Slice(sequence, len(ids))

        def logits(first: int, end: int) -> Tensor:
            sequence.num_computed = first
            batch = self._batch([Slice(sequence, end - first)])
            return self.net.logits(self.net.hidden(batch.ids, batch.plan, self.store))

        logits(0, 1)
        first_alone = logits(1, 2)
        together = logits(1, last + 1)
        last_alone = logits(last, last + 1)
        sequence.num_computed = 0
        quarantine.clear(self.store, [whole], self.spec.page_size)
        return together[[0, -1]].equal(torch.cat((first_alone, last_alone)))

    def _copy_pages(self, slices: Sequence[Slice]) -> None:
        """Copy shared pages for the sequences that go on writing in the middle of them."""
        page_size = self.spec.page_size
        sources = []
        targets = []
        for part in slices:
            sequence = part.sequence
            if sequence.source_page is not None:
                sources.append(sequence.source_page)
                targets.append(sequence.pages[sequence.num_computed // page_size])
        if not sources:
            return
        source_pages, target_pages = moved(
            [torch.tensor(sources), torch.tensor(targets)], self.net.device
        )
        self.store.copy_pages(source_pages, target_pages)


def stored_dtype(kv_dtype: KVDtype, net: Net) -> torch.dtype:
    """Return the dtype of stored keys and values, of a network that is on its device.

    Raise ModelFormatError for one that the device or the network's dtype does not allow.
    """
    if kv_dtype == "auto":
        return net.dtype
    chosen: torch.dtype = getattr(torch, kv_dtype)
    if chosen == net.dtype:
        return chosen
    if net.device.type != "cpu":
        raise ModelFormatError(
            f"Keys and values in {kv_dtype} are for the CPU; this model is on {net.device.type}; "
            "leave kv_dtype out."
        )
    if chosen.itemsize >= net.dtype.itemsize:
        own = str(net.dtype).removeprefix("torch.")
        raise ModelFormatError(
            f"Keys and values in {kv_dtype} are no smaller than this model's, which are in {own}; "
            "leave kv_dtype out, or set it to int8."
        )
    return chosen


def count_pages(
    net: Net,
    window: int,
    options: RunnerOptions,
    *,
    kv_dtype: torch.dtype,
    num_spare: int = 0,
) -> int:
    """Return the number of pages for a full batch of full windows, or fewer if memory is short.

    `num_spare` more pages must fit. `window` is in tokens, and `kv_dtype` that of stored keys and
    values. Raise ModelFormatError if not even one window fits.
    """
    bytes_per_page = net.kv_shape.bytes_per_token(kv_dtype) * options.page_size
    pages_per_window = -(-window // options.page_size)
    memory = kv_memory(options, net.device)
    affordable = memory.num_bytes // bytes_per_page - num_spare
    if affordable < pages_per_window:
        needed_mib = -(-(pages_per_window + num_spare) * bytes_per_page // 2**20)
        raise ModelFormatError(
            f"One sequence of the context window ({window} tokens) needs {needed_mib} MiB of keys "
            f"and values; {memory.source} allows {memory.num_bytes // 2**20}. {memory.remedy}"
        )
    return min(affordable, pages_per_window * options.max_batch)
