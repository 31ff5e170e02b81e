"""A job inside the engine: its choices with their texts, and when it has ended. Plain Python.

Each choice of a prompt is a sequence, which the engine steps like any other. The first choice
computes the prompt for all of them. Each window of a text that is scored whole is a sequence, too.
"""

import itertools
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import assert_never

import msgspec

from shared.messages import (
    PRIORITIES,
    ContinuationScore,
    Done,
    Embedded,
    Failed,
    Generated,
    HaltState,
    Labelled,
    Priority,
    Progress,
    Result,
    Sampling,
    Scored,
    TokenLogprob,
)
from shared.tasks.vectors import pack
from worker.engine.noise import fold
from worker.engine.runner import Runner
from worker.engine.sequence import (
    Classified,
    Encoded,
    Pooled,
    Sampled,
    Scores,
    SingleResult,
    Solved,
    Stepped,
    TokenSequence,
)
from worker.engine.task_runner import NewFile
from worker.text.detokenizer import TextStream


@dataclass(frozen=True)
class SequenceWork:
    """A job for the engine. `key` names its take: two takes of one job have different keys.

    `sampling` is None for a task that samples no tokens. `replayed_ids` holds for each choice the
    tokens that are in the log already; they are never sampled again. Works of different `tenant`s
    share no computed prompt. `deadline_s` is a moment of the engine's clock.
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
        """Return 0 for the best class."""
        return PRIORITIES.index(self.priority)

    @property
    def salt(self) -> str:
        """Return the salt of the prefix tree: other tenants and depths share no prompt with this."""
        depth = self.encoded.depth
        if depth is None:
            return self.tenant
        # No tenant's name has a line break.
        return f"{self.tenant}\n{depth.cycles or depth.max_steps}"

    @property
    def num_prompt_tokens(self) -> int:
        return self.encoded.num_prompt_tokens

    @property
    def num_truncated(self) -> int:
        return self.encoded.num_truncated

    @property
    def max_tokens(self) -> int | None:
        """Return the room for an answer where that is less than the task allows, else None."""
        if self.sampling is None or self.encoded.max_tokens >= self.sampling.max_tokens:
            return None
        return self.encoded.max_tokens

    @property
    def answer(self) -> Done | None:
        return self.encoded.answer


@dataclass(frozen=True)
class Emission:
    """The news of one step of one choice.

    `key` names the work. `text` is the text that became certain with the new `ids`.
    `finish_reason` is set when the choice ends. `ended` is set when the whole work ends, and
    `files` belong to that end. `progress` is that of a task that yields nothing before its end.
    """

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
    """A sequence with its text. `reason` is set when it has ended."""

    sequence: TokenSequence
    text: TextStream
    reason: str | None = None
    halt: HaltState | None = None


class Request:
    """A job's work in the engine. `open_sequences` are its sequences that have not ended."""

    def __init__(self, work: SequenceWork, runner: Runner) -> None:
        self.work = work
        self._runner = runner
        self._choices = _choices_of(work, runner)
        self.sequences = tuple(choice.sequence for choice in self._choices)
        self.open_sequences = list(self.sequences)

    def catch_up(self) -> list[Emission]:
        """Rebuild the texts of replayed tokens, and close choices that have nothing to compute.

        These are choices that their replayed tokens had already ended, and readings of a prompt
        without a token to be scored. Return the emissions of their ends.
        """
        emissions: list[Emission] = []
        for choice in self._choices:
            sequence = choice.sequence
            if sequence.encoded.predicts_nothing:
                emissions += self._on_scores(sequence, Scores(()))

            for count, token in enumerate(sequence.output_ids, start=1):
                self._read(choice, token, count)
            if not sequence.output_ids:
                continue

            # The last token of a choice was logged together with the rest of its text, so only the
            # end of the work can be missing from the log.
            reason = self._finish_reason(choice)
            if reason is None:
                continue
            ended = self._close(choice, reason)
            if ended is not None:
                emissions.append(Emission(self.work.key, ended=ended))
        return emissions

    def on_result(self, sequence: TokenSequence, result: SingleResult) -> list[Emission]:
        """Note a result for one of the sequences. Return its emissions."""
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
            case Stepped():
                return [Emission(self.work.key, progress=_progress_of(result))]
            case Solved():
                end = self._end(sequence, "solve", result.solution, settles=result.settles)
                if result.stepped is None:
                    return [end]
                return [replace(end, progress=_progress_of(result.stepped))]
        assert_never(result)

    def _on_token(self, sequence: TokenSequence, sampled: Sampled) -> Emission:
        """Add a sampled token to its choice."""
        choice = self._choices[sequence.choice]
        logprobs: tuple[TokenLogprob, ...] = ()
        if sampled.logprob is not None:
            # Before the text stream reads the token: a token's text depends on those before it.
            logprobs = (self._told(choice, sampled.token, sampled.logprob, sampled.halt),)

        sequence.output_ids.append(sampled.token)
        choice.halt = sampled.halt
        text = self._read(choice, sampled.token, len(sequence.output_ids))
        reason = self._finish_reason(choice)
        ended = None
        if reason is not None:
            text += choice.text.flush()
            ended = self._close(choice, reason)
        return Emission(
            self.work.key,
            (sampled.token,),
            text=text,
            choice=sequence.choice,
            logprobs=logprobs,
            finish_reason=reason,
            ended=ended,
        )

    def _on_scores(self, sequence: TokenSequence, result: Scores) -> list[Emission]:
        """Add the scores of some continuations.

        The last ones of the last open window end the request.
        """
        sequence.scores += result.scores
        sequence.token_scores += result.tokens
        if len(sequence.scores) < len(sequence.encoded.continuations):
            return []

        choice = self._choices[sequence.choice]
        if sequence.encoded.is_reading:
            ended = self._close(choice, "read")
            return [self._reading(choice, ended)]
        ended = self._close(choice, "score")
        if ended is None:
            return []
        return [Emission(self.work.key, ended=ended)]

    def _reading(self, choice: _Choice, ended: Done | None) -> Emission:
        """Return one emission of the whole prompt, its tokens' log-probabilities, and the end."""
        sequence = choice.sequence
        ids = (*sequence.encoded.prompt_ids, *itertools.chain(*sequence.encoded.continuations))
        # The tokens of the context come first, and have no score.
        num_context = len(ids) - len(sequence.token_scores)
        scores = [TokenLogprob(None)] * num_context + sequence.token_scores

        logprobs: list[TokenLogprob] = []
        text = ""
        for token, score in zip(ids, scores, strict=True):
            logprobs.append(self._told(choice, token, score))
            text += choice.text.push(token)
        text += choice.text.flush()
        return Emission(
            self.work.key,
            ids,
            text=text,
            logprobs=tuple(logprobs),
            finish_reason="read",
            ended=ended,
        )

    def _on_states(self, sequence: TokenSequence, result: Pooled) -> list[Emission]:
        """Add the states of some tokens. The states of the last tokens end the request."""
        sequence.pooled = joined(sequence.pooled, result)
        if sequence.pooled.num_tokens < len(sequence.encoded.prompt_ids):
            return []
        vector = mean_of(sequence.pooled, normalize=sequence.encoded.is_normalized)
        return [self._end(sequence, "embed", Embedded(vector))]

    @property
    def has_output(self) -> bool:
        """Return whether any choice has a token of an answer."""
        if self.work.sampling is None:
            return False
        return any(sequence.output_ids for sequence in self.sequences)

    def stop(self, reason: str) -> list[Emission]:
        """End the choices that are still open, with the text they have."""
        emissions: list[Emission] = []
        for choice in self._choices:
            if choice.sequence not in self.open_sequences:
                continue
            text = choice.text.flush()
            ended = self._close(choice, reason)
            emissions.append(
                Emission(
                    self.work.key,
                    text=text,
                    choice=choice.sequence.choice,
                    finish_reason=reason,
                    ended=ended,
                )
            )
        return emissions

    def _read(self, choice: _Choice, token: int, count: int) -> str:
        """Return the text that becomes certain with the `count`-th token."""
        sampling = self.work.sampling
        assert sampling is not None
        if self._is_silent(token):
            return ""
        return choice.text.push(token, may_stop=count >= sampling.min_tokens)

    def _is_silent(self, token: int) -> bool:
        """Return whether a token has no text. That is one that ends a response, ignored or not."""
        sampling = self.work.sampling
        if sampling is None:
            return False
        return token in self._runner.eos_ids or token in sampling.stop_ids

    def _finish_reason(self, choice: _Choice) -> str | None:
        """Return why a choice ends with its last token, None if it goes on."""
        sampling = self.work.sampling
        assert sampling is not None
        if choice.text.is_stopped:
            return "stop"

        sequence = choice.sequence
        count = len(sequence.output_ids)
        last = sequence.output_ids[-1]
        is_eos = last in self._runner.eos_ids and not sampling.ignore_eos
        is_end = is_eos or last in sampling.stop_ids
        if is_end and count >= sampling.min_tokens:
            return "stop"
        if count >= sequence.encoded.max_tokens:
            return "length"
        return None

    def _end(
        self, sequence: TokenSequence, reason: str, result: Result, *, settles: bool = False
    ) -> Emission:
        """Close the only sequence of a request. Return its end with the result."""
        done = self._close(self._choices[sequence.choice], reason)
        if done is not None:
            done = msgspec.structs.replace(done, result=result, settles=settles)
        return Emission(self.work.key, ended=done)

    def _close(self, choice: _Choice, reason: str) -> Done | None:
        """Close a choice. Return the end of the request if this was its last one, else None."""
        choice.reason = reason
        self.open_sequences.remove(choice.sequence)
        if self.open_sequences:
            return None

        result: Scored | Generated | None
        if self.work.sampling is None:
            result = self._scored()
        else:
            result = self._generated()
        # Replayed tokens of a job that was taken over may be cached, too, but are no part of its
        # prompt.
        num_prompt = len(self.work.encoded.prompt_ids)
        num_cached = min(self.sequences[0].num_cached or 0, num_prompt)
        return Done(
            self._choices[0].reason or "",
            self.work.encoded.num_prompt_tokens,
            num_completion_tokens=sum(len(sequence.output_ids) for sequence in self.sequences),
            num_cached_tokens=num_cached,
            result=result,
            depth=self.work.encoded.asked_depth,
        )

    def _scored(self) -> Scored | None:
        """Return the scores of all continuations, each summed over all windows.

        Return None where there are no continuations, or where they are a prompt that is read.
        """
        if self.work.encoded.is_reading or not self.work.encoded.continuations:
            return None
        scores_by_window = [sequence.scores for sequence in self.sequences]
        totals: list[ContinuationScore] = []
        # Each continuation has one score in every window.
        for scores in zip(*scores_by_window, strict=True):
            totals.append(_total(scores))
        return Scored(tuple(totals))

    def _generated(self) -> Generated | None:
        """Return the facts that only some answers have, None if there are none."""
        reasons: list[str] = []
        q_values: list[tuple[float, float] | None] = []
        for choice in self._choices:
            reasons.append(choice.reason or "")
            halt = choice.halt
            q_values.append(None if halt is None else (halt.q_halt, halt.q_continue))

        # The only choice's reason stands in Done, and q values of None say nothing.
        if len(reasons) == 1:
            reasons = []
        if not any(q_values):
            q_values = []
        result = Generated(tuple(reasons), tuple(q_values), self._choices[0].text.num_amended)
        if result == Generated():
            return None
        return result

    def _told(
        self,
        choice: _Choice,
        token: int,
        logprob: TokenLogprob,
        halt: HaltState | None = None,
    ) -> TokenLogprob:
        """Return a next token's log-probability with all texts, and where the network stopped."""
        top: list[tuple[int, str, float]] = []
        for rival, _, value in logprob.top:
            top.append((rival, self._text_of(choice, rival), value))
        text = self._text_of(choice, token)
        return msgspec.structs.replace(logprob, token=text, top=tuple(top), halt=halt)

    def _text_of(self, choice: _Choice, token: int) -> str:
        if self._is_silent(token):
            return ""
        return choice.text.peek(token)


