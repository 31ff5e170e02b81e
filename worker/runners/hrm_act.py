"""ACTv1 brains: no keys and values, every token is a re-run of the whole row, in one or more ACT segments.

`segments`: `compat` runs one segment a token, as upstream generates; `max` runs halt_max_steps; `q_halt` stops a row
where its q_halt exceeds its q_continue. Halting is per row: rows that have halted leave the batch.
Scoring: `strict` runs one row per continuation token, which is the generation distribution although attention is
bidirectional; `aios_compat` is upstream's one pass that sees the continuation (X18).
"""

from collections.abc import Sequence as Rows
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from shared.errors import FleetError, InvalidRequest
from shared.messages import Generate, Task, Text
from worker.models.act_bundle import load_act_bundle
from worker.models.errors import ModelFormatError
from worker.models.hrm_act import ActModel
from worker.models.linear import prepare_linears
from worker.models.weights import load_tokenizer, start_ids
from worker.rolling import encode_stretches
from worker.runners.allocation import tells_out_of_memory
from worker.runners.base import RunnerOptions, RunnerSpec, as_ids, encode_generate, encode_score, text_task
from worker.sampler import sample
from worker.scoring import score_slices
from worker.sequence import Encoded, Sequence, Slice, StepResult

_Place = tuple[tuple[int, ...], int]
"""A row of token ids, and the index of one of them."""


