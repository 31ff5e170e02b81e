"""A client that streams `/generate_stream` over persistent connections and measures the times.

The client shares this machine with the servers that it measures, so it has to be cheap. It parses
headers with httptools, searches the frames for a few words, and decodes only the last frame.
"""

import asyncio
import json
from dataclasses import dataclass
from time import perf_counter as now
from typing import Any
from urllib.parse import urlsplit

import httptools

from scripts.bench.loads.plan import ClientRequest

# Connections that were idle for longer are not used again, as servers close idle ones (uvicorn
# after 5 seconds).
_IDLE_S = 3.0
_TEXT = b'"text":"'
_NO_TEXT = b'"text":""'
_USAGE = b'"usage"'


@dataclass
class Outcome:
    """The outcome of one request.

    `ended_at` is the `perf_counter` time of its end. The other times are seconds since the request
    was due. `status` is 0 if the connection broke.
    """

    request: ClientRequest
    status: int = 0
    reason: str = ""
    first_token_s: float | None = None
    last_token_s: float | None = None
    ended_s: float = 0.0
    ended_at: float = 0.0
    tokens: int = 0

    @property
    def is_answered(self) -> bool:
        return self.status == 200 and not self.reason


class Caller:
    """A client of one server, which sends `headers` with each request."""

    def __init__(self, url: str, headers: dict[str, str] | None = None) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or "127.0.0.1"
        self._port = parts.port or 80
        self._headers = headers or {}
        self._idle: list[tuple[_Connection, float]] = []

    async def send(self, request: ClientRequest, due: float) -> Outcome:
        """Send a request, wait for the end of its answer, and return the outcome.

        `due` is in `perf_counter` time. All times count from it, so they include a delay before the
        request is sent.
        """
        outcome = Outcome(request)
        try:
            connection = await self._connection()
            await connection.send(self._message(request), outcome, due)
            self._idle.append((connection, now()))
        except OSError as error:
            outcome.status = 0
            outcome.reason = type(error).__name__
        outcome.ended_at = now()
        outcome.ended_s = outcome.ended_at - due
        return outcome

    def close(self) -> None:
        for connection, _ in self._idle:
            connection.close()

    async def _connection(self) -> "_Connection":
        """Return an open connection that was idle only shortly, or a new one."""
        while self._idle:
            connection, since = self._idle.pop()
            if connection.is_open and now() - since < _IDLE_S:
                return connection
            connection.close()
        _, connection = await asyncio.get_running_loop().create_connection(
            _Connection, self._host, self._port
        )
        return connection

    def _message(self, request: ClientRequest) -> bytes:
        """Return the bytes of an HTTP request."""
        body = {
            "prompts": request.prompts,
            "max_tokens": request.tokens,
            "temperature": 0.7,
            "seed": 1,
            "ignore_eos": not request.may_end,
        }
        payload = json.dumps(body).encode()
        headers = {
            "Host": self._host,
            "Content-Type": "application/json",
            "X-Priority": request.priority,
            **self._headers,
            "Content-Length": str(len(payload)),
        }
        lines = ["POST /generate_stream HTTP/1.1"]
        for name, value in headers.items():
            lines.append(f"{name}: {value}")
        head = "\r\n".join([*lines, "", ""])
        return head.encode() + payload


class _Connection(asyncio.Protocol):
    """One connection, which carries one request after the other."""

    def __init__(self) -> None:
        self.is_open = False
        self._transport: asyncio.Transport | None = None
        self._answered: asyncio.Future[None] | None = None

    async def send(self, message: bytes, outcome: Outcome, due: float) -> None:
        """Send a request, and fill in the outcome until the answer has ended.

        If this is cancelled, the connection is closed. Raises ConnectionError if it breaks.
        """
        if self._transport is None:
            raise ConnectionError("closed")
        self._outcome = outcome
        self._due = due
        self._rest = b""
        self._parser: Any = httptools.HttpResponseParser(self)
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.write(message)
        try:
            await self._answered
        except asyncio.CancelledError:
            self.close()
            raise

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.is_open = True

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self.is_open = False
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(error or ConnectionResetError("closed in the middle"))

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"x-reject-reason":
            self._outcome.reason = value.decode()

    def on_headers_complete(self) -> None:
        self._outcome.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        # Behind the last blank line begins a frame whose rest is still to come.
        *frames, self._rest = (self._rest + body).split(b"\n\n")
        for frame in frames:
            if _USAGE in frame:
                event = json.loads(frame.partition(b"data: ")[2])
                self._outcome.tokens = event["usage"]["completion_tokens"]
            elif b"event: error" in frame or b'"error"' in frame:
                self._outcome.reason = "error in the stream"
            elif _TEXT in frame and _NO_TEXT not in frame:
                self._outcome.last_token_s = now() - self._due
                if self._outcome.first_token_s is None:
                    self._outcome.first_token_s = self._outcome.last_token_s

    def on_message_complete(self) -> None:
        assert self._answered is not None
        if not self._answered.done():
            self._answered.set_result(None)
