"""The frames of a stream: everything is told from the beginning of the logs, and sent from behind a
cursor."""

from collections.abc import AsyncGenerator, Iterator

from api.endpoints.endpoint import StreamRenderer
from api.http.request_state import Usage
from api.stream.cursor import Cursor
from api.stream.request_events import RequestEvent, RequestEvents
from api.stream.stream_format import StreamFormat
from api.stream.timings import Timings
from shared.messages import Started


class Stream:
    """One reader's way through a stream. `seen` is where it was; None for one that has seen
    nothing. Jobs are noted in `started` when they have."""

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
        before = self._at
        for number, payload in enumerate(payloads):
            is_last = number + 1 == len(payloads)
            self._at = before.at(
                news.job, news.index if is_last else news.index - 1, 0 if is_last else number + 1
            )
            if self._seen is None or not self._seen.has(news.job, news.index, number):
                yield self._stream_format.frame(payload, str(self._at))
        self._at = self._at.at(news.job, news.index)

    def closing(self, usage: Usage, timings: Timings | None) -> Iterator[bytes]:
        """Yield the frames that follow when all jobs are done."""
        for number, payload in enumerate(self._renderer.closing(usage, timings)):
            self._at = self._at.closed(number + 1)
            if self._seen is None or number >= self._seen.closing:
                yield self._stream_format.frame(payload, str(self._at))
