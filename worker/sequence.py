"""A job inside the engine: token ids, progress and place, plain Python. Only the scheduler assigns `status`."""

from dataclasses import dataclass, field
from enum import Enum, auto

from shared.messages import ContinuationScore, Sampling, Solution


class Status(Enum):
    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


@dataclass(frozen=True)
class Encoded:
    """A task as token ids. For generation `continuations` is empty; `max_tokens` is what fits behind the prompt."""

    prompt_ids: tuple[int, ...]
    max_tokens: int = 0
    continuations: tuple[tuple[int, ...], ...] = ()
    method: str = "strict"
    num_truncated: int = 0


@dataclass(eq=False)
class Sequence:
    """One prompt being continued, or one context being scored; `key` names it in the engine.

    `output_ids` may start with what an earlier worker said. `num_computed` counts the tokens whose keys and values are
    stored; 0 means that it has yet to be prefilled.
    """

    key: str
    encoded: Encoded
    sampling: Sampling | None
    output_ids: list[int] = field(default_factory=list)
    num_computed: int = 0
    pages: list[int] = field(default_factory=list)
    status: Status = Status.WAITING

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Prompt and response so far."""
        return (*self.encoded.prompt_ids, *self.output_ids)

    @property
    def num_tokens(self) -> int:
        return len(self.encoded.prompt_ids) + len(self.output_ids)

    @property
    def num_tokens_at_most(self) -> int:
        """The most tokens that will ever need a place in the store: the last sampled one needs none."""
        return len(self.encoded.prompt_ids) + max(0, self.encoded.max_tokens - 1)

    @property
    def is_scoring(self) -> bool:
        return self.sampling is None


@dataclass(frozen=True)
class Scores:
    """What a scoring step yields: one score for each continuation, in order."""

    scores: tuple[ContinuationScore, ...]


@dataclass(frozen=True)
class Solved:
    """What a puzzle's last ACT segment yields."""

    solution: Solution


StepResult = int | Scores | Solved | None
"""A sampled token id, all scores of a sequence, a puzzle's answer, or nothing yet (an ACT segment without a halt)."""
