"""The other side of a row: `transformers` with the same weights, used in a way than which none was
shown to be faster.

That is one left-padded batch (its answers are those of each prompt alone, and groups of equal
length took twice as long), SDPA attention, the dynamic cache, logits of the wanted positions only,
and as many threads as cores.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter as now
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, HrmTextForCausalLM, LlamaForCausalLM


@dataclass(frozen=True)
class Batch:
    """A batch's answers; when each row had its first token, and when all was said
    (`time.perf_counter`)."""

    ids: list[list[int]]
    first_at: float
    ended_at: float

    @property
    def behind_first_s(self) -> float:
        return self.ended_at - self.first_at


class _Clock:
    """A streamer for `generate` that notes when tokens come; the first call hands over the
    prompt."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def put(self, _: Tensor) -> None:
        self.at.append(now())

    def end(self) -> None:
        return


class Theirs:
    def __init__(self, path: Path, *, threads: int) -> None:
        self._is_hrm = AutoConfig.from_pretrained(path).model_type == "hrm_text"
        family: Any = HrmTextForCausalLM if self._is_hrm else LlamaForCausalLM
        self._model = family.from_pretrained(path, dtype=torch.float32).eval()
        self._model.generation_config.eos_token_id = (
            None  # nothing to look for: every answer has its full length
        )
        self._threads = threads

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> Batch:
        """Greedy answers of `max_tokens` each, as one batch."""
        torch.set_num_threads(self._threads)
        width = max(map(len, prompts))
        ids = torch.tensor([[*[0] * (width - len(prompt)), *prompt] for prompt in prompts])
        real = torch.tensor(
            [[*[0] * (width - len(prompt)), *[1] * len(prompt)] for prompt in prompts]
        )
        kinds = {"token_type_ids": real} if self._is_hrm else {}
        clock = _Clock()
        out = self._model.generate(
            ids,
            attention_mask=real,
            **kinds,
            max_new_tokens=max_tokens,
            do_sample=False,
            streamer=clock,
        )
        return Batch(out[:, width:].tolist(), clock.at[1], now())

    @torch.inference_mode()
    def score(
        self, contexts: Sequence[Sequence[int]], tails: Sequence[Sequence[Sequence[int]]]
    ) -> list[float]:
        """Log-likelihoods of the continuations of every context, one forward for each pair."""
        torch.set_num_threads(self._threads)
        pairs = [
            (context, tail) for context, some in zip(contexts, tails, strict=True) for tail in some
        ]
        return [self._score(context, tail) for context, tail in pairs]

    def _score(self, context: Sequence[int], tail: Sequence[int]) -> float:
        logits = self._logits(context, tail, keep=len(tail) + 1)[:-1].double()
        return float(logits.log_softmax(-1).gather(1, torch.tensor(tail)[:, None]).sum())

    @torch.inference_mode()
    def top_two_gap(self, prompt: Sequence[int], said: Sequence[int]) -> float:
        """How far the likeliest next token's logit is above the second one's, behind a prompt and
        what was said."""
        best = self._logits(prompt, said, keep=1)[-1].topk(2).values
        return float(best[0] - best[1])

    def _logits(self, context: Sequence[int], tail: Sequence[int], keep: int) -> Tensor:
        """Logits of the last `keep` positions [keep, V]."""
        kinds = torch.tensor([[*[1] * len(context), *[0] * len(tail)]])
        extra = {"token_type_ids": kinds} if self._is_hrm else {}
        ids = torch.tensor([[*context, *tail]])
        logits: Tensor = self._model(
            input_ids=ids, **extra, use_cache=False, logits_to_keep=keep
        ).logits[0]
        return logits
