"""Server-sent events as a response: headers, frames, and errors that come after the first frame.

Until the first frame the status line is open, so an error before it becomes an ordinary error answer. Listens to no
disconnect: the run behind the frames does, and raises HungUp.

Every block has data: some clients take one without for an event, and fail. So `retry:` and `id:` stand in the block of
a frame, and no blank line follows a comment or the last words of a front that drains.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.errors import HungUp
from api.trail import trail_of
from shared.errors import Draining, FleetError

KEEP_ALIVE = b": keep-alive\n"
DONE = b"data: [DONE]\n\n"
RETRY = b"retry: 1000\n"
RECONNECT = b"retry: 100\n: reconnect\n"

_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def data(payload: Any, id: str = "") -> bytes:
    """One event with a JSON payload, and the id by which a reader can ask for what comes behind it."""
    name = f"id: {id}\n".encode() if id else b""
    return name + b"data: " + msgspec.json.encode(payload) + b"\n\n"


class EventStream(Response):
    """Sends `frames`; `last_words` renders an error that comes when the stream has begun, `headers` are asked for when
    it begins."""

    media_type = "text/event-stream"

    def __init__(
        self,
        frames: AsyncGenerator[bytes, None],
        last_words: Callable[[FleetError], bytes],
        headers: Callable[[], dict[str, str]],
    ) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._more_headers = headers
        self._frames = frames
        self._last_words = last_words

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False
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
            trail_of(scope).error = error.code
            if isinstance(error, Draining):
                await _send_frame(send, RECONNECT)
            elif not isinstance(error, HungUp):
                await _send_frame(send, self._last_words(error))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _begin(self, send: Send) -> None:
        self.headers.update(self._more_headers())
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await _send_frame(send, RETRY)


async def _send_frame(send: Send, frame: bytes) -> None:
    await send({"type": "http.response.body", "body": frame, "more_body": True})
