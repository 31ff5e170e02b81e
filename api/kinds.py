"""Ways to ask and to be answered: how a kind of request renders its whole answer, its stream and its errors.

Rendering is pure: outcomes or events, and the record of the request, become JSON. So whichever front tells of it, when
and how often, says the same.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fastapi import APIRouter
from pydantic import BaseModel

from api.errors import Problem, plain_body
from api.framing import EVENTS_WITH_DONE, Framing
from api.record import Work
from api.run import Outcome, Progress, Tally
from api.timings import Timings
from api.trail import Usage
from shared.errors import JobNotFound
from shared.messages import TaskName


class Telling(Protocol):
    """The JSON payloads of one stream. What an event gives depends on the events of its own job alone."""

    def opening(self) -> Any:
        """Says nothing yet, but that the stream has begun; None where the dialect has no such payload."""

    def of(self, job: int, event: Progress) -> Iterable[Any]: ...

    def closing(self, usage: Usage, timings: Timings | None) -> Iterable[Any]:
        """Comes when all jobs are done; with `timings` if the kind is timed and Redis tells."""

    def failed(self, problem: Problem) -> Any:
        """The last payload of a stream that ends with an error."""


@dataclass(frozen=True)
class Kind:
    """`name` is found in records. Without `tell` a stream is the whole answer in one frame. Answers that say how long
    they took are timed."""

    name: str
    task: TaskName
    render: Callable[[Work, Sequence[Outcome]], BaseModel]
    tell: Callable[[Work], Telling] | None = None
    framing: Framing = EVENTS_WITH_DONE
    is_timed: bool = False

    def telling(self, work: Work) -> Telling:
        return self.tell(work) if self.tell else _Whole(self, work)


@dataclass(frozen=True)
class Dialect:
    """What a route file adds to the app."""

    router: APIRouter
    kinds: tuple[Kind, ...] = ()


class Kinds:
    """All kinds there are, by name."""

    def __init__(self, dialects: Iterable[Dialect]) -> None:
        self._by_name = {kind.name: kind for dialect in dialects for kind in dialect.kinds}

    def of(self, work: Work) -> Kind:
        """Raises JobNotFound for one that only another version knows."""
        if work.record.kind not in self._by_name:
            raise JobNotFound("This job was created by another version of the server.")
        return self._by_name[work.record.kind]


class _Whole:
    def __init__(self, kind: Kind, work: Work) -> None:
        self._kind = kind
        self._work = work
        self._tallies = [Tally(work.record.n) for _ in work.request.job_ids]

    def opening(self) -> Any:
        return {"id": self._work.id, "object": "job", "model": self._work.record.model}

    def of(self, job: int, event: Progress) -> Iterable[Any]:
        self._tallies[job].add(event)
        return ()

    def closing(self, usage: Usage, timings: Timings | None) -> Iterable[Any]:
        yield self._kind.render(self._work, [tally.outcome() for tally in self._tallies]).model_dump(mode="json")

    def failed(self, problem: Problem) -> Any:
        return plain_body(problem)
