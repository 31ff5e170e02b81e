"""The forms of an answer: whole, as a stream from any frame on, or a 202 with the job's address.

Knows no dialect: an endpoint's renderers make the bodies.
"""

from collections.abc import AsyncGenerator, Iterator, Sequence

from fastapi.responses import JSONResponse, Response

from api.access.caller import Caller
from api.deps import Front
from api.endpoints.endpoint import Endpoint, StreamRenderer
from api.http.headers import JOB_ID, answer_headers
from api.http.problem import problem_of
from api.http.request_state import RequestState, Usage
from api.redis_timeout import redis_answers
from api.stream.cursor import Cursor
from api.stream.dispatch import Receive, RequestFollower
from api.stream.request_events import Outcome, RequestEvent, RequestEvents
from api.stream.sse import EventStream
from api.stream.stream_format import StreamFormat
from api.stream.timings import Timings, timing_comment, timings_of
from api.submit.request_record import SubmittedWork, work_of
from shared.errors import FleetError
from shared.messages import Started
from shared.queue.broker import UNAVAILABLE
from shared.queue.requests import Request, state_of


@redis_answers()
async def attached(
    front: Front,
    request: Request,
    caller: Caller,
    cursor: Cursor | None = None,
    *,
    stays: bool = True,
) -> RequestFollower:
    """Follow a request that somebody else has submitted.

    One who does not stay to the end does not count as a follower. Raise JobNotFound, and
    InvalidRequest for a wrong cursor.
    """
    work = work_of(request)
    snapshots = await front.requests.look(request)
    if cursor is not None:
        cursor.check(request.id, [snapshot.last_index for snapshot in snapshots])
    follower_id = ""
    if stays and work.record.on_disconnect != "continue":
        follower_id = await front.requests.follow(request)
    return RequestFollower(
        work,
        queue_s=max(0.0, min(snapshot.queue_s for snapshot in snapshots)),
        deadline_s=max(0.0, min(snapshot.deadline_s for snapshot in snapshots)),
        follower_id=follower_id,
        is_first=False,
        caller=caller,
    )


def whole(endpoint: Endpoint, work: SubmittedWork, outcomes: Sequence[Outcome]) -> Response:
    body = endpoint.render(work, outcomes).model_dump_json()
    return Response(body, media_type="application/json", headers=answer_headers(work, outcomes))


async def timings_at_end(front: Front, work: SubmittedWork, usage: Usage) -> Timings | None:
    """Return the timings of a request that has ended, None when Redis does not answer.

    An answer that is there does not depend on them.
    """
    try:
        async with redis_answers():
            snapshots = await front.requests.look(work.request)
    except (FleetError, *UNAVAILABLE):
        return None
    return timings_of([snapshot.times for snapshot in snapshots], usage.completion_tokens)


@redis_answers()
async def accepted(front: Front, work: SubmittedWork, preferences: Sequence[str]) -> Response:
    """Return a 202 with the address of the job."""
    state = state_of(await front.requests.look(work.request))
    headers = {"Location": f"/v1/jobs/{work.id}", JOB_ID: work.id}
    if preferences:
        headers["Preference-Applied"] = ", ".join(preferences)
    return JSONResponse({"id": work.id, "state": state}, 202, headers)


def stream(
    front: Front,
    endpoint: Endpoint,
    follower: RequestFollower,
    receive: Receive,
    request_state: RequestState,
    *,
    seen: Cursor | None = None,
    stream_format: StreamFormat | None = None,
    with_timings: bool = False,
) -> Response:
    """Return a response that streams the request from its beginning, or from behind `seen`.

    The frames are in the endpoint's format unless another one is given. The headers tell what is
    known when the first frame comes. Timings are a comment behind the last frame, if the format may
    have comments.
    """
    started: dict[int, Started] = {}
    renderer = endpoint.stream_renderer(follower.work)
    stream_format = stream_format or endpoint.stream_format
    follower.leave_in(request_state)

    async def frames() -> AsyncGenerator[bytes, None]:
        start = Cursor.start(follower.work.id, len(follower.work.request.job_ids))
        async with front.dispatcher.follow(follower, receive) as events:
            reader = Stream(renderer, stream_format, start, seen, started)
            async for frame in reader.frames(events, front.keepalive_s):
                yield frame
            request_state.usage = events.usage
            timings = None
            if endpoint.is_timed or with_timings:
                timings = await timings_at_end(front, follower.work, events.usage)
            for frame in reader.closing(events.usage, timings):
                yield frame
            if with_timings and timings is not None and stream_format.keep_alive:
                yield timing_comment(timings)
            yield stream_format.end

    def last_words(error: FleetError) -> bytes:
        return stream_format.frame(renderer.failed(problem_of(error)), "") + stream_format.end

    def headers() -> dict[str, str]:
        return answer_headers(follower.work, started.values())

    return EventStream(frames(), stream_format, last_words, headers)


class Stream:
    """One reader's way through a stream: it is told from the beginning of the logs, and sent from
    behind a cursor.

    `seen` is where it was; None for one that has seen
    nothing. Jobs are noted in `started` when they have.
    """

    def __init__(
        self,
        renderer: StreamRenderer,
        stream_format: StreamFormat,
        start: Cursor,
        seen: Cursor | None,
        started: dict[int, Started],
    ) -> None:
        self._renderer = renderer
        self._stream_format = stream_format
        self._started = started
        self._at = start
        self._seen = seen

    async def frames(self, run: RequestEvents, keepalive_s: float) -> AsyncGenerator[bytes, None]:
        """Begins with the first token, or when that is slow to come: what fails at once has a
        status of its own. Ends when all jobs are done."""
        is_open = self._seen is not None
        async for news in run.progress(keepalive_s):
            if news is not None and isinstance(news.event, Started):
                self._started[news.job] = news.event
            elif not is_open:
                is_open = True
                yield self._opening()
            if news is None:
                yield self._stream_format.keep_alive
            else:
                for frame in self._of(news):
                    yield frame

    def _opening(self) -> bytes:
        payload = self._renderer.opening()
        return (
            self._stream_format.keep_alive
            if payload is None
            else self._stream_format.frame(payload, str(self._at))
        )

    def _of(self, news: RequestEvent) -> Iterator[bytes]:
        payloads = list(self._renderer.of(news.job, news.event))
        behind_event = self._at.at(news.job, news.index)
        for number, payload in enumerate(payloads):
            if number + 1 == len(payloads):
                self._at = behind_event
            else:
                self._at = behind_event.at(news.job, news.index - 1, number + 1)
            if self._seen is None or not self._seen.has(news.job, news.index, number):
                yield self._stream_format.frame(payload, str(self._at))
        self._at = behind_event

    def closing(self, usage: Usage, timings: Timings | None) -> Iterator[bytes]:
        """Yield the frames that follow when all jobs are done."""
        for number, payload in enumerate(self._renderer.closing(usage, timings)):
            self._at = self._at.closed(number + 1)
            if self._seen is None or number >= self._seen.closing:
                yield self._stream_format.frame(payload, str(self._at))
