"""ACTv1 brains. Bidirectional ones keep no keys and values: every token is a re-run of the whole
row, in one or more ACT segments. Causal ones go to `hrm_act_causal`.

`segments`: `compat` runs one segment a token, as upstream generates; `max` runs halt_max_steps;
`q_halt` stops a row where its q_halt exceeds its q_continue. Halting is per row: rows that have
halted leave the batch. Scoring: `strict` runs one row per continuation token, which is the
generation distribution although attention is bidirectional; `aios_compat` is upstream's one pass
that sees the continuation (X18).
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from shared.errors import FleetError
from shared.messages import Task
from shared.runner_options import HrmActOptions
from worker.accelerators import prepare
from worker.chat import ChatTemplate
from worker.engine_stats import count_segments
from worker.models.act_bundle import load_act_bundle
from worker.models.errors import ModelFormatError
from worker.models.hrm_act import ActModel
from worker.models.weights import load_tokenizer
from worker.rolling import encode_rolling, encode_stretches
from worker.runners.act_language import ActLanguage
from worker.runners.allocation import tells_out_of_memory
from worker.runners.base import RunnerOptions, RunnerSpec, text_task
from worker.runners.hrm_act_causal import ActCausalNet
from worker.runners.paged import PagedRunner
from worker.sampler import sample
from worker.scoring import score_slices
from worker.sequence import Encoded, Slice, StepResult, TokenSequence
from worker.states import pooled
from worker.vocabulary import Vocabulary

_Place = tuple[tuple[int, ...], int]
"""A row of token ids, and the index of one of them."""


class ActRunner:
    def __init__(
        self, model: ActModel, language: ActLanguage, spec: RunnerSpec, *, segments: str
    ) -> None:
        self.spec = spec
        self.eos_ids = language.eos_ids
        self._model = model
        self._language = language
        self._max_segments = 1 if segments == "compat" else model.config.halt_max_steps
        self._may_halt = segments == "q_halt"
        self._device = next(model.parameters()).device

    def encode(self, task: Task) -> Encoded:
        return self._language.encode(text_task(task), self.spec.context_window)

    def decode(self, token_ids: Sequence[int]) -> str:
        return self._language.decode(token_ids)

    def release(self, sequence: TokenSequence) -> None:
        return

    @tells_out_of_memory
    @torch.inference_mode()
    def step(self, slices: Sequence[Slice]) -> list[StepResult | FleetError]:
        results: list[StepResult | FleetError] = [None] * len(slices)
        scored = [index for index, part in enumerate(slices) if part.continuations]
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
        whole = [index for index, part in enumerate(slices) if part.sequence.encoded.is_pooled]
        if whole:
            rows = [slices[index].sequence.encoded.prompt_ids for index in whole]
            states = self._states([(row, place) for row in rows for place in range(len(row))])
            for index, own in zip(whole, states.split([len(row) for row in rows]), strict=True):
                results[index] = pooled(own, self.spec.name)
        return results

    def _predictors(self, part: Slice) -> list[_Place]:
        """The states that predict the tokens of each tail: at the ends of as many rows, or all of
        one row."""
        context, window = part.sequence.encoded.prompt_ids, self.spec.context_window
        if part.sequence.encoded.method == "aios_compat":
            return [
                ((*context, *continuation), len(context) - 1 + at)
                for continuation in part.continuations
                for at in range(len(continuation))
            ]
        rows = [
            (*context, *continuation[:count])[-window:]
            for continuation in part.continuations
            for count in range(len(continuation))
        ]
        return [(row, len(row) - 1) for row in rows]

    def _last_logits(self, rows: Sequence[tuple[int, ...]]) -> Tensor:
        """Logits [B, vocab] at the last token of each row."""
        return self._model.logits(self._states([(row, len(row) - 1) for row in rows]))

    def _states(self, wanted: Sequence[_Place]) -> Tensor:
        """High-level states [N, hidden] at places of rows. Each distinct row runs once, beside
        others as long."""
        numbers: dict[tuple[int, ...], list[int]] = {}
        for number, (row, _) in enumerate(wanted):
            numbers.setdefault(row, []).append(number)
        rows, size = sorted(numbers, key=len), self.spec.max_batch
        found: dict[int, Tensor] = {}
        for start in range(0, len(rows), size):
            for row, states in zip(
                rows[start : start + size], self._settle(rows[start : start + size]), strict=True
            ):
                picked = states[[wanted[number][1] for number in numbers[row]]]
                found |= zip(numbers[row], picked, strict=True)
        return torch.stack([found[number] for number in range(len(wanted))])

    def _settle(self, rows: Sequence[tuple[int, ...]]) -> Tensor:
        """High-level states [B, N, hidden] of each row at the segment in which it halts."""
        lengths = torch.tensor([len(ids) for ids in rows], device=self._device)
        width = int(lengths.max())
        padded = [
            [*row, *row[-1:] * (width - len(row))] for row in rows
        ]  # no token that the row does not have
        ids = torch.tensor(padded, device=self._device)
        carry = self._model.initial_carry(len(rows), width)
        active = torch.arange(len(rows), device=self._device)
        settled = torch.empty_like(carry)
        for segment in range(1, self._max_segments + 1):
            out = self._model.forward_segment(ids[active], lengths[active], carry)
            is_last = segment == self._max_segments
            halted = (out.q_halt > out.q_continue) & self._may_halt | is_last
            settled[active[halted]] = out.hidden[halted]
            count_segments(len(active), int(halted.sum()))
            active, carry = active[~halted], out.carry[~halted]
            if not len(active):
                break
        return settled


def load(options: RunnerOptions) -> ActRunner | PagedRunner:
    own = options.declared(HrmActOptions)
    bundle = load_act_bundle(
        Path(options.path), getattr(torch, options.dtype), attention=own.attention
    )
    source = options.tokenizer_path or bundle.tokenizer_path
    if source is None:
        raise ModelFormatError(
            f"{options.path} names no tokenizer that is here: give one with --tokenizer-path."
        )
    config, device = bundle.config, torch.device(options.device)
    window = min(options.context_window or config.max_seq_len, config.max_seq_len)
    found = f"{bundle.description}, {options.precision}"
    tokenizer, model = load_tokenizer(Path(source)), bundle.model.to(device)
    template = ChatTemplate(tokenizer, own.chat_template)
    vocabulary = Vocabulary(tokenizer, config.vocab_size, template, keeps_end_marks=True)
    prepare(model, options)
    if config.attention == "causal":
        net = ActCausalNet(model, device, own.segments)
        language = ActLanguage(tokenizer, vocabulary, own.scoring, encode_rolling)
        return PagedRunner("hrm-act", found, net, language, window, options)
    by_row = partial(encode_stretches, size=options.max_batch)
    language = ActLanguage(tokenizer, vocabulary, own.scoring, by_row)
    spec = RunnerSpec(
        "hrm-act", options.name, found, window, options.max_batch, step_tokens=options.step_tokens
    )
    return ActRunner(model, language, spec, segments=own.segments)
