"""The runner of every mechanism with keys and values: prefill, decode and scoring over a `Net`, tokens by a `Language`.

A sequence's tokens are prefilled in one pass, replayed response included; each later step adds one. `prefix` nets see
their whole prompt at once, the others see it causally. Scoring keeps nothing: context and continuation go through in
one pass under the same mask, which equals token-by-token scoring.
"""

from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from shared.messages import ContinuationScore, Generate, Score, Task
from worker.kv.attention import DecodePlan, FreshPlan, Plan, prefix_mask
from worker.kv.store import KVShape, KVStore
from worker.models.errors import ModelFormatError
from worker.runners.base import RunnerOptions, RunnerSpec, text_task
from worker.sampler import sample
from worker.scoring import score_states
from worker.sequence import Encoded, Scores, Sequence, StepResult


class Net(Protocol):
    """A loaded network. `prefix`: the prompt attends to itself in both directions."""

    kv_shape: KVShape
    prefix: bool
    dtype: torch.dtype
    device: torch.device

    def hidden(self, ids: Tensor, plan: Plan, store: KVStore | None) -> Tensor:
        """Last hidden states [B, N, hidden] of token ids [B, N]."""

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., hidden] -> [..., vocab] in float32."""


class Language(Protocol):
    """How a model family writes prompts as tokens, and reads tokens as text."""

    eos_ids: frozenset[int]

    def encode(self, task: Generate | Score, window: int) -> Encoded: ...

    def decode(self, token_ids: Rows[int]) -> str: ...


@dataclass(frozen=True)
class _Run:
    """One row of a scoring pass: a context with one of its continuations."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        return (*self.context, *self.continuation)


