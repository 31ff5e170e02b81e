"""The runner of every mechanism with keys and values: one flat forward over a `Net` a step, tokens by a `Language`."""

from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from shared.errors import FleetError
from shared.messages import Generate, Score, Task
from worker.kv.attention import Plan
from worker.kv.batch import Batch, BatchBuilder
from worker.kv.store import KVShape, KVStore
from worker.memory import kv_room
from worker.models.errors import ModelFormatError
from worker.runners.base import RunnerOptions, RunnerSpec, text_task
from worker.sampler import sample
from worker.scoring import score_slices
from worker.sequence import Encoded, Sampled, Sequence, Slice, StepResult


class Net(Protocol):
    """A loaded network. `is_prefix`: the prompt attends to itself in both directions. `q_head` reads (q_halt,
    q_continue) off states [..., hidden], where there is one."""

    kv_shape: KVShape
    is_prefix: bool
    dtype: torch.dtype
    device: torch.device

    @property
    def q_head(self) -> Callable[[Tensor], Tensor] | None: ...

    def hidden(self, ids: Tensor, plan: Plan, store: KVStore | None) -> Tensor:
        """Last hidden states [T, hidden] of token ids [T]."""

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., hidden] -> [..., vocab] in float32."""


class Language(Protocol):
    """How a model family writes prompts as tokens, and reads tokens as text."""

    eos_ids: frozenset[int]

    def encode(self, task: Generate | Score, window: int) -> Encoded: ...

    def decode(self, token_ids: Rows[int]) -> str: ...


class PagedRunner:
    def __init__(
        self, kind: str, found: str, net: Net, language: Language, window: int, options: RunnerOptions
    ) -> None:
        num_pages = _num_pages(net, window, options)
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
        self._language = language
        self._store = KVStore(net.kv_shape, num_pages, options.page_size, net.dtype, net.device)

    def encode(self, task: Task) -> Encoded:
        return self._language.encode(text_task(task), self.spec.context_window)

    def decode(self, token_ids: Rows[int]) -> str:
        return self._language.decode(token_ids)

    def release(self, sequence: Sequence) -> None:
        return

    @torch.inference_mode()
    def step(self, slices: Rows[Slice]) -> list[StepResult | FleetError]:
        """Compute all slices in one forward. A step that raised may be repeated with fewer of them."""
        self._copy_pages(slices)
        batch = BatchBuilder(self.spec.page_size, self._net.device, self._net.is_prefix).build(slices)
        hidden = self._net.hidden(batch.ids, batch.plan, self._store)
        results: list[StepResult | FleetError] = [None] * len(slices)
        self._sample(batch, hidden, slices, results)
        self._score(batch, hidden, slices, results)
        return results

    def _sample(
        self, batch: Batch, hidden: Tensor, slices: Rows[Slice], results: list[StepResult | FleetError]
    ) -> None:
        if not batch.samplers:
            return
        states = hidden[[state for _, state in batch.samplers]]
        logits = self._net.logits(states)
        sequences = [slices[index].sequence for index, _ in batch.samplers]
        chosen = sample(logits, sequences, self.eos_ids, self.spec.name)
        if self._net.q_head is not None:
            chosen = [_with_q(item, q) for item, q in zip(chosen, self._net.q_head(states).tolist(), strict=True)]
        for (index, _), item in zip(batch.samplers, chosen, strict=True):
            results[index] = item

    def _score(self, batch: Batch, hidden: Tensor, slices: Rows[Slice], results: list[StepResult | FleetError]) -> None:
        if not batch.scored:
            return
        states, parts = hidden[list(batch.predictors)], [slices[index] for index in batch.scored]
        scores = score_slices(self._net.logits, states, parts, self.spec.name)
        for index, result in zip(batch.scored, scores, strict=True):
            results[index] = result

    def _copy_pages(self, slices: Rows[Slice]) -> None:
        """Give sequences that go on in the middle of a shared page a copy of their own."""
        size = self.spec.page_size
        starting = [part.sequence for part in slices if part.sequence.source_page is not None]
        if starting:
            device = self._net.device
            sources = torch.tensor([item.source_page for item in starting], device=device)
            targets = torch.tensor([item.pages[item.num_computed // size] for item in starting], device=device)
            self._store.copy_pages(sources, targets)


def _with_q(result: StepResult | FleetError, q_values: list[float]) -> StepResult | FleetError:
    return replace(result, q_values=(q_values[0], q_values[1])) if isinstance(result, Sampled) else result


def _num_pages(net: Net, window: int, options: RunnerOptions) -> int:
    """Pages for a full batch of full windows, or what the memory budget allows, if at least one window fits."""
    per_page = net.kv_shape.bytes_per_token(net.dtype) * options.page_size
    per_window = -(-window // options.page_size)
    room = kv_room(options, net.device)
    affordable = room.num_bytes // per_page
    if affordable < per_window:
        need = -(-per_window * per_page // 2**20)
        raise ModelFormatError(
            f"One sequence of the context window ({window} tokens) needs {need} MiB of keys and values; "
            f"{room.source} allows {room.num_bytes // 2**20}. {room.remedy}"
        )
    return min(affordable, per_window * options.max_batch)
