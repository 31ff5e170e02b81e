"""A job inside the engine: its choices with their texts, and when it has ended. Plain Python.

Several choices of one prompt are as many sequences, which the engine steps like any others; the
first one's prompt is computed for all. So are the windows of a text that is scored whole.
"""

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import assert_never

import msgspec

from shared.messages import (
    PRIORITIES,
    ContinuationScore,
    Done,
    Embedded,
    Failed,
    Generated,
    Labelled,
    Priority,
    Progress,
    Result,
    Sampling,
    Scored,
    TokenLogprob,
)
from worker.noise import fold
from worker.pooling import joined, mean_of
from worker.runners.base import Runner
from worker.sequence import (
    Classified,
    Encoded,
    Pooled,
    Sampled,
    Scores,
    Solved,
    StepResult,
    TokenSequence,
)
from worker.task_runner import NewFile
from worker.text import TextStream


@dataclass(frozen=True)
class SequenceWork:
    """A job for the engine. `key` is the take it belongs to: two takes of one job are two works.

    `replayed_ids` are, for each choice, tokens that the log already holds: they are never sampled
    again. Works of different `tenant`s share no computed prompt. `deadline_s` is a moment of the
    engine's clock.
    """

    key: str
    encoded: Encoded
    sampling: Sampling | None
    replayed_ids: tuple[tuple[int, ...], ...] = ()
    tenant: str = ""
    deadline_s: float = math.inf
    priority: Priority = "default"

    @property
    def rank(self) -> int:
        return PRIORITIES.index(self.priority)

    @property
    def num_prompt_tokens(self) -> int:
        return self.encoded.num_prompt_tokens

    @property
    def num_truncated(self) -> int:
        return self.encoded.num_truncated

    @property
    def max_tokens(self) -> int | None:
        """Return the room for an answer where that is less than the task allows."""
        if self.sampling is None or self.encoded.max_tokens >= self.sampling.max_tokens:
            return None
        return self.encoded.max_tokens

    @property
    def answer(self) -> Done | None:
        return self.encoded.answer


@dataclass(frozen=True)
class Emission:
    """What one step says of one choice of a work: new ids, the text that became certain, why the
    choice ended if it did, how far a task has come that is done whole, and the work's end with the
    files that belong to it."""

    key: str
    ids: tuple[int, ...] = ()
    text: str = ""
    choice: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: str | None = None
    ended: Done | Failed | None = None
    progress: Progress | None = None
    files: tuple[NewFile, ...] = ()


@dataclass
class _Choice:
    sequence: TokenSequence
    text: TextStream
    reason: str | None = None
    q_values: tuple[float, float] | None = None


