"""The interface of runners whose work is done by an engine elsewhere: the third mechanism."""

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from shared.messages import Done, Generate, Sampling, Task, TaskName, TokenLogprob
from worker.engine.weights import UNKNOWN_SIZE, WeightSize

ONE_TOKEN = Generate("1", Sampling(max_tokens=1, seed=0, temperature=0.0))
"""The trial of an engine that continues texts."""


@dataclass(frozen=True)
class RemoteRunnerSpec:
    """Plain facts of a model that an engine elsewhere serves.

    `name` is the model's id here, and `found` describes it for people. The engine is asked up to
    `max_batch` requests at once. One that it has not begun to answer is repeated up to `retries`
    times. `tasks` names the kinds of tasks that it does for us, and `trial` is a cheap one that
    shows whether it does. `puzzle` is the kind of puzzles that it solves, "" for none.
    """

    runner: str
    name: str
    found: str
    context_window: int
    max_batch: int
    tasks: tuple[TaskName, ...]
    retries: int
    trial: Task = ONE_TOKEN
    weights: WeightSize = UNKNOWN_SIZE
    puzzle: str = ""
    mechanism: Literal["remote"] = "remote"


@dataclass(frozen=True)
class Piece:
    """A part of one choice of an answer, as it came.

    `ids` are its tokens as far as the engine tells them: all, with `UNKNOWN_ID` for those that it
    names by their text alone, or none. `logprobs` has one entry for each, or none.
    """

    choice: int = 0
    text: str = ""
    ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: str | None = None


class Unanswered(Exception):
    """Error of an engine that did not answer, or that broke off. It may answer later.

    `retry_after_s` is the time that it asks for. One that `is_away` could not be reached at all.
    """

    def __init__(self, message: str, *, retry_after_s: float = 0.0, is_away: bool = False) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.is_away = is_away


class Connection(Protocol):
    """The connections to an engine elsewhere. They belong to the event loop that opened them."""

    def answer(self, item: Any) -> AsyncGenerator[Piece | Done]:
        """Ask for a task that was read. Yield pieces as they come, and the end behind them.

        A caller who leaves closes the generator, and with it the connection. Raise a FleetError for
        a request that is refused, and Unanswered.
        """

    async def check(self) -> None:
        """Raise Unanswered if the engine does not answer at all."""


class RemoteRunner(Protocol):
    """A model that an engine elsewhere serves. `read` may be called from any thread."""

    spec: RemoteRunnerSpec

    def read(self, task: Task) -> Any:
        """Return a task as `Connection.answer` takes it.

        Raise InvalidRequest for a task, or a parameter of one, that the engine does not know.
        """

    def connect(self) -> AbstractAsyncContextManager[Connection]:
        """Return the connections to the engine. None is opened before it is needed."""
