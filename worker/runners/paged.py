"""The runner of all networks with keys and values.

A step is one flat forward over a `Net`. A `Language` translates between text and tokens.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from shared.accelerators import ACCELERATORS
from shared.errors import FleetError
from shared.messages import Task
from shared.tasks.runner_options import PagedOptions
from shared.telemetry.logging_setup import fields
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
from worker.hardware.memory import kv_memory
from worker.kv import flash, quarantine
from worker.kv.batch import Batch, BatchBuilder
from worker.kv.spans import Kernel
from worker.kv.store import KVStore
from worker.kv.transfer import moved
from worker.models.errors import ModelFormatError
from worker.runners.allocation import tells_out_of_memory
from worker.runners.decode_graphs import DecodeGraphs, capture_decoding
from worker.runners.net import Net
from worker.text.encoding import TextTask, text_task

logger = logging.getLogger("aios.paged")


class Language(Protocol):
    """A model family's rules for prompts as tokens, and for tokens as text."""

    eos_ids: frozenset[int]

    def encode(self, task: TextTask, window: int) -> Encoded:
        """Return a task as token ids, for a context window in tokens. Raise InvalidRequest."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of response tokens, special tokens left out."""


class PagedRunner:
    """A `Net` that is stepped over live sequences whose keys and values lie in pages.

    `kind` is the runner's row in `shared/tasks/runner_table.py`. `found` describes the model for
    people. `window` is the context window in tokens.
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
    ) -> None:
        declared = options.declared(PagedOptions)
        self.kernel: Kernel | None = None
        obstacle = ""
        if declared.flash_attention:
            self.kernel, obstacle = flash.choose_kernel(
                net.device, net.dtype, net.kv_shape, options.page_size
            )

        # Graphs write the tokens of their padding rows to a spare page behind the others.
        use_graphs = flash.fits_graphs(self.kernel) and declared.cuda_graphs
        num_spare = 1 if use_graphs else 0
        num_pages = count_pages(net, window, options, num_spare=num_spare)

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
            chunk_prefill=not net.is_prefix,
        )
        self.eos_ids = language.eos_ids
        self.net = net
        self._is_tiled = ACCELERATORS[options.quantize].rounds_activations
        self._language = language
        self.store = KVStore(
            net.kv_shape,
            num_pages + num_spare,
            page_size=options.page_size,
            dtype=net.dtype,
            device=net.device,
        )

        if net.device.type == "cuda" and obstacle:
            instead = "our own kernel" if self.kernel else "stored keys gathered for every step"
            extra = fields(model=options.name, instead=instead, error=obstacle)
            logger.warning("flash attention not used", extra=extra)

        self.decoder: DecodeGraphs | None = None
        if self.kernel is not None and use_graphs:
            self.decoder = capture_decoding(net, self.store, self.kernel, self.spec)
        if net.draft is not None and self._keeps_rows_apart():
            draft = net.draft
            self.spec = replace(self.spec, max_drafts=draft.max_tokens, draft_cost=draft.cost)

    @property
    def has_graphs(self) -> bool:
        """Return whether steps are decoded by CUDA graphs."""
        return self.decoder is not None

    def encode(self, task: Task) -> Encoded:
        return self._language.encode(text_task(task), self.spec.context_window)

    def decode(self, token_ids: Sequence[int]) -> str:
        return self._language.decode(token_ids)

    def release(self, sequence: TokenSequence) -> None:
        return

    @tells_out_of_memory
    @torch.inference_mode()
    def step(self, slices: Sequence[Slice]) -> list[StepResult | FleetError]:
        """Compute all slices in one forward, and drafts in small ones before it.

        A step that raised may be repeated with fewer slices.
        """
        self._copy_pages(slices)
        drafted = self._with_drafts(slices)
        results: list[StepResult | FleetError] = [None] * len(slices)
        decoded = None
        if self.decoder is not None:
            decoded = self.decoder.decode(drafted)
        if decoded is not None:
            states, logits = decoded
            self._sample(range(len(drafted)), states, logits, drafted, results)
        else:
            self._compute(drafted, results)

        failed = []
        for part, result in zip(drafted, results, strict=True):
            if isinstance(result, FleetError):
                failed.append(part)
        quarantine.clear(self.store, failed, self.spec.page_size)
        return results

    def _with_drafts(self, slices: Sequence[Slice]) -> list[Slice]:
        """Return the slices with as many drafts as each may have.

        They are drafted in turn, all slices together. A slice whose draft ends the response gets no
        more.
        """
        draft = self.net.draft
        ids: list[list[int]] = [[] for _ in slices]
        drafting = [index for index, part in enumerate(slices) if part.max_drafts]
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
            max_queries=flash.max_queries(self.kernel),
            is_tiled=self._is_tiled,
        )
        return builder.build(slices)

    def _compute(self, slices: Sequence[Slice], results: list[StepResult | FleetError]) -> None:
        """Compute a step of any kind, into `results`."""
        net = self.net
        batch = self._batch(slices)
        hidden = net.hidden(batch.ids, batch.plan, self.store)

        if batch.samplers:
            states = hidden[batch.sampled]
            self._sample(batch.samplers, states, net.logits(states), slices, results)
        self._score(batch, hidden, slices, results)
        for index, first, end in batch.pooled:
            results[index] = pooled(hidden[first:end], self.spec.name)

        # A slice that is part of a prompt has no result that could fail, so its states are checked.
        unsampled = [index for index, result in enumerate(results) if result is None]
        parts = [slices[index] for index in unsampled]
        for number in quarantine.find_broken(parts, batch.plan, hidden, self.spec.page_size):
            results[unsampled[number]] = broken(self.spec.name)

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

        if self.net.q_head is not None:
            q_values = self.net.q_head(states).tolist()
            for row, (q_halt, q_continue) in enumerate(q_values):
                result = sampled[row]
                if isinstance(result, Sampled):
                    sampled[row] = replace(result, q_values=(q_halt, q_continue))

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
    def _keeps_rows_apart(self) -> bool:
        """Return whether tokens of one forward have the bits of forwards of their own.

        Only then verifying drafts together changes no answer. It is tried in the empty store, with
        as many tokens of a sequence as can be verified, behind a first one.
        """
        last = flash.max_queries(self.kernel)
        if self._is_tiled or last is None or not flash.keeps_rows_apart(self.kernel):
            return False
        if self.spec.context_window <= last:
            return False
        ids = tuple(position % 2 for position in range(last + 1))
        pages = list(range(-(-len(ids) // self.spec.page_size)))

        sequence = TokenSequence("trial", Encoded(ids), sampling=None, pages=pages)
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


def count_pages(net: Net, window: int, options: RunnerOptions, *, num_spare: int = 0) -> int:
    """Return the number of pages for a full batch of full windows, or fewer if memory is short.

    `num_spare` more pages must fit. `window` is in tokens. Raise ModelFormatError if not even one
    window fits.
    """
    bytes_per_page = net.kv_shape.bytes_per_token(net.dtype) * options.page_size
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
