"""A choice of a job inside the engine: its token ids, its progress and its pages. Plain Python.

Only the scheduler sets `status`. A `Slice` is one step's work for one sequence, and a `StepResult`
is what it yields.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Any

from shared.messages import (
    ContinuationScore,
    Depth,
    Done,
    HaltState,
    Label,
    Sampling,
    Segment,
    Solution,
    TokenLogprob,
)


class Status(Enum):
    """The phase of a sequence."""

    NEW = auto()
    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


@dataclass(frozen=True)
class Encoded:
    """A task as token ids.

    For generation `continuations` is empty, and `max_tokens` is the room behind the prompt. The
    first `num_given` tokens of each continuation are given, not scored. A text too long for the
    context window goes on in `windows`, whose scores are added to its own. `num_top`, if not None,
    asks for the log-probabilities of each scored token and of that many likeliest ones. `is_pooled`
    asks for the mean of the states of all prompt tokens, scaled to length 1 if `is_normalized`.
    `answer` is the end of a task that needs no step. `held` are objects that some of the ids stand
    for, such as pictures: they live as long as this.

    `asked_depth` is the depth that the request has asked for, if any, without an effort. `depth` is
    the one that runs, None for the model's own, and `num_layers` the number of its layers, None for
    the model's own number.
    """

    prompt_ids: tuple[int, ...]
    max_tokens: int = 0
    continuations: tuple[tuple[int, ...], ...] = ()
    method: str = "strict"
    num_truncated: int = 0
    num_given: int = 0
    windows: "tuple[Encoded, ...]" = ()
    num_top: int | None = None
    is_pooled: bool = False
    is_normalized: bool = False
    answer: Done | None = None
    held: tuple[Any, ...] = ()
    asked_depth: Depth | None = None
    depth: Depth | None = None
    num_layers: int | None = None

    @property
    def is_reading(self) -> bool:
        """Return whether context and continuation are one prompt whose tokens are all reported."""
        return self.num_top is not None

    @property
    def predicts_nothing(self) -> bool:
        """Return whether a prompt that is read has no token to be scored."""
        return self.is_reading and not self.continuations

    @property
    def num_prompt_tokens(self) -> int:
        """Return the number of tokens that count as the prompt: all of them in a reading."""
        num_tokens = len(self.prompt_ids)
        if self.is_reading:
            for continuation in self.continuations:
                num_tokens += len(continuation)
        return num_tokens


@dataclass(frozen=True)
class EncodedText(Encoded):
    """A text to be labelled with the `top_k` likeliest labels, or with all if that is None."""

    top_k: int | None = None


@dataclass(eq=False)
class TokenSequence:
    """One prompt that is continued, or one context whose continuations are scored.

    `sampling` is None for a context. `key` names the job's work in the engine. `output_ids` may
    start with tokens that an earlier worker has logged. The first `num_computed` tokens have their
    keys and values in `pages`; `num_cached` of them were there when the sequence first started.
    `source_page` is a shared page in whose middle the sequence goes on writing: its first step
    copies that page into one of its own. Of a prompt that is computed layer by layer, the first
    `num_layers` layers are computed. `forked_from` is the choice of the same job that computes
    their common prompt. Sequences of different `salt`s share no pages.

    `scores` belong to the first continuations, and `token_scores` to their tokens in a reading.
    `pooled` is the sum of the states of the first `num_computed` tokens. `rank` 0 is the best
    class. `num_waited` counts all steps for which the sequence has waited. `acceptance` is the
    share of the last drafts that were right, None before there was one, and `num_undrafted` counts
    the steps since then that had none.
    """

    key: str
    encoded: Encoded
    sampling: Sampling | None
    choice: int = 0
    salt: str = ""
    rank: int = 0
    forked_from: "TokenSequence | None" = None
    output_ids: list[int] = field(default_factory=list)
    scores: list[ContinuationScore] = field(default_factory=list)
    token_scores: list[TokenLogprob] = field(default_factory=list)
    pooled: "Pooled | None" = None
    num_computed: int = 0
    num_layers: int = 0
    num_cached: int | None = None
    pages: list[int] = field(default_factory=list)
    source_page: int | None = None
    arrival: int = 0
    num_waited: int = 0
    acceptance: float | None = None
    num_undrafted: int = 0
    status: Status = Status.NEW

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Return the ids of the prompt and of the response so far."""
        return (*self.encoded.prompt_ids, *self.output_ids)

    def tokens(self, first: int, end: int) -> tuple[int, ...]:
        """Return the ids of the tokens from `first` up to `end`."""
        num_prompt = len(self.encoded.prompt_ids)
        return (
            *self.encoded.prompt_ids[first:end],
            *self.output_ids[max(0, first - num_prompt) : max(0, end - num_prompt)],
        )

    @property
    def num_tokens(self) -> int:
        return len(self.encoded.prompt_ids) + len(self.output_ids)

    @property
    def num_remaining(self) -> int:
        """Return the number of tokens that have no keys and values yet.

        They are computed before the next token is sampled, or the continuations are scored.
        """
        return self.num_tokens - self.num_computed

    @property
    def num_tokens_at_most(self) -> int:
        """Return the largest number of tokens that the sequence will need room for in pages."""
        # The last sampled token is never read, so it needs no keys and values.
        return len(self.encoded.prompt_ids) + max(0, self.encoded.max_tokens - 1)

    @property
    def is_scoring(self) -> bool:
        """Return whether the sequence samples no tokens."""
        return self.sampling is None


