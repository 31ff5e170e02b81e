"""ACTv1 brains.

Bidirectional brains keep no keys and values: every token is a new run of the whole row, in one or
more ACT segments. Causal brains are served by `hrm_act_causal`.

`segments` says when a row stops. `compat` runs one segment for each token, as upstream generates.
`max` runs halt_max_steps segments. `q_halt` stops a row where its q_halt exceeds its q_continue.
Rows halt one by one, and those that have halted leave the batch.

There are two methods of scoring. `strict` runs one row for each token of a continuation, so that it
scores the distribution that the model generates from, although attention is bidirectional.
`aios_compat` is upstream's one pass, in which a token sees the continuation behind it.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from shared.errors import FleetError
from shared.messages import Depth, HaltState, Task
from shared.tasks.runner_options import HrmActOptions
from worker.engine.depth import DepthsByEffort, at_depth, checked_steps, depth_of, named, spread
from worker.engine.engine_stats import count_segments
from worker.engine.runner import RunnerOptions, RunnerSpec
from worker.engine.sampler import sample
from worker.engine.scoring import score_slices
from worker.engine.sequence import Encoded, Sampled, Slice, StepResult, TokenSequence
from worker.engine.states import pooled
from worker.models.act_bundle import load_act_bundle
from worker.models.errors import ModelFormatError
from worker.models.hrm_act import ActModel
from worker.models.weight_size import weight_size
from worker.models.weights import load_tokenizer
from worker.runners.accelerators import prepare
from worker.runners.act_language import ActLanguage
from worker.runners.allocation import tells_out_of_memory
from worker.runners.efforts import check_efforts
from worker.runners.hrm_act_causal import ActCausalNet
from worker.runners.paged import PagedRunner
from worker.text.chat import ChatTemplate
from worker.text.encoding import text_task
from worker.text.rolling import Ids, encode_rolling, encode_stretches
from worker.text.vocabulary import Vocabulary


class Row(NamedTuple):
    """Token ids that are run together, in at most so many segments."""

    ids: tuple[int, ...]
    max_segments: int


_TokenOfRow = tuple[Row, int]
"""A row, and the index of one of its tokens."""


class ActRunner:
    """A bidirectional ACTv1 brain, which runs whole rows."""

    def __init__(
        self,
        model: ActModel,
        language: ActLanguage,
        spec: RunnerSpec,
        *,
        segments: str,
        efforts: DepthsByEffort | None = None,
    ) -> None:
        self.spec = spec
        self.eos_ids = language.eos_ids
        self.model = model
        self._language = language
        self.max_segments = 1 if segments == "compat" else model.config.halt_max_steps
        if efforts is None:
            efforts = spread(self.max_segments, lambda count: Depth(max_steps=count))
        self._efforts = efforts
        check_efforts(efforts, self._check_depth)
        self._may_halt = segments == "q_halt"
        self._device = next(model.parameters()).device

    def encode(self, task: Task) -> Encoded:
        encoded = self._language.encode(text_task(task), self.spec.context_window)
        asked = depth_of(task)
        if asked is None:
            return encoded
        asked = named(self._efforts, asked)
        self._check_depth(asked)
        return at_depth(encoded, asked=asked, depth=asked)

    def _check_depth(self, depth: Depth) -> None:
        checked_steps(depth, self.model.config.halt_max_steps)

    def decode(self, token_ids: Sequence[int]) -> str:
        return self._language.decode(token_ids)

    def release(self, sequence: TokenSequence) -> None:
        return

    @tells_out_of_memory
    @torch.inference_mode()
    def step(self, slices: Sequence[Slice]) -> list[StepResult | FleetError]:
        """Score continuations, sample tokens and pool states, each in batches of their own."""
        results: list[StepResult | FleetError] = [None] * len(slices)
        self._score(slices, results)
        self._sample(slices, results)
        self._pool(slices, results)
        return results

    def _score(self, slices: Sequence[Slice], results: list[StepResult | FleetError]) -> None:
        """Score the slices with continuations, into `results`."""
        indices = [index for index, part in enumerate(slices) if part.continuations]
        if not indices:
            return
        parts = [slices[index] for index in indices]
        predictors: list[_TokenOfRow] = []
        for part in parts:
            predictors += self._predictors(part)
        states = self._states(predictors)
        scores = score_slices(self.model.logits, states, parts, self.spec.name)
        for index, result in zip(indices, scores, strict=True):
            results[index] = result

    def _sample(self, slices: Sequence[Slice], results: list[StepResult | FleetError]) -> None:
        """Sample a token for each slice that generates, into `results`."""
        indices = []
        sequences = []
        rows = []
        for index, part in enumerate(slices):
            if not part.sequence.is_scoring:
                indices.append(index)
                sequences.append(part.sequence)
                rows.append(Row(part.sequence.token_ids, self._max_segments(part)))
        if not indices:
            return
        logits, halts = self.last_logits(rows)
        sampled = sample(logits, sequences, self.eos_ids, self.spec.name)
        for index, result, halt in zip(indices, sampled, halts, strict=True):
            results[index] = result
            if isinstance(result, Sampled):
                results[index] = replace(result, halt=halt)

    def _pool(self, slices: Sequence[Slice], results: list[StepResult | FleetError]) -> None:
        """Pool the states of whole texts, into `results`."""
        indices = []
        lengths = []
        tokens: list[_TokenOfRow] = []
        for index, part in enumerate(slices):
            if part.sequence.encoded.is_pooled:
                ids = part.sequence.encoded.prompt_ids
                row = Row(ids, self._max_segments(part))
                indices.append(index)
                lengths.append(len(ids))
                tokens += [(row, position) for position in range(len(ids))]
        if not indices:
            return
        states = self._states(tokens)
        for index, text_states in zip(indices, states.split(lengths), strict=True):
            results[index] = pooled(text_states, self.spec.name)

    def _predictors(self, part: Slice) -> list[_TokenOfRow]:
        """Return the tokens whose states predict those of the slice's continuations, in order."""
        context = part.sequence.encoded.prompt_ids
        max_segments = self._max_segments(part)
        window = self.spec.context_window
        is_compat = part.sequence.encoded.method == "aios_compat"
        predictors: list[_TokenOfRow] = []
        for continuation in part.continuations:
            for count in range(len(continuation)):
                if is_compat:
                    # One row for all tokens: each is predicted by the token before it.
                    row = Row((*context, *continuation), max_segments)
                    predictors.append((row, len(context) - 1 + count))
                else:
                    # A state sees its whole row, so the row must end before the predicted token.
                    ids = (*context, *continuation[:count])[-window:]
                    predictors.append((Row(ids, max_segments), len(ids) - 1))
        return predictors

    def _max_segments(self, part: Slice) -> int:
        """Return the most segments of the slice's rows."""
        depth = part.sequence.encoded.depth
        if depth is None or depth.max_steps is None:
            return self.max_segments
        return depth.max_steps

    def last_logits(self, rows: Sequence[Row]) -> tuple[Tensor, list[HaltState]]:
        """Return the logits [B, vocab] at the last token of each row, and where each row stopped."""
        states, halts = self._run([(row, len(row.ids) - 1) for row in rows])
        return self.model.logits(states), halts

    def _states(self, tokens: Sequence[_TokenOfRow]) -> Tensor:
        """Return the high-level states [N, hidden] of tokens in their rows."""
        states, _ = self._run(tokens)
        return states

    def _run(self, tokens: Sequence[_TokenOfRow]) -> tuple[Tensor, list[HaltState]]:
        """Run the rows of tokens. Return the tokens' states [N, hidden], and where each row stopped.

        Each distinct row runs once, in a batch with others of similar length.
        """
        numbers_of: dict[Row, list[int]] = {}
        for number, (row, _) in enumerate(tokens):
            numbers_of.setdefault(row, []).append(number)

        # Sorted by length, so that a batch has little padding.
        rows = sorted(numbers_of, key=lambda row: len(row.ids))
        size = self.spec.max_batch
        states: dict[int, Tensor] = {}
        halts: dict[int, HaltState] = {}
        for start in range(0, len(rows), size):
            batch = rows[start : start + size]
            for row, row_states, halt in zip(batch, *self._settle(batch), strict=True):
                numbers = numbers_of[row]
                halts.update(dict.fromkeys(numbers, halt))
                # A list as index copies. Views would keep the states of all batches in memory.
                picked = row_states[[tokens[number][1] for number in numbers]]
                for number, state in zip(numbers, picked, strict=True):
                    states[number] = state
        order = range(len(tokens))
        return torch.stack([states[number] for number in order]), [halts[one] for one in order]

    def _settle(self, rows: Sequence[Row]) -> tuple[Tensor, list[HaltState]]:
        """Run rows. Return their high-level states [B, N, hidden], and where each stopped.

        The states are padded to N tokens. Those of each row are of the segment in which it halts.
        """
        lengths = torch.tensor([len(row.ids) for row in rows], device=self._device)
        max_segments = torch.tensor([row.max_segments for row in rows], device=self._device)
        width = int(lengths.max())
        padded = []
        for row in rows:
            # Padded with the row's last token, so that it has no token that is not its own.
            padded.append([*row.ids, *row.ids[-1:] * (width - len(row.ids))])
        ids = torch.tensor(padded, device=self._device)

        # `active` are the indices of the rows that have not halted. `carry` has a row for each.
        carry = self.model.initial_carry(len(rows), width)
        active = torch.arange(len(rows), device=self._device)
        settled = torch.empty_like(carry)
        q_values = torch.empty(len(rows), 2, device=self._device)
        segments = torch.empty(len(rows), dtype=torch.long, device=self._device)
        segment = 0
        while len(active):
            segment += 1
            out = self.model.forward_segment(ids[active], lengths[active], carry)
            has_halted = max_segments[active] <= segment
            if self._may_halt:
                has_halted = has_halted | (out.q_halt > out.q_continue)
            halted = active[has_halted]
            settled[halted] = out.hidden[has_halted]
            q_values[halted, 0] = out.q_halt[has_halted]
            q_values[halted, 1] = out.q_continue[has_halted]
            segments[halted] = segment
            count_segments(len(active), int(has_halted.sum()))
            active = active[~has_halted]
            carry = out.carry[~has_halted]

        halts: list[HaltState] = []
        for (q_halt, q_continue), count in zip(q_values.tolist(), segments.tolist(), strict=True):
            halts.append(HaltState(q_halt, q_continue, count))
        return settled, halts


