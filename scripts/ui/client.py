"""The public HTTP API of a fleet, as far as the app calls it.

Work is submitted as a job (`Prefer: respond-async`) and then followed by its events, so each page
can show it as it comes, cancel it, and come back to it.
"""

import json
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx

Body = dict[str, Any]
"""A JSON object."""

_PROBE_S = 2.0
_ANSWER_S = 300.0
# A stream has a comment every ten seconds, unless the fleet is told otherwise.
_SILENCE_S = 60.0
_RETRIES = 5
_RETRY_S = 1.0

# One pool for all clients: to make one takes longer than most answers.
_HTTP = httpx.Client(limits=httpx.Limits(max_connections=None))
# Streams of named events end with one of these, all others with [DONE].
_LAST_EVENTS = frozenset({"done", "error"})
_SUBMIT = {
    "Prefer": "respond-async",
    # The fleet cancels the work soon after the app has stopped following it.
    "X-On-Disconnect": "grace",
}


class ServerError(Exception):
    """Raised if the server does not do what it was asked for; the message is for people."""


class NotAllowed(ServerError):
    """Raised if the key does not open what was asked for."""


class NotFound(ServerError):
    """Raised if what was asked for is not there."""


class ServerAway(ServerError):
    """Raised if no server answers at the address."""


@dataclass(frozen=True)
class ServerStatus:
    """The state of a server: whether it answers, and whether a worker is ready for work.

    `reason` says why none is. `answered_in_s` is how long the server took to say so.
    """

    is_up: bool
    is_ready: bool
    reason: str = ""
    answered_in_s: float = 0.0


@dataclass(frozen=True)
class Model:
    """A model that the fleet serves.

    One that solves puzzles names their kind as `puzzle`, once it is loaded, and they have as many
    cells as its `context_window`.
    """

    id: str
    description: str
    tasks: tuple[str, ...]
    context_window: int
    puzzle: str


@dataclass(frozen=True)
class Frame:
    """One event of a stream. Its `body` is None for a comment, which says that work goes on."""

    id: str
    body: Body | None