@dataclass(frozen=True)
class Slice:
    """One sequence's share of a step.

    It is the next `num_tokens` tokens. Once the context is computed it is the next
    `num_continuations` of the continuations that have no score yet. A slice that reaches the
    sequence's last token samples the next one.

    With `num_layers` only so many of the next layers of these tokens are computed, and
    `has_more_layers` tells whether some are left for later steps.

    The scheduler allows `max_drafts`: the runner may draft up to that many tokens behind the last
    one and verify them in the same step. In a slice `with_drafts` the last `num_drafts` of its
    tokens are such drafts.
    """

    sequence: TokenSequence
    num_tokens: int = 0
    num_continuations: int = 0
    num_layers: int = 0
    has_more_layers: bool = False
    max_drafts: int = 0
    num_drafts: int = 0

    def behind_drafts(self, ids: Sequence[int]) -> "Slice":
        """Return the slice that drafts the token behind these drafts, which are computed."""
        sequence = self.sequence
        drafted = replace(
            sequence,
            output_ids=[*sequence.output_ids, *ids],
            num_computed=sequence.num_computed + len(ids),
        )
        return Slice(drafted, self.num_tokens)

    def with_drafts(self, ids: Sequence[int]) -> "Slice":
        """Return the slice with these drafts behind its tokens.

        Its sequence is a copy in which they count as output. The sequence itself stays as it is.
        """
        sequence = self.sequence
        drafted = replace(sequence, output_ids=[*sequence.output_ids, *ids])
        return Slice(drafted, self.num_tokens + len(ids), num_drafts=len(ids))

    def rejected(self, num_accepted: int) -> "Slice":
        """Return the slice of the drafts behind the first `num_accepted`."""
        num_right = self.num_tokens - self.num_drafts + num_accepted
        sequence = replace(self.sequence, num_computed=self.sequence.num_computed + num_right)
        return Slice(sequence, self.num_drafts - num_accepted)

    @property
    def sampled_from(self) -> list[TokenSequence]:
        """Return the sequence as it is before each token that the slice samples.

        One is sampled behind the slice's last token and, before that, one in place of each draft.
        """
        sequence = self.sequence
        if not self.num_drafts:
            return [sequence]
        before: list[TokenSequence] = []
        num_output = len(sequence.output_ids)
        for end in range(num_output - self.num_drafts, num_output):
            before.append(replace(sequence, output_ids=sequence.output_ids[:end]))
        return [*before, sequence]

    @property
    def draft_ids(self) -> list[int]:
        """Return the drafts, which are the last of the slice's tokens."""
        output_ids = self.sequence.output_ids
        return output_ids[len(output_ids) - self.num_drafts :]

    @property
    def samples(self) -> bool:
        """Return whether this slice samples a token."""
        if self.sequence.is_scoring or self.has_more_layers:
            return False
        return self.num_tokens == self.sequence.num_remaining

    @property
    def continuations(self) -> tuple[tuple[int, ...], ...]:
        """Return the continuations that this slice scores."""
        start = len(self.sequence.scores)
        return self.sequence.encoded.continuations[start : start + self.num_continuations]

    @property
    def targets(self) -> tuple[tuple[int, ...], ...]:
        """Return the scored tokens of each of these continuations."""
        num_given = self.sequence.encoded.num_given
        return tuple(continuation[num_given:] for continuation in self.continuations)


@dataclass(frozen=True)
class Sampled:
    """A chosen token.

    `logprob` is None unless the request asks for it, and `halt` for a model without a q head.
    """

    token: int
    logprob: TokenLogprob | None = None
    halt: HaltState | None = None


@dataclass(frozen=True)
class Verified:
    """The tokens of a slice with drafts, each as it would have been sampled in a step of its own.

    All but the last are drafts that were right. `num_drafts` were tried.
    """

    tokens: tuple[Sampled, ...]
    num_drafts: int

    @property
    def num_accepted(self) -> int:
        """Return the number of drafts that were right. Each of them is computed."""
        return len(self.tokens) - 1


@dataclass(frozen=True)
class Scores:
    """One score for each continuation of the slice, in order.

    `tokens` has a score for each of their tokens where the prompt is read, else none.
    """

    scores: tuple[ContinuationScore, ...]
    tokens: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Pooled:
    """The sum [hidden] of the last hidden states of `num_tokens` tokens."""

    sums: Sequence[float]
    num_tokens: int


@dataclass(frozen=True)
class Classified:
    """The labels that a classifier gives a text, likeliest first."""

    labels: tuple[Label, ...]


@dataclass(frozen=True)
class Stepped:
    """The state after the segment with number `steps` of at most `max_steps`, if it is asked for."""

    segment: Segment
    steps: int
    max_steps: int


@dataclass(frozen=True)
class Solved:
    """The solution that a puzzle's last ACT segment yields.

    One that `settles` the puzzle makes its other samples needless. `stepped` is the state after
    that segment, if it is asked for.
    """

    solution: Solution
    settles: bool = False
    stepped: Stepped | None = None


SingleResult = Sampled | Scores | Stepped | Solved | Pooled | Classified | None
"""The result of a slice without drafts.

It is None for part of a prompt, or for an ACT segment after which a row goes on unseen.
"""

StepResult = SingleResult | Verified
"""The result of a slice."""
