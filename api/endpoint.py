"""Ways to ask for work and to be answered, as data: HTTP, `/v1/jobs` and the tests read the same rows.

A row's functions are pure. A body becomes tasks, and outcomes or events and the record of the request become JSON: so
whichever front tells of it, when and how often, says the same.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import Any, Protocol

from pydantic import BaseModel

from api.error_format import PLAIN, ErrorFormat
from api.framing import EVENTS, EVENTS_WITH_DONE, Framing
from api.limits import Limits, TokenBudget
from api.problem import Problem
from api.record import Work
from api.run import Outcome, Progress, Tally
from api.timings import Timings
from api.trail import Usage
from shared.errors import JobNotFound
from shared.messages import ModelInfo, Task, TaskName


class Telling(Protocol):
    """The JSON payloads of one stream. What an event gives depends on the events of its own job alone."""

    def opening(self) -> Any:
        """Says nothing yet, but that the stream has begun; None where the dialect has no such payload."""

    def of(self, job: int, event: Progress) -> Iterable[Any]: ...

    def closing(self, usage: Usage, timings: Timings | None) -> Iterable[Any]:
        """Comes when all jobs are done; with `timings` if the endpoint is timed and Redis tells."""

    def failed(self, problem: Problem) -> Any:
        """The last payload of a stream that ends with an error."""


@dataclass(frozen=True)
class Plan:
    """What a body means to the model that was found for it: tasks of `n` choices each, and notes for its record."""

    tasks: Sequence[Task]
    budget: TokenBudget | None = None
    n: int = 1
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def capped_at(self) -> int | None:
        return self.budget.max_tokens if self.budget is not None and self.budget.is_clamped else None


def _stream_of(body: Any) -> bool:
    return bool(getattr(body, "stream", False))


def _model_of(body: Any) -> str | None:
    return body.model  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Endpoint:
    """`name` is found in records; `task` is what a model must serve.

    `plan` raises InvalidRequest for what the limits or the model forbid. `answer` is what `render` makes. Without
    `tell` a stream is the whole answer in one frame. A stream that the body asked for is in `bare_framing`, where there
    is one, for callers who do not accept events (X11). Answers that say how long they took are timed.
    """

    name: str
    task: TaskName
    body: type[BaseModel]
    answer: Any
    plan: Callable[[Any, ModelInfo, Limits], Plan]
    render: Callable[[Work, Sequence[Outcome]], BaseModel]
    tell: Callable[[Work], Telling] | None = None
    framing: Framing = EVENTS_WITH_DONE
    bare_framing: Framing | None = None
    errors: ErrorFormat = PLAIN
    is_timed: bool = False
    model_of: Callable[[Any], str | None] = _model_of
    is_streamed: Callable[[Any], bool] = _stream_of

    def telling(self, work: Work) -> Telling:
        return self.tell(work) if self.tell else _Whole(self, work)


@dataclass(frozen=True)
class Instant:
    """An endpoint that needs no model: the front answers, with the id of the request. `tell` makes the payloads of a
    stream of the body and its whole answer."""

    body: type[BaseModel]
    answer: Any
    render: Callable[[Any, str], BaseModel]
    tell: Callable[[Any, Any], Iterable[Any]]
    framing: Framing = EVENTS
    errors: ErrorFormat = PLAIN
    is_streamed: Callable[[Any], bool] = _stream_of


@dataclass(frozen=True)
class Post:
    """A path at which work is asked for, by an endpoint, or by several that the type of the parsed `body` tells apart.

    `name` and `summary` are for the OpenAPI document. `by_key`: the keys by which bodies are told apart before they are
    parsed, for errors in the dialect of the caller. `job_task` is its name in `POST /v1/jobs`.
    """

    path: str
    name: str
    summary: str
    endpoints: tuple[Endpoint | Instant, ...]
    tag: str
    body: Any = None
    by_key: Mapping[str, Endpoint] = field(default_factory=dict)
    always_streams: bool = False
    job_task: str = ""

    @property
    def body_type(self) -> Any:
        return self.endpoints[0].body if self.body is None else self.body

    @property
    def answer(self) -> Any:
        return reduce(or_, dict.fromkeys(endpoint.answer for endpoint in self.endpoints))

    @property
    def errors(self) -> ErrorFormat:
        """Of a body whose dialect is not known."""
        return self.endpoints[0].errors

    def endpoint_of(self, body: Any) -> Endpoint | Instant:
        return next(endpoint for endpoint in self.endpoints if type(body) is endpoint.body)

    def errors_of(self, fields: Mapping[str, Any]) -> ErrorFormat:
        """For a body with these fields, which may be wrong."""
        return next((endpoint.errors for key, endpoint in self.by_key.items() if key in fields), self.errors)


class Endpoints:
    """All that answer later, by name."""

    def __init__(self, posts: Iterable[Post]) -> None:
        found = [endpoint for post in posts for endpoint in post.endpoints if isinstance(endpoint, Endpoint)]
        self._by_name = {endpoint.name: endpoint for endpoint in found}

    def of(self, work: Work) -> Endpoint:
        """Raises JobNotFound for one that only another version knows."""
        if work.record.endpoint not in self._by_name:
            raise JobNotFound("This job was created by another version of the server.")
        return self._by_name[work.record.endpoint]


class _Whole:
    def __init__(self, endpoint: Endpoint, work: Work) -> None:
        self._endpoint = endpoint
        self._work = work
        self._tallies = [Tally(work.record.n) for _ in work.request.job_ids]

    def opening(self) -> Any:
        return {"id": self._work.id, "object": "job", "model": self._work.record.model}

    def of(self, job: int, event: Progress) -> Iterable[Any]:
        self._tallies[job].add(event)
        return ()

    def closing(self, usage: Usage, timings: Timings | None) -> Iterable[Any]:
        outcomes = [tally.outcome() for tally in self._tallies]
        yield self._endpoint.render(self._work, outcomes).model_dump(mode="json")

    def failed(self, problem: Problem) -> Any:
        return self._endpoint.errors.body(problem)
