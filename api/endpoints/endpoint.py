"""The table of endpoints, with a row for each way to ask for work.

HTTP, `/v1/jobs` and tests read the same rows. The functions of a row are pure: a body becomes
tasks, and outcomes become JSON. So every front renders the same answer from the same record, at any
time and any number of times.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from fastapi.routing import APIRoute
from pydantic import BaseModel

from api.http.error_format import PLAIN, ErrorFormat
from api.http.problem import Problem
from api.http.request_state import Usage
from api.stream.request_events import JobEvent, Outcome, OutcomeBuilder
from api.stream.stream_format import EVENTS, EVENTS_WITH_DONE, StreamFormat
from api.stream.timings import Timings
from api.submit.limits import Limits, TokenBudget
from api.submit.request_record import SubmittedWork
from shared.errors import JobNotFound
from shared.messages import ModelInfo, ProblemKind, Progress, Task, TaskName


class StreamRenderer(Protocol):
    """Renders the JSON payloads of one stream.

    The payloads of an event depend on the events of its own job alone. So a cursor stays good when
    the events of several jobs come in another order.
    """

    def opening(self) -> Any:
        """Return the payload that begins the stream, or None in a dialect without one."""

    def of(self, job: int, event: JobEvent) -> Iterable[Any]:
        """Return the payloads of an event of the job with this number in its request."""

    def closing(self, usage: Usage, timings: Timings | None) -> Iterable[Any]:
        """Return the payloads that follow when all jobs are done.

        A timed endpoint gets `timings`, unless Redis does not answer. Any other ignores them.
        """

    def failed(self, problem: Problem) -> Any:
        """Return the last payload of a stream that ends with an error."""


@dataclass(frozen=True)
class TaskPlan:
    """The tasks of a request, of `n` choices each, and notes that rendering will need.

    `leaders` are as in `SubmitRequest`.
    """

    tasks: Sequence[Task]
    budget: TokenBudget | None = None
    n: int = 1
    notes: Mapping[str, Any] = field(default_factory=dict)
    leaders: Sequence[int | None] = ()

    @property
    def capped_at(self) -> int | None:
        """The most tokens of a completion, where the server's cap allows fewer than asked for."""
        if self.budget is None or not self.budget.is_clamped:
            return None
        return self.budget.max_tokens


def _has_stream(body: Any) -> bool:
    return bool(getattr(body, "stream", False))


def _model_of(body: Any) -> str | None:
    return body.model  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Endpoint:
    """A way to ask for work that workers do.

    `name` stands in the records of requests. The model must serve `task`. `plan` raises
    InvalidRequest where the limits or the model forbid the body. `render` returns an `answer`.
    Without `stream` a stream has the whole answer in its last frame. `bare_stream_format` replaces
    `stream_format` for callers who ask for a stream and do not accept events. The answers of a
    timed endpoint tell how long they took. One that `sends_file` answers with the bytes of the file
    that its task has made; elsewhere its `answer` tells of that file. For one `with_file_bytes` the
    files of a whole answer are read before it is rendered. Where no model is named, one for
    `problems` does problems of that kind. `model_of` and `is_streamed` read a
    body: the model that it names, and whether it asks for a stream.
    """

    name: str
    task: TaskName
    body: type[BaseModel]
    answer: Any
    plan: Callable[[Any, ModelInfo, Limits], TaskPlan]
    render: Callable[[SubmittedWork, Sequence[Outcome]], BaseModel]
    stream: Callable[[SubmittedWork], StreamRenderer] | None = None
    stream_format: StreamFormat = EVENTS_WITH_DONE
    bare_stream_format: StreamFormat | None = None
    errors: ErrorFormat = PLAIN
    is_timed: bool = False
    sends_file: bool = False
    with_file_bytes: bool = False
    problems: ProblemKind | None = None
    model_of: Callable[[Any], str | None] = _model_of
    is_streamed: Callable[[Any], bool] = _has_stream

    def stream_renderer(self, work: SubmittedWork) -> StreamRenderer:
        if self.stream is None:
            return WholeAnswerStream(self, work)
        return self.stream(work)