class Request:
    """`open_sequences` are those that still have something to say."""

    def __init__(self, work: SequenceWork, runner: Runner) -> None:
        self.work = work
        self._runner = runner
        self._choices = _choices(work, runner)
        self.sequences = tuple(choice.sequence for choice in self._choices)
        self.open_sequences = list(self.sequences)

    def catch_up(self) -> list[Emission]:
        """Rebuild the texts of replayed tokens; choices that they had already ended are closed, and
        readings for which there is nothing to compute.

        The last token of such a choice was logged together with all that was left of its text.
        """
        emissions = []
        for choice in self._choices:
            if choice.sequence.encoded.predicts_nothing:
                emissions += self._on_scores(choice.sequence, Scores(()))
            for number, token in enumerate(choice.sequence.output_ids):
                self._read(choice, token, number + 1)
            if choice.sequence.output_ids and (reason := self._reason(choice)):
                ended = self._close(choice, reason)
                if ended is not None:
                    emissions.append(Emission(self.work.key, ended=ended))
        return emissions

    def on_result(self, sequence: TokenSequence, result: StepResult) -> list[Emission]:
        """Note what a step yielded for one of the sequences; return what there is to say of it."""
        match result:
            case None:
                return []
            case Sampled():
                return [self._on_token(sequence, result)]
            case Scores():
                return self._on_scores(sequence, result)
            case Pooled():
                return self._on_states(sequence, result)
            case Classified():
                return [self._end(sequence, "classify", Labelled(result.labels))]
            case Solved():
                return [self._end(sequence, "solve", result.solution)]
        assert_never(result)

    def _on_token(self, sequence: TokenSequence, sampled: Sampled) -> Emission:
        """Add a sampled token to its choice."""
        choice = self._choices[sequence.choice]
        logprobs = (
            ()
            if sampled.logprob is None
            else (self._named(choice, sampled.token, sampled.logprob),)
        )
        sequence.output_ids.append(sampled.token)
        choice.q_values = sampled.q_values
        text = self._read(choice, sampled.token, len(sequence.output_ids))
        reason = self._reason(choice)
        ended = None
        if reason is not None:
            text += choice.text.flush()
            ended = self._close(choice, reason)
        return Emission(
            self.work.key, (sampled.token,), text, sequence.choice, logprobs, reason, ended
        )

    def _on_scores(self, sequence: TokenSequence, result: Scores) -> list[Emission]:
        """Add the scores of some continuations; the last ones, of the last window, end the
        request."""
        sequence.scores += result.scores
        sequence.token_scores += result.tokens
        if len(sequence.scores) < len(sequence.encoded.continuations):
            return []
        choice, is_reading = self._choices[sequence.choice], sequence.encoded.is_reading
        ended = self._close(choice, "read" if is_reading else "score")
        if is_reading:
            return [self._reading(choice, ended)]
        return [Emission(self.work.key, ended=ended)] if ended is not None else []

    def _reading(self, choice: _Choice, ended: Done | None) -> Emission:
        """The whole prompt with what was found of its tokens, and its end, all at once."""
        sequence = choice.sequence
        ids = (*sequence.encoded.prompt_ids, *itertools.chain(*sequence.encoded.continuations))
        found = [TokenLogprob(None)] * (
            len(ids) - len(sequence.token_scores)
        ) + sequence.token_scores
        logprobs, text = [], ""
        for token, item in zip(ids, found, strict=True):
            logprobs.append(self._named(choice, token, item))
            text += choice.text.push(token)
        return Emission(
            self.work.key, ids, text + choice.text.flush(), 0, tuple(logprobs), "read", ended
        )

    def _on_states(self, sequence: TokenSequence, result: Pooled) -> list[Emission]:
        """Add the states of some tokens; those of the last ones end the request."""
        sequence.pooled = joined(sequence.pooled, result)
        if sequence.pooled.num_tokens < len(sequence.encoded.prompt_ids):
            return []
        vector = mean_of(sequence.pooled, normalize=sequence.encoded.is_normalized)
        return [self._end(sequence, "embed", Embedded(vector))]

    @property
    def has_spoken(self) -> bool:
        """Whether there is something of an answer."""
        return self.work.sampling is not None and any(item.output_ids for item in self.sequences)

    def stop(self, reason: str) -> list[Emission]:
        """End what is still open, with what it has said."""
        emissions = []
        for choice in self._choices:
            if choice.sequence in self.open_sequences:
                text, number = choice.text.flush(), choice.sequence.choice
                ended = self._close(choice, reason)
                emissions.append(
                    Emission(self.work.key, (), text, number, finish_reason=reason, ended=ended)
                )
        return emissions

    def _read(self, choice: _Choice, token: int, count: int) -> str:
        """The text that becomes certain with the `count`-th token."""
        sampling = self.work.sampling
        assert sampling is not None
        return (
            ""
            if self._is_silent(token)
            else choice.text.push(token, may_stop=count >= sampling.min_tokens)
        )

    def _is_silent(self, token: int) -> bool:
        """Tokens that end a response have no text, and an end token has none where it is
        ignored."""
        sampling = self.work.sampling
        return sampling is not None and (
            token in self._runner.eos_ids or token in sampling.stop_ids
        )

    def _reason(self, choice: _Choice) -> str | None:
        sampling, sequence = self.work.sampling, choice.sequence
        assert sampling is not None
        count, last = len(sequence.output_ids), sequence.output_ids[-1]
        is_end = last in sampling.stop_ids or (
            last in self._runner.eos_ids and not sampling.ignore_eos
        )
        if choice.text.is_stopped or (is_end and count >= sampling.min_tokens):
            return "stop"
        return "length" if count >= sequence.encoded.max_tokens else None

    def _end(self, sequence: TokenSequence, reason: str, result: Result) -> Emission:
        """The end of a request of one sequence, with its result."""
        done = self._close(self._choices[sequence.choice], reason)
        return Emission(
            self.work.key, ended=msgspec.structs.replace(done, result=result) if done else None
        )

    def _close(self, choice: _Choice, reason: str) -> Done | None:
        """The end of the request if this was its last choice."""
        choice.reason = reason
        self.open_sequences.remove(choice.sequence)
        if self.open_sequences:
            return None
        return Done(
            self._choices[0].reason or "",
            self.work.encoded.num_prompt_tokens,
            sum(len(item.output_ids) for item in self.sequences),
            num_cached_tokens=min(
                self.sequences[0].num_cached or 0, len(self.work.encoded.prompt_ids)
            ),
            result=self._scored() if self.work.sampling is None else self._generated(),
        )

    def _scored(self) -> Scored | None:
        """The sums over all windows; None where there are no continuations, or they are a prompt
        that is read."""
        if self.work.encoded.is_reading or not self.work.encoded.continuations:
            return None
        return Scored(
            tuple(map(_total, zip(*(item.scores for item in self.sequences), strict=True)))
        )

    def _generated(self) -> Generated | None:
        reasons = tuple(item.reason or "" for item in self._choices)
        q_values = tuple(item.q_values for item in self._choices)
        result = Generated(
            reasons if len(reasons) > 1 else (),
            q_values if any(q_values) else (),
            self._choices[0].text.num_amended,
        )
        return None if result == Generated() else result

    def _named(self, choice: _Choice, token: int, logprob: TokenLogprob) -> TokenLogprob:
        """The log-probability of the choice's next token, with the texts of it and of its rivals at
        this place."""
        top = tuple((item, self._text_of(choice, item), value) for item, _, value in logprob.top)
        return msgspec.structs.replace(logprob, token=self._text_of(choice, token), top=top)

    def _text_of(self, choice: _Choice, token: int) -> str:
        return "" if self._is_silent(token) else choice.text.peek(token)