class ActRunner:
    def __init__(
        self, model: ActModel, tokenizer: PreTrainedTokenizerBase, spec: RunnerSpec, *, segments: str, scoring: str
    ) -> None:
        eos = tokenizer.eos_token_id
        self.spec = spec
        self.eos_ids = frozenset() if eos is None else frozenset({int(eos)})
        self._model = model
        self._tokenizer = tokenizer
        self._scoring = scoring
        self._max_segments = 1 if segments == "compat" else model.config.halt_max_steps
        self._may_halt = segments == "q_halt"
        self._device = next(model.parameters()).device

    def encode(self, task: Task) -> Encoded:
        """Prompts carry the tokenizer's special tokens, continuations do not; `aios_compat` uses none at all."""
        task = text_task(task)
        if task.condition is not None:
            raise InvalidRequest("This model knows no conditions; leave `condition` out.", field="condition")
        window = self.spec.context_window
        if isinstance(task, Generate):
            ids = self._ids(task.prompt, "prompt", special=True)
            return encode_generate(ids, task, window, vocab_size=self._model.config.vocab_size)
        method = task.method or self._scoring
        if task.rolling:
            return self._encode_rolling(self._ids(task.continuations[0], "prompts", special=False), method)
        context = self._ids(task.context, "prompts", special=method == "strict")
        if method == "strict":
            context = context or start_ids(self._tokenizer)
        tails = [self._ids(item, "continuations", special=False) for item in task.continuations]
        return encode_score(context, tails, window, method=method)

    def decode(self, token_ids: Rows[int]) -> str:
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def release(self, sequence: Sequence) -> None:
        return

    @tells_out_of_memory
    @torch.inference_mode()
    def step(self, slices: Rows[Slice]) -> list[StepResult | FleetError]:
        results: list[StepResult | FleetError] = [None] * len(slices)
        scored = [index for index, part in enumerate(slices) if part.tails]
        if scored:
            parts = [slices[index] for index in scored]
            states = self._states([place for part in parts for place in self._predictors(part)])
            scores = score_slices(self._model.logits, states, parts, self.spec.name)
            for index, score in zip(scored, scores, strict=True):
                results[index] = score
        generating = [index for index, part in enumerate(slices) if not part.sequence.is_scoring]
        if generating:
            sequences = [slices[index].sequence for index in generating]
            logits = self._last_logits([item.token_ids for item in sequences])
            chosen = sample(logits, sequences, self.eos_ids, self.spec.name)
            for index, item in zip(generating, chosen, strict=True):
                results[index] = item
        return results

    def _encode_rolling(self, text: tuple[int, ...], method: str) -> Encoded:
        """Each token with all the context that fits; `aios_compat` as upstream: one pass over the end of the text."""
        window = self.spec.context_window
        if method == "strict":
            return encode_stretches(start_ids(self._tokenizer), text, window, size=self.spec.max_batch)
        if len(text) < 2:
            raise InvalidRequest("`aios_compat` never scores a text's first token: two are expected.", field="prompts")
        kept = text[-window:]
        return Encoded(kept[:1], continuations=(kept[1:],), method=method, num_truncated=len(text) - len(kept))

    def _predictors(self, part: Slice) -> list[_Place]:
        """The states that predict the tokens of each tail: at the ends of as many rows, or all of one row."""
        context, window = part.sequence.encoded.prompt_ids, self.spec.context_window
        if part.sequence.encoded.method == "aios_compat":
            return [((*context, *tail), len(context) - 1 + at) for tail in part.tails for at in range(len(tail))]
        rows = [(*context, *tail[:count])[-window:] for tail in part.tails for count in range(len(tail))]
        return [(row, len(row) - 1) for row in rows]

    def _last_logits(self, rows: Rows[tuple[int, ...]]) -> Tensor:
        """Logits [B, vocab] at the last token of each row."""
        return self._model.logits(self._states([(row, len(row) - 1) for row in rows]))

    def _states(self, wanted: Rows[_Place]) -> Tensor:
        """High-level states [N, hidden] at places of rows. Each distinct row runs once, beside others as long."""
        numbers: dict[tuple[int, ...], list[int]] = {}
        for number, (row, _) in enumerate(wanted):
            numbers.setdefault(row, []).append(number)
        rows, size = sorted(numbers, key=len), self.spec.max_batch
        found: dict[int, Tensor] = {}
        for start in range(0, len(rows), size):
            for row, states in zip(rows[start : start + size], self._settle(rows[start : start + size]), strict=True):
                picked = states[[wanted[number][1] for number in numbers[row]]]
                found |= zip(numbers[row], picked, strict=True)
        return torch.stack([found[number] for number in range(len(wanted))])

    def _settle(self, rows: Rows[tuple[int, ...]]) -> Tensor:
        """High-level states [B, N, hidden] of each row at the segment in which it halts."""
        lengths = torch.tensor([len(ids) for ids in rows], device=self._device)
        width = int(lengths.max())
        padded = [[*row, *row[-1:] * (width - len(row))] for row in rows]  # no token that the row does not have
        ids = torch.tensor(padded, device=self._device)
        carry = self._model.initial_carry(len(rows), width)
        active = torch.arange(len(rows), device=self._device)
        settled = torch.empty_like(carry)
        for segment in range(1, self._max_segments + 1):
            out = self._model.forward_segment(ids[active], lengths[active], carry)
            is_last = segment == self._max_segments
            halted = (out.q_halt > out.q_continue) & self._may_halt | is_last
            settled[active[halted]] = out.hidden[halted]
            active, carry = active[~halted], out.carry[~halted]
            if not len(active):
                break
        return settled

    def _ids(self, text: Text, field: str, *, special: bool) -> tuple[int, ...]:
        given = as_ids(text, self._model.config.vocab_size, field)
        if given is not None:
            return given
        encoded: Any = self._tokenizer(text, add_special_tokens=special)
        return tuple(encoded["input_ids"])


def load(options: RunnerOptions) -> ActRunner:
    bundle = load_act_bundle(Path(options.path), getattr(torch, options.dtype), attention=options.attention)
    source = options.tokenizer_path or bundle.tokenizer_path
    if source is None:
        raise ModelFormatError(f"{options.path} names no tokenizer that is here: give one with --tokenizer-path.")
    longest = bundle.config.max_seq_len
    window = min(options.context_window or longest, longest)
    found = f"{bundle.description}, {options.precision}"
    spec = RunnerSpec("hrm-act", options.name, found, window, options.max_batch, step_tokens=options.step_tokens)
    model = bundle.model.to(options.device)
    prepare_linears(model, quantize=options.quantize)
    tokenizer = load_tokenizer(Path(source))
    return ActRunner(model, tokenizer, spec, segments=options.segments, scoring=options.scoring)