def _progress_of(stepped: Stepped) -> Progress:
    return Progress(stepped.steps, stepped.max_steps, segment=stepped.segment)


def _choices_of(work: SequenceWork, runner: Runner) -> list[_Choice]:
    """Return the choices of a prompt, or the windows of a text that is scored."""
    sampling = work.sampling
    choices: list[_Choice] = []
    if sampling is None:
        for index, part in enumerate((work.encoded, *work.encoded.windows)):
            sequence = TokenSequence(
                work.key, part, sampling=None, choice=index, salt=work.salt, rank=work.rank
            )
            choices.append(_Choice(sequence, TextStream(runner.decode)))
        return choices

    for index in range(sampling.n):
        # Each choice draws from a seed of its own; the first one's is the request's.
        seed = fold(sampling.seed, index)
        replayed_ids: tuple[int, ...] = ()
        if index < len(work.replayed_ids):
            replayed_ids = work.replayed_ids[index]
        sequence = TokenSequence(
            work.key,
            work.encoded,
            sampling=msgspec.structs.replace(sampling, seed=seed),
            choice=index,
            salt=work.salt,
            rank=work.rank,
            forked_from=choices[0].sequence if choices else None,
            output_ids=list(replayed_ids),
        )
        text = TextStream(runner.decode, sampling.stop, prompt_ids=work.encoded.prompt_ids)
        choices.append(_Choice(sequence, text))
    return choices


def _total(scores: Sequence[ContinuationScore]) -> ContinuationScore:
    """Return the score of one continuation over all windows."""
    return ContinuationScore(
        math.fsum(score.log_likelihood for score in scores),
        sum(score.num_tokens for score in scores),
        all(score.is_greedy for score in scores),
    )


def joined(one: Pooled | None, other: Pooled) -> Pooled:
    """Return the sum of the states of some tokens and of the tokens behind them."""
    if one is None:
        return other
    sums = array("d")
    for one_sum, other_sum in zip(one.sums, other.sums, strict=True):
        sums.append(one_sum + other_sum)
    return Pooled(sums, one.num_tokens + other.num_tokens)


def mean_of(pooled: Pooled, *, normalize: bool) -> bytes:
    """Return the mean state [hidden] as packed bytes (`shared.tasks.vectors`).

    With `normalize` its length is 1, unless it is zero.
    """
    mean = [value / pooled.num_tokens for value in pooled.sums]
    length = 1.0
    if normalize:
        length = math.hypot(*mean) or 1.0
    return pack(value / length for value in mean)