@dataclass(frozen=True)
class ImmediateEndpoint:
    """A way to ask that needs no model: the front answers by itself.

    `render` gets the body and the id of the request. `stream` returns the payloads of a stream,
    from the body and the whole answer.
    """

    body: type[BaseModel]
    answer: Any
    render: Callable[[Any, str], BaseModel]
    stream: Callable[[Any, Any], Iterable[Any]]
    stream_format: StreamFormat = EVENTS
    errors: ErrorFormat = PLAIN
    is_streamed: Callable[[Any], bool] = _has_stream


@dataclass(frozen=True)
class Post:
    """A path, and the endpoints that it serves. The type of the parsed body tells several apart.

    `name` and `summary` are for the OpenAPI document. `body` is the union of the endpoints' bodies,
    annotated with the validator that chooses among them; None for a single endpoint. `by_key` tells
    dialects apart by a key of the body before it is parsed, so that errors are in the caller's
    dialect. `job_task` is the name of this path in `POST /v1/jobs`; "" where it has none. A
    `route_class` makes a body of what comes, for a path that takes more than bodies.
    """

    path: str
    name: str
    summary: str
    endpoints: tuple[Endpoint | ImmediateEndpoint, ...]
    tag: str
    body: Any = None
    by_key: Mapping[str, Endpoint] = field(default_factory=dict)
    always_streams: bool = False
    job_task: str = ""
    route_class: type[APIRoute] | None = None

    @property
    def body_type(self) -> Any:
        if self.body is None:
            return self.endpoints[0].body
        return self.body

    @property
    def answer(self) -> Any:
        """The union of the types of the endpoints' answers."""
        union = self.endpoints[0].answer
        for endpoint in self.endpoints[1:]:
            union = union | endpoint.answer
        return union

    @property
    def errors(self) -> ErrorFormat:
        """The format for a body whose dialect is not known."""
        return self.endpoints[0].errors

    def endpoint_of(self, body: Any) -> Endpoint | ImmediateEndpoint:
        """Return the endpoint of a parsed body, by its type."""
        return next(endpoint for endpoint in self.endpoints if type(body) is endpoint.body)

    def errors_of(self, fields: Mapping[str, Any]) -> ErrorFormat:
        """Return the format for a body with these fields, which may be wrong."""
        for key, endpoint in self.by_key.items():
            if key in fields:
                return endpoint.errors
        return self.errors


class Endpoints:
    """The endpoints by name: a record leads back to the one that renders it."""

    def __init__(self, posts: Iterable[Post]) -> None:
        self._by_name: dict[str, Endpoint] = {}
        for post in posts:
            for endpoint in post.endpoints:
                if isinstance(endpoint, Endpoint):
                    self._by_name[endpoint.name] = endpoint

    def of(self, work: SubmittedWork) -> Endpoint:
        """Return the endpoint of a request. Raise JobNotFound for one that this version lacks."""
        if work.record.endpoint not in self._by_name:
            raise JobNotFound("This job was created by another version of the server.")
        return self._by_name[work.record.endpoint]


def progress_payload(request_id: str, job: int, progress: Progress) -> dict[str, Any]:
    """Return the payload of a stream that tells how far the job with this number has come."""
    return {
        "id": request_id,
        "object": "job.progress",
        "job": job,
        "done": progress.done,
        "total": progress.total,
        "note": progress.note,
    }


class WholeAnswerStream:
    """The stream of an endpoint that has none of its own: progress, then the whole answer."""

    def __init__(self, endpoint: Endpoint, work: SubmittedWork) -> None:
        self._endpoint = endpoint
        self._work = work
        self._builders = [OutcomeBuilder(work.record.n) for _ in work.request.job_ids]

    def opening(self) -> Any:
        return {"id": self._work.id, "object": "job", "model": self._work.record.model}

    def of(self, job: int, event: JobEvent) -> Iterable[Any]:
        self._builders[job].add(event)
        if isinstance(event, Progress):
            yield self._progress(job, event)

    def _progress(self, job: int, progress: Progress) -> Any:
        """Return the payload of a progress of the job with this number."""
        return progress_payload(self._work.id, job, progress)

    def closing(self, usage: Usage, timings: Timings | None) -> Iterable[Any]:
        outcomes = [builder.outcome() for builder in self._builders]
        yield self._endpoint.render(self._work, outcomes).model_dump(mode="json")

    def failed(self, problem: Problem) -> Any:
        return self._endpoint.errors.body(problem)
