"""Answer a request whose work was submitted: whole, as a stream, or with a 202."""

from dataclasses import replace

from fastapi.responses import Response

from api.endpoints.context import RequestContext
from api.endpoints.endpoint import Endpoint
from api.redis_timeout import redis_answers
from api.stream.answers import (
    accepted,
    attached,
    made_file_of,
    stream,
    timings_at_end,
    whole,
    with_file_bytes,
)
from api.stream.cursor import HEADER, Cursor
from api.stream.dispatch import RequestFollower, StillRunning
from api.stream.request_events import total_usage
from api.stream.stream_format import StreamFormat
from api.stream.timings import timing_headers
from api.submit.cache import CACHE
from api.submit.request_record import work_of
from shared.errors import InvalidRequest


async def respond(
    context: RequestContext,
    endpoint: Endpoint,
    follower: RequestFollower,
    stream_format: StreamFormat | None,
    *,
    is_streamed: bool,
) -> Response:
    """Answer in the form that the caller asked for. Raise the FleetErrors of the jobs."""
    follower.note_in(context.request_state)
    if not follower.is_first:
        context.front.metrics.replays.labels("cache" if follower.cache else "key").inc()
    if not context.stays:
        answer = await _leave(context, follower)
    elif is_streamed:
        answer = _stream(context, endpoint, follower, stream_format)
    else:
        answer = await _whole(context, endpoint, follower)
    if follower.cache:
        answer.headers[CACHE] = follower.cache
    return answer


@redis_answers()
async def resume(
    context: RequestContext, endpoint: Endpoint, stream_format: StreamFormat | None
) -> Response:
    """Go on with a stream of which the caller has seen a part. Nothing is submitted.

    Raise JobNotFound, and InvalidRequest for a wrong cursor.
    """
    seen = Cursor.parse(context.options.last_event_id)
    request = await context.front.requests.find(seen.request_id, context.caller.tenant)
    if work_of(request).record.endpoint != endpoint.name:
        raise InvalidRequest(
            f"{HEADER}: expected the id of a frame of this endpoint.", field=HEADER
        )
    follower = await attached(context.front, request, context.caller, seen)
    answer = _stream(context, endpoint, follower, stream_format, seen)
    context.front.metrics.replays.labels("resume").inc()
    return answer


async def _whole(
    context: RequestContext, endpoint: Endpoint, follower: RequestFollower
) -> Response:
    front = context.front
    options = context.options
    request_state = context.request_state
    try:
        outcomes = await front.dispatcher.gather(follower, context.receive, options.wait_s)
    except StillRunning:
        return await _leave(context, follower)
    request_state.usage = total_usage(outcomes)
    timings = None
    if endpoint.is_timed or options.with_timings:
        timings = await timings_at_end(front, follower.work, request_state.usage)
    if endpoint.sends_file:
        answer = await made_file_of(front, follower.work, outcomes)
    else:
        if endpoint.with_file_bytes:
            outcomes = await with_file_bytes(front, follower.work, outcomes)
        answer = whole(endpoint, replace(follower.work, timings=timings), outcomes)
    if options.preferences:
        answer.headers["Preference-Applied"] = options.preferences[-1]
    if options.with_timings and timings is not None:
        answer.headers.update(timing_headers(timings))
    return answer


def _stream(
    context: RequestContext,
    endpoint: Endpoint,
    follower: RequestFollower,
    stream_format: StreamFormat | None,
    seen: Cursor | None = None,
) -> Response:
    return stream(
        context.front,
        endpoint,
        follower,
        context.receive,
        context.request_state,
        seen=seen,
        stream_format=stream_format,
        with_timings=context.options.with_timings,
    )


async def _leave(context: RequestContext, follower: RequestFollower) -> Response:
    """Answer 202. The caller will ask again, so this front follows the jobs for nobody."""
    if follower.is_first:
        context.front.dispatcher.follow_in_background(follower)
    return await accepted(context.front, follower.work, context.options.preferences)
