"""The runner of every mechanism with keys and values: one flat forward over a `Net` a step, tokens
by a `Language`."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from shared.accelerators import ACCELERATORS
from shared.errors import FleetError
from shared.logging_setup import fields
from shared.messages import Task
from shared.runner_options import PagedOptions
from worker.kv import flash, quarantine
from worker.kv.batch import Batch, BatchBuilder
from worker.kv.spans import Kernel
from worker.kv.store import KVStore
from worker.kv.transfer import moved
from worker.memory import kv_memory
from worker.models.errors import ModelFormatError
from worker.runners.allocation import tells_out_of_memory
from worker.runners.base import RunnerOptions, RunnerSpec, TextTask, text_task
from worker.runners.decode_graphs import DecodeGraphs, capture_decoding
from worker.runners.net import Net
from worker.sampler import broken, sample
from worker.scoring import score_slices
from worker.sequence import Encoded, Sampled, Slice, StepResult, TokenSequence
from worker.states import pooled

logger = logging.getLogger("aios.paged")


class Language(Protocol):
    """How a model family writes prompts as tokens, and reads tokens as text."""

    eos_ids: frozenset[int]

    def encode(self, task: TextTask, window: int) -> Encoded: ...

    def decode(self, token_ids: Sequence[int]) -> str: ...


class PagedRunner:
    def __init__(
        self,
        kind: str,
        found: str,
        net: Net,
        language: Language,
        window: int,
        options: RunnerOptions,
    ) -> None:
        own = options.declared(PagedOptions)
        self.kernel: Kernel | None = None
        obstacle = ""
        if own.flash_attention:
            self.kernel, obstacle = flash.choose_kernel(
                net.device, net.dtype, net.kv_shape, options.page_size
            )
        use_graphs = self.kernel is not None and own.cuda_graphs
        num_pages = _num_pages(net, window, options, num_spare=int(use_graphs))
        reuse: Literal["prefix", "prompt"] = "prompt" if net.is_prefix else "prefix"
        self.spec = RunnerSpec(
            kind,
            options.name,
            found,
            window,
            options.max_batch,
            step_tokens=options.step_tokens,
            num_pages=num_pages,
            page_size=options.page_size,
            reuse=reuse if options.prefix_cache else "none",
            chunk_prefill=not net.is_prefix,
        )
        self.eos_ids = language.eos_ids
        self._net = net
        self._is_tiled = ACCELERATORS[options.quantize].rounds_activations
        self._language = language
        self._store = KVStore(
            net.kv_shape, num_pages + use_graphs, options.page_size, net.dtype, net.device
        )
        self._decoder: DecodeGraphs | None = None
        if net.device.type == "cuda" and obstacle:
            instead = "our own kernel" if self.kernel else "stored keys gathered for every step"
            said = fields(model=options.name, instead=instead, error=obstacle)
            logger.warning("flash attention not used", extra=said)
        if self.kernel is not None and use_graphs:
            self._decoder = capture_decoding(net, self._store, self.kernel, self.spec)

    @property
    def has_graphs(self) -> bool:
        return self._decoder is not None

    def encode(self, task: Task) -> Encoded:
        return self._language.encode(text_task(task), self.spec.context_window)

    def decode(self, token_ids: Sequence[int]) -> str:
        return self._language.decode(token_ids)

    def release(self, sequence: TokenSequence) -> None:
        return

    @tells_out_of_memory
    @torch.inference_mode()
    def step(self, slices: Sequence[Slice]) -> list[StepResult | FleetError]:
        """Compute all slices in one forward. A step that raised may be repeated with fewer of
        them."""
        self._copy_pages(slices)
        results: list[StepResult | FleetError] = [None] * len(slices)
        decoded = self._decoder.decode(slices) if self._decoder is not None else None
        if decoded is not None:
            self._sample(range(len(slices)), *decoded, slices, results)
        else:
            self._compute(slices, results)
        failed = [
            part
            for part, result in zip(slices, results, strict=True)
            if isinstance(result, FleetError)
        ]
        quarantine.clear(self._store, failed, self.spec.page_size)
        return results

    def _compute(self, slices: Sequence[Slice], results: list[StepResult | FleetError]) -> None:
        """A step of any kind, into `results`. Parts of prompts say nothing: here they fail if they
        are no numbers."""
        size, net = self.spec.page_size, self._net
        batch = BatchBuilder(size, net.device, net.is_prefix, self.kernel, self._is_tiled).build(
            slices
        )
        hidden = net.hidden(batch.ids, batch.plan, self._store)
        if batch.samplers:
            states = hidden[batch.sampled]
            self._sample(batch.samplers, states, net.logits(states), slices, results)
        self._score(batch, hidden, slices, results)
        for index, first, end in batch.pooled:
            results[index] = pooled(hidden[first:end], self.spec.name)
        if None in results:
            for index in quarantine.find_broken(slices, batch.plan, hidden, size):
                results[index] = broken(self.spec.name)

    def _sample(
        self,
        samplers: Sequence[int],
        states: Tensor,
        logits: Tensor,
        slices: Sequence[Slice],
        results: list[StepResult | FleetError],
    ) -> None:
        """Tokens for the slices that `samplers` lists, by their rows of `states` and `logits`, into
        `results`."""
        sequences = [slices[index].sequence for index in samplers]
        chosen = sample(logits, sequences, self.eos_ids, self.spec.name)
        if self._net.q_head is not None:
            chosen = [
                _with_q(item, q)
                for item, q in zip(chosen, self._net.q_head(states).tolist(), strict=True)
            ]
        for index, item in zip(samplers, chosen, strict=True):
            results[index] = item

    def _score(
        self,
        batch: Batch,
        hidden: Tensor,
        slices: Sequence[Slice],
        results: list[StepResult | FleetError],
    ) -> None:
        if not batch.scored:
            return
        states, parts = hidden[batch.predictors], [slices[index] for index in batch.scored]
        scores = score_slices(self._net.logits, states, parts, self.spec.name)
        for index, result in zip(batch.scored, scores, strict=True):
            results[index] = result

    def _copy_pages(self, slices: Sequence[Slice]) -> None:
        """Give sequences that go on in the middle of a shared page a copy of their own."""
        size = self.spec.page_size
        starting = [part.sequence for part in slices if part.sequence.source_page is not None]
        if starting:
            sources = torch.tensor([item.source_page for item in starting])
            targets = torch.tensor([item.pages[item.num_computed // size] for item in starting])
            self._store.copy_pages(*moved([sources, targets], self._net.device))


def _with_q(result: StepResult | FleetError, q_values: list[float]) -> StepResult | FleetError:
    return (
        replace(result, q_values=(q_values[0], q_values[1]))
        if isinstance(result, Sampled)
        else result
    )


def _num_pages(net: Net, window: int, options: RunnerOptions, *, num_spare: int = 0) -> int:
    """Pages for a full batch of full windows, or what the memory budget allows beside `num_spare`
    more, if at least one window fits."""
    per_page = net.kv_shape.bytes_per_token(net.dtype) * options.page_size
    per_window = -(-window // options.page_size)
    room = kv_memory(options, net.device)
    affordable = room.num_bytes // per_page - num_spare
    if affordable < per_window:
        need = -(-(per_window + num_spare) * per_page // 2**20)
        raise ModelFormatError(
            f"One sequence of the context window ({window} tokens) needs {need} MiB of keys and "
            f"values; {room.source} allows {room.num_bytes // 2**20}. {room.remedy}"
        )
    return min(affordable, per_window * options.max_batch)
