"""The HTTP of an engine elsewhere, its upstream: requests with the fleet's key, and its errors.

No message holds the key, or the address, which callers should not see.
"""

import math
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx
import msgspec

from shared.errors import ContextExceeded, FleetError, InvalidRequest, UpstreamFailed, WorkerFailed
from worker.engine.remote_runner import Unanswered

Answer = TypeVar("Answer", bound=msgspec.Struct)

_BUSY = frozenset({408, 425, 429, 502, 503, 504})
"""The statuses of an engine that may answer later."""
_REFUSED_KEY = frozenset({401, 403})
_TOO_LONG = (b"context_length_exceeded", b"maximum context length")
"""OpenAI's code, and its words, which vLLM uses without the code."""
_LONGEST_MESSAGE = 500
_DATA = "data:"
_END = "[DONE]"


@dataclass(frozen=True)
class Address:
    """An engine elsewhere: its URL, and how it is asked. The key is kept out of its description."""

    url: str
    key: str | None = field(default=None, repr=False)
    connect_timeout_s: float = 5.0
    silence_timeout_s: float = 120.0


class Upstream:
    """The connections to an engine elsewhere. They belong to one event loop."""

    def __init__(self, address: Address) -> None:
        self._url = address.url
        self._silence_s = address.silence_timeout_s
        headers = {}
        if address.key is not None:
            headers["Authorization"] = f"Bearer {address.key}"
        # How many requests there are at once is decided by those who ask.
        self._http = httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(address.silence_timeout_s, connect=address.connect_timeout_s),
            limits=httpx.Limits(max_connections=None),
        )

    async def __aenter__(self) -> "Upstream":
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._http.aclose()

    async def look(self, path: str) -> None:
        """Raise Unanswered if there is no answer to a GET, whatever it is."""
        with self._mapped():
            response = await self._http.get(self._url + path)
        if response.status_code in _BUSY:
            raise Unanswered(f"status {response.status_code}", is_away=True)

    async def is_there(self, path: str) -> bool:
        """Return whether there is a path that takes a POST."""
        with self._mapped():
            response = await self._http.post(self._url + path, json={})
        if response.status_code in _REFUSED_KEY:
            raise refusal_of(response.status_code, response.content)
        return response.status_code not in (404, 405)

    async def get(self, path: str, kind: type[Answer]) -> Answer:
        """Return the body of an answer to a GET. Raise a FleetError, and Unanswered."""
        with self._mapped():
            response = await self._http.get(self._url + path)
        return _body_of(response, kind)

    async def post(self, path: str, body: Any, kind: type[Answer]) -> Answer:
        """Return the body of an answer to a POST. Raise a FleetError, and Unanswered."""
        with self._mapped():
            response = await self._http.post(self._url + path, json=body)
        return _body_of(response, kind)

    async def stream(self, path: str, body: Any, kind: type[Answer]) -> AsyncGenerator[Answer]:
        """Yield the frames of an answer to a POST. Raise a FleetError, and Unanswered."""
        decoder = msgspec.json.Decoder(kind)
        with self._mapped():
            async with self._http.stream("POST", self._url + path, json=body) as response:
                if response.status_code != 200:
                    content = await response.aread()
                    raise refusal_of(response.status_code, content, _retry_after_s(response))
                async for line in response.aiter_lines():
                    if not line.startswith(_DATA):
                        continue
                    data = line.removeprefix(_DATA).strip()
                    if data == _END:
                        return
                    _raise_error_in(data)
                    yield _decoded(data, decoder)

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        """Turn errors of the connection into ours."""
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise Unanswered(f"no connection ({_reason(error)})", is_away=True) from error
        except httpx.TimeoutException as error:
            raise UpstreamFailed(
                f"The engine elsewhere was silent for {self._silence_s:g} s."
            ) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Unanswered(f"the connection broke ({_reason(error)})") from error


def refusal_of(status: int, content: bytes, retry_after_s: float = 0.0) -> FleetError | Unanswered:
    """Return the error that an answer with a status other than 200 stands for."""
    message = _message_in(content) or f"status {status}"
    if status in _REFUSED_KEY:
        return WorkerFailed(
            f"The engine elsewhere refuses the fleet's key for it ({status}): its operator has to "
            "look at api_key_file or api_key_env of the model."
        )
    if status in _BUSY:
        return Unanswered(f"status {status}: {message}", retry_after_s=retry_after_s)
    if 400 <= status < 500:
        if any(sign in content for sign in _TOO_LONG):
            return ContextExceeded(message)
        return InvalidRequest(message)
    return UpstreamFailed(f"The engine elsewhere failed: {message}")


def _body_of(response: httpx.Response, kind: type[Answer]) -> Answer:
    if response.status_code != 200:
        raise refusal_of(response.status_code, response.content, _retry_after_s(response))
    return _decoded(response.content, msgspec.json.Decoder(kind))


def _decoded(data: str | bytes, decoder: msgspec.json.Decoder[Answer]) -> Answer:
    try:
        return decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise UpstreamFailed(
            f"The engine elsewhere answered in a form that is not known: {error}."
        ) from error


def _raise_error_in(data: str) -> None:
    """Raise the error that a frame tells of, if it does."""
    if '"error"' not in data:
        return
    try:
        frame = msgspec.json.decode(data)
    except msgspec.MsgspecError:
        return  # whoever decodes the frame says so
    error = frame.get("error") if isinstance(frame, dict) else None
    if not error:
        return
    message = _message_in(data.encode())
    code = error.get("code") if isinstance(error, dict) else None
    if isinstance(code, int) and 400 <= code < 500:
        raise refusal_of(code, data.encode())
    raise UpstreamFailed(f"The engine elsewhere failed in the middle of its answer: {message}")


def _message_in(content: bytes) -> str:
    """Return the sentence of an error's body, in any of the dialects' forms."""
    try:
        body = msgspec.json.decode(content)
    except msgspec.MsgspecError:
        return content[:_LONGEST_MESSAGE].decode(errors="replace").strip()
    message: Any = body
    for name in ("error", "message", "detail"):
        if isinstance(message, dict) and message.get(name):
            message = message[name]
    if not isinstance(message, str):
        message = msgspec.json.encode(message).decode()
    return str(message)[:_LONGEST_MESSAGE]


def _retry_after_s(response: httpx.Response) -> float:
    """Return the seconds of a Retry-After, 0 without one. A date is not read."""
    try:
        wait_s = float(response.headers.get("Retry-After", "0"))
    except ValueError:
        return 0.0
    return wait_s if math.isfinite(wait_s) and wait_s > 0 else 0.0


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
