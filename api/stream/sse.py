"""A stream as a response: headers, frames, and errors that come after the first frame.

Until the first frame the status line is open, so an error before it becomes an ordinary error
answer. A disconnect is noticed not here but by the dispatcher, whose ClientDisconnected comes out
of the frames.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.http.errors import ClientDisconnected
from api.http.request_state import request_state_of
from api.stream.stream_format import StreamFormat
from shared.errors import Draining, FleetError

_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class EventStream(Response):
    """Sends `frames`. A HEAD request gets the head of the answer alone.

    `last_words` renders an error that comes when the stream has begun. `headers` is called when it
    begins.
    """

    def __init__(
        self,
        frames: AsyncGenerator[bytes, None],
        stream_format: StreamFormat,
        last_words: Callable[[FleetError], bytes],
        headers: Callable[[], dict[str, str]],
    ) -> None:
        super().__init__(headers=_HEADERS, media_type=stream_format.media_type)
        # Starlette has set that of an empty body.
        del self.headers["content-length"]
        self._stream_format = stream_format
        self._more_headers = headers
        self._frames = frames
        self._last_words = last_words

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False
        if request_state_of(scope).is_head:
            await self._begin(send)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        try:
            async with aclosing(self._frames) as frames:
                async for frame in frames:
                    if not has_begun:
                        has_begun = True
                        await self._begin(send)
                    await _send_frame(send, frame)
        except FleetError as error:
            if not has_begun:
                raise
            request_state_of(scope).error = error.code
            if not self._stream_format.tells_errors:
                return  # without an end of the body, so that the server breaks the connection
            if isinstance(error, Draining):
                await _send_frame(send, self._stream_format.reconnect)
            elif not isinstance(error, ClientDisconnected):
                await _send_frame(send, self._last_words(error))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _begin(self, send: Send) -> None:
        self.headers.update(self._more_headers())
        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        await _send_frame(send, self._stream_format.opening)


async def _send_frame(send: Send, frame: bytes) -> None:
    if frame:
        await send({"type": "http.response.body", "body": frame, "more_body": True})
