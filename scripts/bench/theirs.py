"""The other side of a row: `transformers` with the same weights, in its fastest known set-up.

This is one left-padded batch, SDPA attention, the dynamic cache, logits of the needed positions
only, and as many threads as cores. Such a batch gives the same answers as each prompt alone. Groups
of prompts of equal length took twice as long.
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
    """The token ids of a batch's answers, and the times of its first tokens and of its end.

    Times are those of `time.perf_counter`.
    """

    ids: list[list[int]]
    first_at: float
    ended_at: float

    @property
    def behind_first_s(self) -> float:
        """The seconds from the first tokens to the end."""
        return self.ended_at - self.first_at


class _Clock:
    """A streamer for `generate` that records when tokens come.

    The first call of `put` gets the prompt, each later one the tokens of a step.
    """

    def __init__(self) -> None:
        self.moments: list[float] = []

    def put(self, _: Tensor) -> None:
        self.moments.append(now())

    def end(self) -> None:
        return


class Theirs:
    """A model of `transformers`, an HRM-Text or a Llama."""

    def __init__(self, path: Path, *, threads: int, dtype: str = "float32") -> None:
        self._is_hrm = AutoConfig.from_pretrained(path).model_type == "hrm_text"
        family: Any = HrmTextForCausalLM if self._is_hrm else LlamaForCausalLM
        self._model = family.from_pretrained(path, dtype=getattr(torch, dtype)).eval()
        # Without an end token every answer has its full length.
        self._model.generation_config.eos_token_id = None
        self._threads = threads

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> Batch:
        """Return greedy answers of `max_tokens` each, as one batch."""
        torch.set_num_threads(self._threads)
        width = max(len(prompt) for prompt in prompts)
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        types = {}
        if self._is_hrm:
            # Attention is bidirectional on the prompt.
            types["token_type_ids"] = mask

        clock = _Clock()
        out = self._model.generate(
            ids,
            attention_mask=mask,
            **types,
            max_new_tokens=max_tokens,
            do_sample=False,
            streamer=clock,
        )
        return Batch(out[:, width:].tolist(), first_at=clock.moments[1], ended_at=now())

    @torch.inference_mode()
    def score(
        self, contexts: Sequence[Sequence[int]], tails: Sequence[Sequence[Sequence[int]]]
    ) -> list[float]:
        """Return the log-likelihoods of all continuations, context by context.

        `tails` are the continuations of each context. Each of them takes a forward pass.
        """
        torch.set_num_threads(self._threads)
        scores = []
        for context, continuations in zip(contexts, tails, strict=True):
            for continuation in continuations:
                scores.append(self._score(context, continuation))
        return scores

    def _score(self, context: Sequence[int], continuation: Sequence[int]) -> float:
        # The logits of a position predict the next token, so those of the last are not needed.
        logits = self._logits(context, continuation, keep=len(continuation) + 1)[:-1]
        logprobs = logits.double().log_softmax(-1)
        return float(logprobs.gather(1, torch.tensor(continuation)[:, None]).sum())

    @torch.inference_mode()
    def top_two_gap(self, prompt: Sequence[int], response: Sequence[int]) -> float:
        """Return the gap between the two best logits of the next token behind a response."""
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
