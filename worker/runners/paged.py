"""The runner of all networks with keys and values.

A step is one flat forward over a `Net`. A `Language` translates between text and tokens.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from shared.errors import FleetError
from shared.messages import Task
from shared.tasks.runner_options import KVDtype, PagedOptions
from shared.telemetry.logging_setup import fields
from worker.engine.runner import RunnerOptions, RunnerSpec
from worker.engine.sampler import broken, sample
from worker.engine.scoring import score_slices
from worker.engine.sequence import Encoded, Sampled, Slice, StepResult, TokenSequence
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
        kv_dtype = stored_dtype(declared.kv_dtype, net)
        if kv_dtype != net.dtype:
            found += f", keys and values in {declared.kv_dtype}"

        self.kernel: Kernel | None = None
        obstacle = ""
        if declared.flash_attention:
            self.kernel, obstacle = flash.choose_kernel(
                net.device, net.dtype, net.kv_shape, options.page_size, kv_dtype=kv_dtype
            )

        # Graphs write the tokens of their padding rows to a spare page behind the others.
        use_graphs = flash.fits_graphs(self.kernel) and declared.cuda_graphs
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
            chunk_prefill=not net.is_prefix,
        )
        self.eos_ids = language.eos_ids
        self.net = net
        self._is_tiled = options.is_lossy
        self._language = language
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
        """Compute all slices in one forward.

        A step that raised may be repeated with fewer slices.
        """
        self._copy_pages(slices)
        results: list[StepResult | FleetError] = [None] * len(slices)
        decoded = None
        if self.decoder is not None:
            decoded = self.decoder.decode(slices)
        if decoded is not None:
            states, logits = decoded
            self._sample(range(len(slices)), states, logits, slices, results)
        else:
            self._compute(slices, results)

        failed = []
        for part, result in zip(slices, results, strict=True):
            if isinstance(result, FleetError):
                failed.append(part)
        quarantine.clear(self.store, failed, self.spec.page_size)
        return results

    def _compute(self, slices: Sequence[Slice], results: list[StepResult | FleetError]) -> None:
        """Compute a step of any kind, into `results`."""
        net = self.net
        page_size = self.spec.page_size
        builder = BatchBuilder(
            page_size,
            net.device,
            is_prefix=net.is_prefix,
            kernel=self.kernel,
            max_queries=flash.max_queries(self.kernel),
            is_tiled=self._is_tiled,
        )
        batch = builder.build(slices)
        hidden = net.hidden(batch.ids, batch.plan, self.store)

        if batch.samplers:
            states = hidden[batch.sampled]
            self._sample(batch.samplers, states, net.logits(states), slices, results)
        self._score(batch, hidden, slices, results)
        for index, first, end in batch.pooled:
            results[index] = pooled(hidden[first:end], self.spec.name)

        # A slice that is part of a prompt has no result that could fail, so its states are checked.
        if None in results:
            for index in quarantine.find_broken(slices, batch.plan, hidden, page_size):
                results[index] = broken(self.spec.name)

    def _sample(
        self,
        samplers: Sequence[int],
        states: Tensor,
        logits: Tensor,
        slices: Sequence[Slice],
        results: list[StepResult | FleetError],
    ) -> None:
        """Sample a token for each of the slices `samplers`, into `results`.

        `states` [B, hidden] and `logits` [B, vocab] have a row for each of them.
        """
        sequences = [slices[index].sequence for index in samplers]
        sampled = sample(logits, sequences, self.eos_ids, self.spec.name)
        for index, result in zip(samplers, sampled, strict=True):
            results[index] = result

        if self.net.q_head is not None:
            q_values = self.net.q_head(states).tolist()
            for index, (q_halt, q_continue) in zip(samplers, q_values, strict=True):
                result = results[index]
                if isinstance(result, Sampled):
                    results[index] = replace(result, q_values=(q_halt, q_continue))

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