def _choices(work: SequenceWork, runner: Runner) -> list[_Choice]:
    sampling = work.sampling
    if sampling is None:
        parts = enumerate((work.encoded, *work.encoded.windows))
        sequences = [
            TokenSequence(work.key, part, None, number, work.tenant, work.rank)
            for number, part in parts
        ]
        return [_Choice(item, TextStream(runner.decode)) for item in sequences]
    choices: list[_Choice] = []
    for number in range(sampling.n):
        own = msgspec.structs.replace(sampling, seed=fold(sampling.seed, number))
        replayed = work.replayed_ids[number] if number < len(work.replayed_ids) else ()
        parent = choices[0].sequence if choices else None
        place = (work.key, work.encoded, own, number, work.tenant, work.rank)
        sequence = TokenSequence(*place, forked_from=parent, output_ids=list(replayed))
        text = TextStream(runner.decode, sampling.stop, prompt_ids=work.encoded.prompt_ids)
        choices.append(_Choice(sequence, text))
    return choices


def _total(scores: Iterable[ContinuationScore]) -> ContinuationScore:
    """Of one continuation over all windows."""
    parts = tuple(scores)
    return ContinuationScore(
        math.fsum(part.log_likelihood for part in parts),
        sum(part.num_tokens for part in parts),
        all(part.is_greedy for part in parts),
    )
