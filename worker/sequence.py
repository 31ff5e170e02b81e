"""A choice of a job inside the engine: token ids, progress and place. Plain Python; only the
scheduler sets `status`.

A `Slice` is what one step does for one sequence; `StepResult` is what came of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from shared.messages import ContinuationScore, Done, Label, Sampling, Solution, TokenLogprob


class Status(Enum):
    NEW = auto()
    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


@dataclass(frozen=True)
class Encoded:
    """A task as token ids. For generation `continuations` is empty; `max_tokens` is what fits
    behind the prompt.

    The first `num_given` tokens of each continuation are given, not scored. A text too long for the
    context window goes on in `windows`, whose scores add to its own. With `num_top` each scored
    token is told of, and the likeliest ones. `is_pooled`: one vector of the states of all prompt
    tokens is wanted. `answer` is the end of a task that needs no step.
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

    @property
    def is_reading(self) -> bool:
        """Whether context and continuation are one prompt, whose tokens are told of."""
        return self.num_top is not None

    @property
    def predicts_nothing(self) -> bool:
        return self.is_reading and not self.continuations

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt_ids) + (sum(map(len, self.continuations)) if self.is_reading else 0)


@dataclass(frozen=True)
class EncodedText(Encoded):
    """A text to be labelled: the `top_k` likeliest are wanted, or all."""

    top_k: int | None = None


@dataclass(eq=False)
class TokenSequence:
    """One prompt being continued, or one context being scored (`sampling` None); `key` names its
    job in the engine.

    `output_ids` may start with what an earlier worker said. The first `num_computed` tokens have
    their keys and values in `pages`; `num_cached` of them were found there when it first started.
    `source_page` is a shared page that the sequence's first step copies into its own, because it
    goes on writing in the middle of it. `forked_from` is the choice of the same job whose prompt it
    waits for. `scores` are those of the first continuations, `token_scores` of their tokens where
    they are told of; `pooled` is what there is of the states of the first `num_computed` tokens.
    `rank` 0 is the best class; the sequence waited for `num_waited` steps in all.
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
    num_cached: int | None = None
    pages: list[int] = field(default_factory=list)
    source_page: int | None = None
    arrival: int = 0
    num_waited: int = 0
    status: Status = Status.NEW

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Prompt and response so far."""
        return (*self.encoded.prompt_ids, *self.output_ids)

    def tokens(self, first: int, end: int) -> tuple[int, ...]:
        """Ids of the tokens `first` to `end`."""
        behind = len(self.encoded.prompt_ids)
        return (
            *self.encoded.prompt_ids[first:end],
            *self.output_ids[max(0, first - behind) : max(0, end - behind)],
        )

    @property
    def num_tokens(self) -> int:
        return len(self.encoded.prompt_ids) + len(self.output_ids)

    @property
    def num_remaining(self) -> int:
        """Tokens that must still be computed before the next one can be sampled, or the
        continuations scored."""
        return self.num_tokens - self.num_computed

    @property
    def num_tokens_at_most(self) -> int:
        """The most tokens that will ever need a place in the store: the last sampled one needs
        none."""
        return len(self.encoded.prompt_ids) + max(0, self.encoded.max_tokens - 1)

    @property
    def is_scoring(self) -> bool:
        return self.sampling is None


@dataclass(frozen=True)
class Slice:
    """One sequence's share of a step: its next `num_tokens` tokens, or, with the context computed,
    `num_continuations` of the continuations that have no score yet. A slice that reaches the
    sequence's last token samples the next one."""

    sequence: TokenSequence
    num_tokens: int = 0
    num_continuations: int = 0

    @property
    def samples(self) -> bool:
        return not self.sequence.is_scoring and self.num_tokens == self.sequence.num_remaining

    @property
    def continuations(self) -> tuple[tuple[int, ...], ...]:
        """The continuations that this slice scores."""
        start = len(self.sequence.scores)
        return self.sequence.encoded.continuations[start : start + self.num_continuations]

    @property
    def targets(self) -> tuple[tuple[int, ...], ...]:
        """What is scored of each of them."""
        return tuple(
            continuation[self.sequence.encoded.num_given :] for continuation in self.continuations
        )


@dataclass(frozen=True)
class Sampled:
    """A chosen token, with its log-probability where the request asks for it, and q_halt and
    q_continue of the state that gave it, where the model has a q head."""

    token: int
    logprob: TokenLogprob | None = None
    q_values: tuple[float, float] | None = None


@dataclass(frozen=True)
class Scores:
    """One score for each continuation of the slice, in order; `tokens` of all their tokens, where
    they are told of."""

    scores: tuple[ContinuationScore, ...]
    tokens: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Pooled:
    """The sum of the last hidden states of `num_tokens` tokens, one float for each unit."""

    sums: Sequence[float]
    num_tokens: int


@dataclass(frozen=True)
class Classified:
    """What a classifier makes of a text, likeliest first."""

    labels: tuple[Label, ...]


@dataclass(frozen=True)
class Solved:
    """What a puzzle's last ACT segment yields."""

    solution: Solution


StepResult = Sampled | Scores | Solved | Pooled | Classified | None
"""What a slice yields; nothing for part of a prompt, or an ACT segment that has not halted."""
