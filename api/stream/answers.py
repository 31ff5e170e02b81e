"""The forms of an answer: whole, as a stream from any frame on, or a 202 with the job's address.

This module knows no dialect: an endpoint's renderers make the bodies.
"""

from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import replace

from fastapi.responses import JSONResponse, Response, StreamingResponse

from api.access.caller import Caller
from api.deps import Front
from api.endpoints.endpoint import Endpoint, StreamRenderer
from api.http.headers import JOB_ID, answer_headers
from api.http.problem import problem_of
from api.http.request_state import RequestState, Usage
from api.redis_timeout import redis_answers
from api.schemas.plain_text import PlainText
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

_MOST_INLINE = 64 << 20
"""The most bytes of files that stand in one answer."""


@redis_answers()
async def attached(
    front: Front,
    request: Request,
    caller: Caller,
    cursor: Cursor | None = None,
    *,
    stays: bool = True,
) -> RequestFollower:
    """Return a follower of a request that was submitted before.

    A caller that does not stay to the end does not count as a follower: its leaving ends nothing.
    Raise JobNotFound, and InvalidRequest for a wrong cursor.
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
    """Return the whole answer, in the endpoint's dialect."""
    answer = endpoint.render(work, outcomes)
    headers = answer_headers(work, outcomes)
    if isinstance(answer, PlainText):
        return Response(answer.root, media_type="text/plain", headers=headers)
    return Response(answer.model_dump_json(), media_type="application/json", headers=headers)


@redis_answers()
async def made_file_of(front: Front, work: SubmittedWork, outcomes: Sequence[Outcome]) -> Response:
    """Return the bytes of the file that the only task of a request has made.

    Raise ArtifactNotFound for one that has expired, and StorageUnavailable.
    """
    [file] = outcomes[0].artifacts
    artifact = await front.artifacts.find(work.request.tenant, file.id)
    pieces = await front.artifacts.read(artifact)
    headers = answer_headers(work, outcomes)
    headers["Content-Length"] = str(artifact.num_bytes)
    return StreamingResponse(pieces, media_type=artifact.media_type, headers=headers)


@redis_answers()
async def with_file_bytes(
    front: Front, work: SubmittedWork, outcomes: Sequence[Outcome]
) -> list[Outcome]:
    """Return the outcomes with the bytes of their files.

    Raise ArtifactNotFound, PayloadTooLarge for files of more than `_MOST_INLINE` bytes together,
    and StorageUnavailable.
    """
    room = _MOST_INLINE
    filled = []
    for outcome in outcomes:
        data = []
        for file in outcome.artifacts:
            data.append(
                await front.artifacts.read_all(work.request.tenant, file.id, max_bytes=room)
            )
            room -= len(data[-1])
        filled.append(replace(outcome, file_bytes=tuple(data)))
    return filled


async def timings_at_end(front: Front, work: SubmittedWork, usage: Usage) -> Timings | None:
    """Return the timings of a request that has ended, None when Redis does not answer.

    The answer is there by then, and may not fail for want of them.
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

    The frames are in the endpoint's format unless another one is given. The headers tell as much as
    is known when the first frame comes. Timings are a comment behind the last frame, if the format
    may have comments.
    """
    started: dict[int, Started] = {}
    renderer = endpoint.stream_renderer(follower.work)
    stream_format = stream_format or endpoint.stream_format
    follower.note_in(request_state)

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
    """One reader's way through a stream.

    The stream is rendered from the beginning of the logs, because renderers have a state, and sent
    from behind the cursor `seen`. That is None for a reader who has seen nothing. Jobs that have
    started are noted in `started`.
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
        """Yield frames until all jobs are done.

        The first one comes with the first token, or when that is slow to come. So a request that
        fails at once is answered with a status of its own.
        """
        is_open = self._seen is not None
        async for arrived in run.progress(keepalive_s):
            if arrived is not None and isinstance(arrived.event, Started):
                self._started[arrived.job] = arrived.event
            elif not is_open:
                is_open = True
                yield self._opening()
            if arrived is None:
                yield self._stream_format.keep_alive
            else:
                for frame in self._of(arrived):
                    yield frame

    def _opening(self) -> bytes:
        payload = self._renderer.opening()
        if payload is None:
            return self._stream_format.keep_alive
        return self._stream_format.frame(payload, str(self._at))

    def _of(self, arrived: RequestEvent) -> Iterator[bytes]:
        """Yield the frames of an event, without those that the reader has seen."""
        job = arrived.job
        index = arrived.index
        payloads = list(self._renderer.of(job, arrived.event))
        behind_event = self._at.at(job, index)
        for number, payload in enumerate(payloads):
            if number + 1 == len(payloads):
                self._at = behind_event
            else:
                # The event is not sent whole yet: the cursor counts its frames.
                self._at = behind_event.at(job, index - 1, number + 1)
            if self._seen is None or not self._seen.has(job, index, number):
                yield self._stream_format.frame(payload, str(self._at))
        # An event may have no frames at all.
        self._at = behind_event

    def closing(self, usage: Usage, timings: Timings | None) -> Iterator[bytes]:
        """Yield the frames that follow when all jobs are done."""
        for number, payload in enumerate(self._renderer.closing(usage, timings)):
            self._at = self._at.closed(number + 1)
            if self._seen is None or number >= self._seen.closing:
                yield self._stream_format.frame(payload, str(self._at))