def load(options: RunnerOptions) -> ActRunner | PagedRunner:
    """Load a brain and its tokenizer. Raise ModelFormatError for files that cannot be served."""
    declared = options.declared(HrmActOptions)
    dtype = getattr(torch, options.dtype)
    bundle = load_act_bundle(Path(options.path), dtype, attention=declared.attention)
    config = bundle.config
    tokenizer_path = options.tokenizer_path or bundle.tokenizer_path
    if tokenizer_path is None:
        raise ModelFormatError(
            f"{options.path} names no tokenizer on this machine: give one with --tokenizer-path."
        )
    device = torch.device(options.device)
    window = min(options.context_window or config.max_seq_len, config.max_seq_len)
    description = f"{bundle.description}, {options.precision}"

    tokenizer = load_tokenizer(Path(tokenizer_path))
    model = bundle.model.to(device)
    template = ChatTemplate(tokenizer, declared.chat_template)
    vocabulary = Vocabulary(tokenizer, config.vocab_size, template, keeps_end_marks=True)
    prepare(model, options)
    weights = weight_size(model)

    if config.attention == "causal":
        net = ActCausalNet(model, device, declared.segments, declared.depths_by_effort)
        language = ActLanguage(tokenizer, vocabulary, declared.scoring, encode_rolling)
        return PagedRunner(
            "hrm-act",
            description,
            net=net,
            language=language,
            window=window,
            options=options,
            weights=weights,
        )

    def encode_by_row(start: Ids, text: Ids, window: int) -> Encoded:
        return encode_stretches(start, text, window, size=options.max_batch)

    language = ActLanguage(tokenizer, vocabulary, declared.scoring, encode_by_row)
    spec = RunnerSpec(
        "hrm-act",
        options.name,
        found=description,
        context_window=window,
        max_batch=options.max_batch,
        step_tokens=options.step_tokens,
        weights=weights,
    )
    return ActRunner(
        model,
        language,
        spec,
        segments=declared.segments,
        efforts=declared.depths_by_effort,
    )
