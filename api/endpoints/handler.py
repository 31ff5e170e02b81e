"""One way through for every POST that asks for work: from a row of the table of endpoints to a
route.

The context of the request, then `submit`, then `respond`. `/v1/jobs` goes the same way.
"""

from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

from fastapi import APIRouter, Depends, Request, Response

from api.deps import RequestStateDep
from api.endpoints.context import RequestContext, RequestContextDep
from api.endpoints.endpoint import Endpoint, ImmediateEndpoint, Post
from api.schemas.errors import LATER, STREAM, STREAM_ALONE, STREAM_OR_TEXT, Responses, errors_of
from api.stream.respond import respond, resume
from api.stream.sse import EventStream
from api.submit.submission import submit


async def answer(context: RequestContext, post: Post, body: Any) -> Response:
    """Have the body's endpoint do the work, and return its answer. Raise the FleetErrors of
    admission and the jobs."""
    endpoint = post.endpoint_of(body)
    if post.always_streams and "stream" in endpoint.body.model_fields:
        body = body.model_copy(update={"stream": True})
    is_streamed = post.always_streams or endpoint.is_streamed(body)
    if isinstance(endpoint, ImmediateEndpoint):
        return _instantly(context, endpoint, body, is_streamed=is_streamed)
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
    shown: dict[str, Any] = (
        {"response_class": Response} if post.always_streams else {"response_model": post.answer}
    )
    router.post(
        post.path, tags=[post.tag], dependencies=_peeking(post), responses=_responses(post), **shown
    )(handler)


def _peeking(post: Post) -> list[Any]:
    """Choose the format of errors by the body's keys, for dialects that share a path."""
    if not post.by_key:
        return []

    async def peek(request: Request, request_state: RequestStateDep) -> None:
        with suppress(ValueError):  # no JSON: the route refuses it
            body = await request.json()
            if isinstance(body, dict):
                request_state.errors = post.errors_of(body)

    return [Depends(peek)]


def _responses(post: Post) -> Responses:
    """Return the responses that the OpenAPI document lists besides the answer itself."""
    formats = [endpoint.errors.schema for endpoint in post.endpoints]
    endpoints = [endpoint for endpoint in post.endpoints if isinstance(endpoint, Endpoint)]
    found = errors_of(*dict.fromkeys(formats)) | LATER
    if post.always_streams:
        found |= STREAM_ALONE
    elif any(endpoint.bare_stream_format for endpoint in endpoints):
        found |= STREAM_OR_TEXT
    elif any("stream" in endpoint.body.model_fields for endpoint in endpoints):
        found |= STREAM
    return found


def _instantly(
    context: RequestContext, endpoint: ImmediateEndpoint, body: Any, *, is_streamed: bool
) -> Response:
    whole = endpoint.render(body, context.request_state.request_id)
    if not is_streamed:
        return Response(whole.model_dump_json(), media_type="application/json")

    async def frames() -> AsyncGenerator[bytes, None]:
        for payload in endpoint.stream(body, whole):
            yield endpoint.stream_format.frame(payload, "")

    return EventStream(frames(), endpoint.stream_format, lambda _: b"", dict)
