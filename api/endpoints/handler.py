"""Make routes of the rows in the table of endpoints: one way through for all that asks for work.

The way leads from the context of the request to `submit`, then to `respond`. `POST /v1/jobs` goes
the same way.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from inspect import getdoc
from typing import Any, get_args

from fastapi import APIRouter, Depends, Request, Response

from api.endpoints.context import RequestContext, RequestContextDep
from api.endpoints.endpoint import Endpoint, ImmediateEndpoint, Post
from api.endpoints.form_route import form_fields_of, form_route, form_schema
from api.http.media_types import FORM
from api.http.request_state import request_state_of
from api.schemas.errors import (
    FILE,
    LATER,
    PLAIN_TEXT,
    STREAM,
    STREAM_ALONE,
    STREAM_OR_PLAIN_TEXT,
    STREAM_OR_TEXT,
    Responses,
    errors_of,
)
from api.schemas.plain_text import PlainText
from api.stream.respond import respond, resume
from api.stream.sse import EventStream
from api.submit.submission import submit
from shared.errors import FleetError
from shared.messages import TaskName
from shared.tasks.task_table import TASKS

TASKS_KEY = "x-tasks"
"""The key of an operation's tasks in the OpenAPI document."""


async def answer(context: RequestContext, post: Post, body: Any) -> Response:
    """Have the work of a parsed body done, and return the answer of its endpoint.

    Raise the FleetErrors of admission and of the jobs.
    """
    endpoint = post.endpoint_of(body)
    if post.always_streams and "stream" in endpoint.body.model_fields:
        body = body.model_copy(update={"stream": True})
    is_streamed = post.always_streams or endpoint.is_streamed(body)
    if isinstance(endpoint, ImmediateEndpoint):
        return _answer_at_once(context, endpoint, body, is_streamed=is_streamed)
    accepts_events = post.always_streams or "text/event-stream" in context.options.accept
    stream_format = None if accepts_events else endpoint.bare_stream_format
    if is_streamed and context.options.last_event_id:
        return await resume(context, endpoint, stream_format)
    follower = await submit(context, endpoint, body, is_streamed=is_streamed)
    return await respond(context, endpoint, follower, stream_format, is_streamed=is_streamed)


def add_route(router: APIRouter, post: Post) -> None:
    """Serve a row at its path."""

    async def handler(body: Any, context: RequestContextDep) -> Response:
        return await answer(context, post, body)

    handler.__name__ = post.name
    handler.__doc__ = post.summary
    handler.__annotations__["body"] = post.body_type
    declared: dict[str, Any] = {"response_model": post.answer}
    if post.always_streams or _sends_file(post):
        declared = {"response_class": Response}
    described: dict[str, Any] = {TASKS_KEY: tasks_of(post)}
    declared["openapi_extra"] = described
    form = form_fields_of(endpoint.body for endpoint in post.endpoints)
    if form is not None:
        content = {FORM: {"schema": form_schema(form)}}
        described["requestBody"] = {"content": content}
        declared["route_class_override"] = form_route(form)
    if post.route_class is not None:
        # Its bodies are not those of the document.
        declared["route_class_override"] = post.route_class
        declared["include_in_schema"] = False
    router.add_api_route(
        post.path,
        handler,
        methods=["POST"],
        tags=[post.tag],
        dependencies=_dependencies(post),
        responses=_responses(post),
        **declared,
    )


def tasks_of(post: Post) -> list[dict[str, str]]:
    """Return what a path can be asked for, for programs that read the OpenAPI document.

    `task` is one of those that models serve (`/api/models/status`). `name` is the endpoint's own
    name of it, and `body` the title of the schema of its bodies.
    """
    rows = []
    for endpoint in post.endpoints:
        if isinstance(endpoint, Endpoint):
            rows.append(
                {
                    "task": endpoint.task,
                    "name": endpoint.name.rpartition("/")[2],
                    "body": endpoint.body.__name__,
                    "about": _about(endpoint.task),
                }
            )
    return rows


def _about(task: TaskName) -> str:
    """Return the first sentence about a task."""
    if task not in TASKS:
        return ""
    text = " ".join((getdoc(TASKS[task].spec) or "").split())
    return text.partition(". ")[0].rstrip(".") + "."


def _dependencies(post: Post) -> list[Any]:
    """Return the dependency that chooses the format of errors, where dialects share a path.

    It looks at the body's keys before the body is validated.
    """
    if not post.by_key:
        return []

    async def peek(request: Request) -> None:
        with suppress(ValueError):  # this is no JSON: the route refuses it
            body = await request.json()
            if isinstance(body, dict):
                request_state_of(request.scope).errors = post.errors_of(body)

    return [Depends(peek)]


def _responses(post: Post) -> Responses:
    """Return the responses that the OpenAPI document lists besides the answer itself."""
    formats = [endpoint.errors.schema for endpoint in post.endpoints]
    endpoints = [endpoint for endpoint in post.endpoints if isinstance(endpoint, Endpoint)]
    responses = errors_of(*formats) | LATER
    if post.always_streams:
        responses |= STREAM_ALONE
    elif any(endpoint.bare_stream_format for endpoint in endpoints):
        responses |= STREAM_OR_TEXT
    else:
        responses |= _answer_of(post, endpoints)
    return responses


def _sends_file(post: Post) -> bool:
    return any(getattr(endpoint, "sends_file", False) for endpoint in post.endpoints)


def _answer_of(post: Post, endpoints: Sequence[Endpoint]) -> Responses:
    """Return the forms of an answer besides JSON, where there are some."""
    if _sends_file(post):
        return FILE
    has_stream = any("stream" in endpoint.body.model_fields for endpoint in endpoints)
    if PlainText in get_args(post.answer):
        return STREAM_OR_PLAIN_TEXT if has_stream else PLAIN_TEXT
    return STREAM if has_stream else {}


def _answer_at_once(
    context: RequestContext, endpoint: ImmediateEndpoint, body: Any, *, is_streamed: bool
) -> Response:
    """Answer without a job, and so without a job's headers."""
    whole = endpoint.render(body, context.request_state.request_id)
    if not is_streamed:
        return Response(whole.model_dump_json(), media_type="application/json")

    async def frames() -> AsyncGenerator[bytes, None]:
        for payload in endpoint.stream(body, whole):
            yield endpoint.stream_format.frame(payload, "")

    def last_words(error: FleetError) -> bytes:
        return b""  # nothing fails once the stream has begun

    def headers() -> dict[str, str]:
        return {}

    return EventStream(frames(), endpoint.stream_format, last_words, headers)
