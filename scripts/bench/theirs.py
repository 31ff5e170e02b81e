"""The other side of a row: `transformers` with the same weights, in the fastest way that we know.

That is one left-padded batch, SDPA attention, the dynamic cache, logits of the wanted positions
only, and as many threads as cores. The answers of such a batch are those of each prompt alone, and
groups of equal length took twice as long.
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
    """The answers of a batch, with the times of its first tokens and of its end.

    Times are those of `time.perf_counter`.
    """

    ids: list[list[int]]
    first_at: float
    ended_at: float

    @property
    def behind_first_s(self) -> float:
        return self.ended_at - self.first_at


class _Clock:
    """A streamer for `generate` that notes when tokens come.

    Its first call hands over the prompt.
    """

    def __init__(self) -> None:
        self.at: list[float] = []

    def put(self, _: Tensor) -> None:
        self.at.append(now())

    def end(self) -> None:
        return


class Theirs:
    def __init__(self, path: Path, *, threads: int, dtype: str = "float32") -> None:
        self._is_hrm = AutoConfig.from_pretrained(path).model_type == "hrm_text"
        family: Any = HrmTextForCausalLM if self._is_hrm else LlamaForCausalLM
        self._model = family.from_pretrained(path, dtype=getattr(torch, dtype)).eval()
        # There is no end to look for: every answer has its full length.
        self._model.generation_config.eos_token_id = None
        self._threads = threads

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> Batch:
        """Return greedy answers of `max_tokens` each, as one batch."""
        torch.set_num_threads(self._threads)
        width = max(map(len, prompts))
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        types = {}
        if self._is_hrm:
            types["token_type_ids"] = mask  # a prompt is bidirectional

        clock = _Clock()
        out = self._model.generate(
            ids,
            attention_mask=mask,
            **types,
            max_new_tokens=max_tokens,
            do_sample=False,
            streamer=clock,
        )
        return Batch(out[:, width:].tolist(), first_at=clock.at[1], ended_at=now())

    @torch.inference_mode()
    def score(
        self, contexts: Sequence[Sequence[int]], tails: Sequence[Sequence[Sequence[int]]]
    ) -> list[float]:
        """Return the log-likelihoods of the continuations of every context, one forward for each
        pair."""
        torch.set_num_threads(self._threads)
        scores = []
        for context, continuations in zip(contexts, tails, strict=True):
            for continuation in continuations:
                scores.append(self._score(context, continuation))
        return scores

    def _score(self, context: Sequence[int], continuation: Sequence[int]) -> float:
        # The last position predicts the token behind the continuation.
        logits = self._logits(context, continuation, keep=len(continuation) + 1)[:-1]
        logprobs = logits.double().log_softmax(-1)
        return float(logprobs.gather(1, torch.tensor(continuation)[:, None]).sum())

    @torch.inference_mode()
    def top_two_gap(self, prompt: Sequence[int], response: Sequence[int]) -> float:
        """Return how far the likeliest next token's logit is above the second one's, behind a
        prompt and a response."""
        best = self._logits(prompt, response, keep=1)[-1].topk(2).values
        return float(best[0] - best[1])

    def _logits(self, context: Sequence[int], continuation: Sequence[int], keep: int) -> Tensor:
        """Return the logits of the last `keep` positions [keep, vocab]."""
        ids = torch.tensor([[*context, *continuation]])
        types = {}
        if self._is_hrm:
            types["token_type_ids"] = torch.tensor([[1] * len(context) + [0] * len(continuation)])
        out = self._model(input_ids=ids, **types, use_cache=False, logits_to_keep=keep)
        logits: Tensor = out.logits[0]
        return logits
