"""ACTv1 brains. Bidirectional ones keep no keys and values: every token is a re-run of the whole row, in one or more
ACT segments. Causal ones go to `hrm_act_causal`.

`segments`: `compat` runs one segment a token, as upstream generates; `max` runs halt_max_steps; `q_halt` stops a row
where its q_halt exceeds its q_continue. Halting is per row: rows that have halted leave the batch.
Scoring: `strict` runs one row per continuation token, which is the generation distribution although attention is
bidirectional; `aios_compat` is upstream's one pass that sees the continuation (X18).
"""

import math
from collections.abc import Sequence as Rows
from pathlib import Path

import torch
from torch import Tensor

from shared.errors import FleetError
from shared.messages import ContinuationScore, Generate, Score
from worker.models.act_bundle import load_act_bundle
from worker.models.errors import ModelFormatError
from worker.models.hrm_act import ActModel
from worker.models.weights import load_tokenizer
from worker.runners.act_language import ActLanguage
from worker.runners.base import RunnerOptions, RunnerSpec
from worker.runners.hrm_act_causal import ActCausalNet
from worker.runners.paged import PagedRunner
from worker.sampler import broken, sample
from worker.scoring import score_states, score_tokens
from worker.sequence import Encoded, Scores, Sequence, Slice, StepResult


class ActRunner:
    def __init__(self, model: ActModel, language: ActLanguage, spec: RunnerSpec, *, segments: str) -> None:
        self.spec = spec
        self.eos_ids = language.eos_ids
        self._model = model
        self._language = language
        self._max_segments = 1 if segments == "compat" else model.config.halt_max_steps
        self._may_halt = segments == "q_halt"
        self._device = next(model.parameters()).device

    def encode(self, task: Generate | Score) -> Encoded:
        return self._language.encode(task, self.spec.context_window)

    def decode(self, token_ids: Rows[int]) -> str:
        return self._language.decode(token_ids)

    def release(self, sequence: Sequence) -> None:
        return

    @torch.inference_mode()
    def step(self, slices: Rows[Slice]) -> list[StepResult | FleetError]:
        results: list[StepResult | FleetError] = [self._scores(part) if part.tails else None for part in slices]
        generating = [index for index, part in enumerate(slices) if not part.sequence.is_scoring]
        if generating:
            sequences = [slices[index].sequence for index in generating]
            logits = self._last_logits([item.token_ids for item in sequences])
            chosen = sample(logits, sequences, self.eos_ids, self.spec.name)
            for index, item in zip(generating, chosen, strict=True):
                results[index] = item
        return results

    def _scores(self, part: Slice) -> StepResult | FleetError:
        scores = tuple(self._score(part.sequence, tail) for tail in part.tails)
        is_sound = all(math.isfinite(score.log_likelihood) for score in scores)
        return Scores(scores) if is_sound else broken(self.spec.name)

    def _score(self, sequence: Sequence, tail: tuple[int, ...]) -> ContinuationScore:
        context = sequence.encoded.prompt_ids
        if sequence.encoded.method == "aios_compat":
            states = self._settle([(*context, *tail)])[0]
            return score_states(self._model.logits, states[len(context) - 1 : -1], tail)
        rows = [(*context, *tail[:count]) for count in range(len(tail))]
        size = self.spec.max_batch
        logits = [self._last_logits(rows[start : start + size]) for start in range(0, len(rows), size)]
        return score_tokens(torch.cat(logits), tail)

    def _last_logits(self, rows: Rows[tuple[int, ...]]) -> Tensor:
        """Logits [B, vocab] at the last token of each row."""
        states = self._settle(rows)
        return self._model.logits(torch.stack([states[row][len(ids) - 1] for row, ids in enumerate(rows)]))

    def _settle(self, rows: Rows[tuple[int, ...]]) -> Tensor:
        """High-level states [B, N, hidden] of each row at the segment in which it halts."""
        lengths = torch.tensor([len(ids) for ids in rows], device=self._device)
        width = int(lengths.max())
        ids = torch.tensor([[*row, *([0] * (width - len(row)))] for row in rows], device=self._device)
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


def load(options: RunnerOptions) -> ActRunner | PagedRunner:
    bundle = load_act_bundle(Path(options.path), getattr(torch, options.dtype), attention=options.attention)
    source = options.tokenizer_path or bundle.tokenizer_path
    if source is None:
        raise ModelFormatError(f"{options.path} names no tokenizer that is here: give one with --tokenizer-path.")
    config, device = bundle.config, torch.device(options.device)
    window = min(options.context_window or config.max_seq_len, config.max_seq_len)
    model = bundle.model.to(device)
    language = ActLanguage(load_tokenizer(Path(source)), config.vocab_size, options.scoring)
    if config.attention == "causal":
        net = ActCausalNet(model, device, options.segments)
        return PagedRunner("hrm-act", bundle.description, net, language, window, options)
    spec = RunnerSpec(
        "hrm-act", options.name, bundle.description, window, options.max_batch, step_tokens=options.step_tokens
    )
    return ActRunner(model, language, spec, segments=options.segments)
