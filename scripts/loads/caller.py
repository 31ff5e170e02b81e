"""Asking over HTTP and noting when what came: streams of `/generate_stream`, on connections that
are kept.

The client shares this machine with what it measures, so it parses headers with httptools, looks for
marks in the frames, and decodes no more than the last one.
"""

import asyncio
import json
from dataclasses import dataclass
from time import perf_counter as now
from typing import Any
from urllib.parse import urlsplit

import httptools

from scripts.loads.plan import ClientRequest

_IDLE_S = 3.0
"""A connection is used again within this time: servers close those that are idle for some seconds
(uvicorn: 5)."""
_TEXT, _NO_TEXT, _USAGE = b'"text":"', b'"text":""', b'"usage"'


@dataclass
class Heard:
    """What became of one request. Times in seconds since it was due; `status` 0: the connection
    broke."""

    ask: ClientRequest
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
    """Asks one server. `headers` go with each request."""

    def __init__(self, url: str, headers: dict[str, str] | None = None) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._headers = headers or {}
        self._idle: list[tuple[_Connection, float]] = []

    async def ask(self, ask: ClientRequest, due: float) -> Heard:
        """`due` by `perf_counter`; whatever delayed the asking itself is part of the times."""
        heard = Heard(ask)
        try:
            connection = await self._connection()
            await connection.ask(self._message(ask), heard, due)
            self._idle.append((connection, now()))
        except OSError as error:
            heard.status, heard.reason = 0, type(error).__name__
        heard.ended_at = now()
        heard.ended_s = heard.ended_at - due
        return heard

    def close(self) -> None:
        for connection, _ in self._idle:
            connection.close()

    async def _connection(self) -> "_Connection":
        while self._idle:
            connection, since = self._idle.pop()
            if connection.is_open and now() - since < _IDLE_S:
                return connection
            connection.close()
        _, connection = await asyncio.get_running_loop().create_connection(
            _Connection, self._host, self._port
        )
        return connection

    def _message(self, ask: ClientRequest) -> bytes:
        body = {
            "prompts": ask.prompts,
            "max_tokens": ask.tokens,
            "temperature": 0.7,
            "seed": 1,
            "ignore_eos": not ask.may_end,
        }
        payload = json.dumps(body).encode()
        headers = {
            "Host": self._host,
            "Content-Type": "application/json",
            "X-Priority": ask.priority,
            **self._headers,
        }
        lines = [
            "POST /generate_stream HTTP/1.1",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        return "\r\n".join([*lines, f"Content-Length: {len(payload)}", "", ""]).encode() + payload


class _Connection(asyncio.Protocol):
    """One request after the other."""

    def __init__(self) -> None:
        self.is_open = False
        self._transport: asyncio.Transport | None = None
        self._answered: asyncio.Future[None] | None = None

    async def ask(self, message: bytes, heard: Heard, due: float) -> None:
        """Return when the answer has ended. Hangs up when it is cancelled. Raises
        ConnectionError."""
        if self._transport is None:
            raise ConnectionError("closed")
        self._heard, self._due, self._rest = heard, due, b""
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
        self._transport, self.is_open = transport, True

    def connection_lost(self, error: Exception | None) -> None:
        self._transport, self.is_open = None, False
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(error or ConnectionResetError("closed in the middle"))

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"x-reject-reason":
            self._heard.reason = value.decode()

    def on_headers_complete(self) -> None:
        self._heard.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        *frames, self._rest = (self._rest + body).split(b"\n\n")
        for frame in frames:
            if _USAGE in frame:
                self._heard.tokens = json.loads(frame.partition(b"data: ")[2])["usage"][
                    "completion_tokens"
                ]
            elif b"event: error" in frame or b'"error"' in frame:
                self._heard.reason = "error in the stream"
            elif _TEXT in frame and _NO_TEXT not in frame:
                self._heard.last_token_s = now() - self._due
                if self._heard.first_token_s is None:
                    self._heard.first_token_s = self._heard.last_token_s

    def on_message_complete(self) -> None:
        assert self._answered is not None
        if not self._answered.done():
            self._answered.set_result(None)