class PagedRunner:
    def __init__(
        self, kind: str, found: str, net: Net, language: Language, window: int, options: RunnerOptions
    ) -> None:
        num_pages = _num_pages(net, window, options)
        self.spec = RunnerSpec(kind, found, window, options.max_batch, num_pages, options.page_size)
        self.eos_ids = language.eos_ids
        self._net = net
        self._language = language
        self._store = KVStore(net.kv_shape, num_pages * options.page_size, net.dtype, net.device)

    def encode(self, task: Task) -> Encoded:
        return self._language.encode(text_task(task), self.spec.context_window)

    def decode(self, token_ids: Rows[int]) -> str:
        return self._language.decode(token_ids)

    def release(self, sequence: Sequence) -> None:
        return

    @torch.inference_mode()
    def step(self, batch: Rows[Sequence]) -> list[StepResult]:
        """Prefill what is new, decode what is not, score what is to be scored.

        Progress is noted when all of it has worked: a step that raised may be repeated for each sequence alone.
        """
        results: dict[str, StepResult] = {}
        fresh = [item for item in batch if not item.is_scoring and not item.num_computed]
        running = [item for item in batch if not item.is_scoring and item.num_computed]
        scoring = [item for item in batch if item.is_scoring]
        if fresh:
            results |= self._sample(fresh, self._prefill(fresh))
        if running:
            results |= self._sample(running, self._decode(running))
        if scoring:
            results |= self._score(scoring)
        for item in (*fresh, *running):
            item.num_computed = item.num_tokens
        return [results[item.key] for item in batch]

    def _sample(self, batch: Rows[Sequence], hidden: Tensor) -> dict[str, StepResult]:
        logits = self._net.logits(hidden)
        samplings = [item.sampling for item in batch if item.sampling is not None]
        chosen = sample(logits, samplings, [len(item.output_ids) for item in batch])
        return {item.key: token for item, token in zip(batch, chosen, strict=True)}

    def _prefill(self, batch: Rows[Sequence]) -> Tensor:
        """States [B, hidden] at each row's last token; keys and values of all its tokens are stored."""
        rows = [item.token_ids for item in batch]
        plan = self._fresh_plan(rows, [len(item.encoded.prompt_ids) for item in batch])
        width = plan.mask.shape[-1]
        flat = [row * width + at for row, ids in enumerate(rows) for at in range(len(ids))]
        kept = torch.tensor(flat, device=self._net.device)
        plan = FreshPlan(plan.positions, plan.mask, kept, self._rows(batch, width).flatten()[kept])
        hidden = self._net.hidden(self._padded(rows), plan, self._store)
        return hidden[torch.arange(len(rows)), torch.tensor([len(ids) - 1 for ids in rows])]

    def _decode(self, batch: Rows[Sequence]) -> Tensor:
        """States [B, hidden] of each row's newest token, which looks at all its stored predecessors."""
        device = self._net.device
        lengths = torch.tensor([item.num_tokens for item in batch], device=device)
        width = int(lengths.max())
        context = self._rows(batch, width)
        last = lengths - 1
        mask = torch.arange(width, device=device)[None, :] < lengths[:, None]
        plan = DecodePlan(last[:, None], context[torch.arange(len(batch)), last], context, mask[:, None, None, :])
        ids = torch.tensor([[item.output_ids[-1]] for item in batch], device=device)
        return self._net.hidden(ids, plan, self._store)[:, 0]

    def _score(self, batch: Rows[Sequence]) -> dict[str, StepResult]:
        """Scores of all continuations, `max_batch` rows a pass, rows of like length together."""
        runs = [_Run(item.encoded.prompt_ids, tail) for item in batch for tail in item.encoded.continuations]
        scores: dict[int, ContinuationScore] = {}
        order = sorted(range(len(runs)), key=lambda index: len(runs[index].ids))
        for start in range(0, len(order), self.spec.max_batch):
            chunk = order[start : start + self.spec.max_batch]
            scores |= zip(chunk, self._score_pass([runs[index] for index in chunk]), strict=True)
        listed = iter(scores[index] for index in range(len(runs)))
        return {item.key: Scores(tuple(next(listed) for _ in item.encoded.continuations)) for item in batch}

    def _score_pass(self, runs: Rows[_Run]) -> list[ContinuationScore]:
        plan = self._fresh_plan([run.ids for run in runs], [len(run.context) for run in runs])
        hidden = self._net.hidden(self._padded([run.ids for run in runs]), plan, None)
        spans = [slice(len(run.context) - 1, len(run.ids) - 1) for run in runs]
        rows = zip(hidden, spans, runs, strict=True)
        return [score_states(self._net.logits, row[span], run.continuation) for row, span, run in rows]

    def _fresh_plan(self, rows: Rows[tuple[int, ...]], prompt_lengths: Rows[int]) -> FreshPlan:
        device = self._net.device
        prefixes = prompt_lengths if self._net.prefix else [0] * len(rows)
        mask = prefix_mask(prefixes, [len(ids) for ids in rows], device)
        return FreshPlan(torch.arange(mask.shape[-1], device=device).expand(len(rows), -1), mask)

    def _padded(self, rows: Rows[tuple[int, ...]]) -> Tensor:
        width = max(len(ids) for ids in rows)
        return torch.tensor([[*ids, *([0] * (width - len(ids)))] for ids in rows], device=self._net.device)

    def _rows(self, batch: Rows[Sequence], width: int) -> Tensor:
        """Where the first `width` tokens of each sequence live in the store [B, width]; behind its end, anywhere."""
        size, most = self.spec.page_size, max(len(item.pages) for item in batch)
        padded = [[*item.pages, *([0] * (most - len(item.pages)))] for item in batch]
        pages = torch.tensor(padded, device=self._net.device)
        return (pages[:, :, None] * size + torch.arange(size, device=self._net.device)).flatten(1)[:, :width]


def _num_pages(net: Net, window: int, options: RunnerOptions) -> int:
    """Pages for a full batch of full windows, or what the memory budget allows, if at least one window fits."""
    per_page = net.kv_shape.bytes_per_token(net.dtype) * options.page_size
    per_window = -(-window // options.page_size)
    affordable = options.kv_bytes // per_page
    if affordable < per_window:
        need = -(-per_window * per_page // 2**20)
        raise ModelFormatError(
            f"One sequence of the context window ({window} tokens) needs {need} MiB of keys and values; "
            f"kv_memory_mib allows {options.kv_bytes // 2**20}. Raise it or lower the context window."
        )
    return min(affordable, per_window * options.max_batch)