class Client:
    """A client of the server at `url`, with a caller's key or without one.

    All methods raise ServerAway if the server does not answer, and ServerError if it refuses.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        self.url = url.rstrip("/")
        self._headers = {}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"

    def status(self) -> ServerStatus:
        """Return the state of the server. A server that is away is a state, too."""
        begun = time.monotonic()
        try:
            answer = _HTTP.get(f"{self.url}/readyz", timeout=_PROBE_S)
            reason = _object(answer).get("reason") or ""
        except (httpx.HTTPError, httpx.InvalidURL):
            return ServerStatus(is_up=False, is_ready=False)
        return ServerStatus(
            is_up=True,
            is_ready=answer.is_success,
            reason=str(reason),
            answered_in_s=time.monotonic() - begun,
        )

    def models(self) -> list[Model]:
        """Return the models that the fleet serves, in the order of their names."""
        answer = self._request("GET", "/api/models/status", timeout_s=_PROBE_S)
        models = []
        for entry in answer["models"]:
            models.append(
                Model(
                    entry["model_id"],
                    entry["description"],
                    tuple(entry["tasks"]),
                    context_window=entry.get("context_window", 0),
                    puzzle=entry.get("puzzle", ""),
                )
            )
        return models

    def post(self, path: str, body: Body) -> Body:
        """Return the answer to a request that is short enough to wait for."""
        return self._request("POST", path, json=body)

    def get(self, path: str, **parameters: str) -> Body:
        """Return the answer to a question."""
        return self._request("GET", path, params=parameters)

    def delete(self, path: str) -> Body:
        """Delete what is at a path, and return what the server says of it."""
        return self._request("DELETE", path)

    def document(self) -> Body:
        """Return the OpenAPI document of the server."""
        return self._request("GET", "/openapi.json")

    def health(self) -> Body:
        """Return the counts of workers, models and jobs, also while no worker is ready."""
        return _object(self._send("GET", "/api/health", timeout_s=_PROBE_S))

    def metrics(self) -> str:
        """Return the metrics of the server, in Prometheus's text format."""
        return self._answer("GET", "/metrics", timeout_s=_PROBE_S).text

    def upload(self, name: str, data: bytes, *, media_type: str, purpose: str) -> str:
        """Keep bytes as a file of the fleet, and return its id."""
        file = {"file": (name, data, media_type)}
        answer = self._answer("POST", "/v1/files", files=file, data={"purpose": purpose})
        file_id: str = _object(answer)["id"]
        return file_id

    def download(self, file_id: str) -> bytes:
        """Return the bytes of a file: one that was uploaded, or that a task has made."""
        return self._answer("GET", f"/v1/artifacts/{quote(file_id, safe='')}").content

    def submit(self, path: str, body: Body) -> str:
        """Submit a request as a job, and return the job's id."""
        job_id: str = self._request("POST", path, json=body, headers=_SUBMIT)["id"]
        return job_id

    def job(self, job_id: str) -> Body:
        """Return the state of a job: `state`, `usage`, `timings`, and `result` or `partial`."""
        return self._request("GET", _job_path(job_id))

    def cancel(self, job_id: str) -> None:
        """Cancel a job. One that has ended stays as it is."""
        self._request("DELETE", _job_path(job_id))

    def events(self, job_id: str) -> Generator[Frame]:
        """Yield the events of a job from its first one to its last, in the form of its endpoint.

        A stream that breaks off is resumed behind the last event that came.
        """
        last_id = ""
        retries = 0
        while True:
            try:
                for frame in self._stream(f"{_job_path(job_id)}/events", last_id):
                    if frame is None:
                        return
                    if frame.id:
                        last_id = frame.id
                        retries = 0
                    yield frame
            except ServerAway:
                if retries == _RETRIES:
                    raise
            if retries == _RETRIES:
                raise ServerError("The stream of the answer broke off again and again.")
            retries += 1
            time.sleep(_RETRY_S)

    def _stream(self, path: str, last_id: str) -> Iterator[Frame | None]:
        """Yield the frames of a stream, and None behind its end. One that breaks off has no None."""
        headers = {**self._headers, "Accept": "text/event-stream"}
        if last_id:
            headers["Last-Event-ID"] = last_id
        timeout = httpx.Timeout(_SILENCE_S, connect=_PROBE_S)
        url = f"{self.url}{path}"
        try:
            with _HTTP.stream("GET", url, headers=headers, timeout=timeout) as answer:
                if answer.is_error:
                    answer.read()
                    raise _refusal(answer)
                yield from _frames(answer.iter_lines())
        except httpx.HTTPError as error:
            raise self._away(error) from None

    def _request(self, method: str, path: str, **request: Any) -> Body:
        """Return the JSON object of an answer. `request` is as for `_send`."""
        return _object(self._answer(method, path, **request))

    def _answer(self, method: str, path: str, **request: Any) -> httpx.Response:
        """Return an answer. Raise the ServerError of a request that is refused."""
        answer = self._send(method, path, **request)
        if answer.is_error:
            raise _refusal(answer)
        return answer

    def _send(
        self,
        method: str,
        path: str,
        *,
        headers: dict[str, str] | None = None,
        timeout_s: float = _ANSWER_S,
        **request: Any,
    ) -> httpx.Response:
        """Return any answer to a request. `request` has what httpx sends: `json`, `files`, ..."""
        try:
            return _HTTP.request(
                method,
                f"{self.url}{path}",
                headers={**self._headers, **(headers or {})},
                timeout=httpx.Timeout(timeout_s, connect=_PROBE_S),
                **request,
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._away(error) from None

    def _away(self, error: Exception) -> ServerAway:
        if isinstance(error, httpx.ReadTimeout):
            return ServerAway(f"The server at {self.url} takes too long to answer.")
        return ServerAway(f"The server at {self.url} does not answer.")


def _job_path(job_id: str) -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}"


def _frames(lines: Iterator[str]) -> Iterator[Frame | None]:
    """Yield the frames in the lines of an event stream, and None behind the last one."""
    frame_id = ""
    name = ""
    for line in lines:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "id":
            frame_id = value
        elif field == "event":
            name = value
        elif field == "data" and value == "[DONE]":
            yield None
        elif field == "data":
            yield Frame(frame_id, json.loads(value))
            if name in _LAST_EVENTS:
                yield None
        elif line.startswith(":"):
            yield Frame("", None)


def _object(answer: httpx.Response) -> Body:
    """Return the JSON object of an answer, an empty one if the answer has none."""
    try:
        body = answer.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _refusal(answer: httpx.Response) -> ServerError:
    """Return the error of a refused request, in words for people."""
    message = message_of(_object(answer))
    if answer.status_code == 401:
        return NotAllowed("The server wants a key, or another one: enter it at the left.")
    if answer.status_code == 403:
        return NotAllowed(message or "This key does not open that.")
    if answer.status_code == 404:
        return NotFound(message or "This is not there.")
    if answer.status_code in (429, 503):
        wait_s = answer.headers.get("Retry-After")
        when = f" Try again in {wait_s} s." if wait_s else ""
        return ServerError(f"The server cannot take this now: {message}{when}")
    return ServerError(message or f"The server answered with status {answer.status_code}.")


def message_of(body: Body) -> str:
    """Return the message of an error, in the shape of whichever dialect, "" if there is none."""
    error = body.get("error")
    if isinstance(error, dict):
        error = error.get("message")
    return str(error) if error else ""
