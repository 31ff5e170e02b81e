"""The middleware around every request: an id, a log line, metrics, a bounded body, a crash guard.

It is pure ASGI, so that nothing here buffers an answer or hides a disconnect. `api/http/app.py`
has its order and its arguments.
"""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Callable, Collection
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.encodings import HEADER, decoded
from api.http.errors import render
from api.http.media_types import is_text
from api.http.problem import Problem, problem_of
from api.http.request_state import RequestState, request_state_of
from api.schemas.fields import fleets_seed
from api.stream.timings import Timings
from shared.errors import ClientGone, Draining, FleetError, PayloadTooLarge, UnsupportedEncoding
from shared.telemetry.logging_setup import fields
from shared.telemetry.metrics import Metrics

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Methods that metrics and traces name; a caller may invent any number of others."""
REQUEST_ID = "X-Request-Id"
EXPERIMENT = "X-AB-Experiment"
ARM = "X-AB-Arm"
_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_SHOWN_BODY = 1000

access_log = logging.getLogger("aios.access")
error_log = logging.getLogger("aios.api")


class RequestId:
    """Gives each request its state, and each answer an X-Request-Id.

    The id is the caller's own if that is sane, else a new one. The answer to a request of an
    experiment, which may be an error, tells the experiment and the arm too.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = Headers(scope=scope).get(REQUEST_ID, "")
        if not _SANE_ID.fullmatch(request_id):
            request_id = str(uuid.uuid4())
        request_state = RequestState(request_id)
        scope.setdefault("state", {})["request_state"] = request_state

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID] = request_state.request_id
                assignment = request_state.assignment
                if assignment is not None:
                    headers[EXPERIMENT] = assignment.experiment
                    headers[ARM] = assignment.arm
            await send(message)

        await self._app(scope, receive, send_with_id)


class AccessLog:
    """Logs and counts each request when its answer has ended.

    With `log_bodies` the log line has the beginning of the answer. A POST to one of the
    `work_paths` asks for work.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        work_paths: Collection[str],
        log_bodies: bool,
        log_requests: bool = True,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._work_paths = work_paths
        self._log_requests = log_requests
        self._log_bodies = log_bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s = time.perf_counter()
        status = ClientGone.status  # until an answer begins
        answer = b""
        is_shown = False

        async def send_noting_status(message: Message) -> None:
            nonlocal status, answer, is_shown
            if message["type"] == "http.response.start":
                status = message["status"]
                media_type = Headers(raw=message["headers"]).get("content-type", "")
                is_shown = self._log_bodies and is_text(media_type)
            elif is_shown and len(answer) < _SHOWN_BODY:
                answer += message.get("body", b"")[:_SHOWN_BODY]
            await send(message)

        self._metrics.in_progress.inc()
        try:
            await self._app(scope, receive, send_noting_status)
        finally:
            self._metrics.in_progress.dec()
            self._record(scope, status, time.perf_counter() - started_s, answer)

    def _record(self, scope: Scope, status: int, seconds: float, answer: bytes) -> None:
        request_state = request_state_of(scope)
        route = getattr(scope.get("route"), "path", "unmatched")
        method = scope["method"]
        if method not in METHODS:
            method = "other"
        self._metrics.requests.labels(route, method, status).inc()
        self._metrics.latency.labels(route).observe(seconds)
        if request_state.error is not None:
            self._metrics.errors.labels(request_state.error).inc()
            is_work = method == "POST" and route in self._work_paths
            if is_work and request_state.x_job_id is None:
                self._metrics.rejections.labels(request_state.error).inc()

        line = {
            "method": method,
            "route": route,
            "status": status,
            "total_ms": round(seconds * 1000, 1),
        }
        line |= log_fields_of(request_state)
        if self._log_bodies and not request_state.tells_secret:
            line["answer"] = _excerpt(answer)
        is_shown = self._log_requests and not request_state.is_probe
        access_log.log(logging.INFO if is_shown else logging.DEBUG, "request", extra=fields(**line))


class DefaultSeed:
    """Gives the fleet's seed to requests that name none."""

    def __init__(self, app: ASGIApp, *, seed: int) -> None:
        self._app = app
        self._seed = seed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        token = fleets_seed.set(self._seed)
        try:
            await self._app(scope, receive, send)
        finally:
            fleets_seed.reset(token)


class CrashGuard:
    """Turns a bug into a 500 without a stack in the body. The stack goes to the log.

    A server that stops cancels requests that it cannot wait for, such as one that waits for a
    hanging Redis. A caller without an answer is then sent to another front.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False

        async def send_noting_start(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, send_noting_start)
        except asyncio.CancelledError:
            if scope["type"] != "http" or has_begun:
                raise
            request_state_of(scope).error = Draining.code
            problem = problem_of(Draining("This server is shutting down.", retry_after_s=1))
            await render(problem, request_state_of(scope))(scope, receive, send)
        except Exception:
            if scope["type"] != "http":
                raise
            request_state = request_state_of(scope)
            request_state.error = "internal_error"
            error_log.exception("unhandled error", extra=_id_fields(request_state))
            if not has_begun:
                message = f"Internal error; request id {request_state.request_id}."
                problem = Problem(500, "internal_error", message, None, {})
                await render(problem, request_state)(scope, receive, send)


class BodyLimit:
    """Reads the whole body, and hands it on in one piece, unpacked.

    A body that is too large is refused, announced or not, packed or unpacked. The beginning of a
    body is logged if bodies are.

    A file that is posted is handed on as it comes, and refused as soon as it is too large. The path
    and the content type tell `takes_file`. Bodies that may hold files in base64 have a bound of
    their own.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_body_bytes: int,
        log_bodies: bool,
        max_upload_bytes: int = 0,
        max_inline_bytes: int = 0,
        takes_file: Callable[[str, str], bool] = lambda path, content_type: False,
        holds_files: Callable[[str], bool] = lambda path: False,
    ) -> None:
        self._app = app
        self._log_bodies = log_bodies
        self._max_body_bytes = max_body_bytes
        self._max_upload_bytes = max_upload_bytes
        self._max_inline_bytes = max_inline_bytes
        self._takes_file = takes_file
        self._holds_files = holds_files

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        is_upload = scope["method"] == "POST" and self._is_upload(scope, headers)
        max_bytes = self._max_upload_bytes if is_upload else self._max_of(scope)
        announced = headers.get("content-length", "")
        if announced.isdigit() and int(announced) > max_bytes:
            await self._refuse(_too_large(max_bytes), scope, receive, send)
            return
        if is_upload:
            await self._hand_on(scope, receive, send)
            return
        body = await self._read(receive, max_bytes)
        if body is None:
            return
        if len(body) > max_bytes:
            await self._refuse(_too_large(max_bytes), scope, receive, send)
            return
        codings = ",".join(headers.getlist(HEADER))
        try:
            body = decoded(body, codings, max_bytes=max_bytes)
        except PayloadTooLarge:
            await self._refuse(_too_large(max_bytes, "unpacked, "), scope, receive, send)
            return
        except FleetError as error:
            await self._refuse(error, scope, receive, send)
            return
        request_state = request_state_of(scope)
        request_state.body = body
        if self._log_bodies and body:
            extra = _id_fields(request_state)
            access_log.info("Processing request: %s", _excerpt(body), extra=extra)
        await self._app(scope, replay(body, receive), send)

    def _is_upload(self, scope: Scope, headers: Headers) -> bool:
        path = request_state_of(scope).path
        return self._takes_file(path, headers.get("content-type", ""))

    def _max_of(self, scope: Scope) -> int:
        """Return the most bytes of a body that is no upload."""
        if self._holds_files(request_state_of(scope).path):
            return max(self._max_body_bytes, self._max_inline_bytes)
        return self._max_body_bytes

    async def _read(self, receive: Receive, max_bytes: int) -> bytes | None:
        """Return the body, or as much of it as shows that it is too large.

        Return None if the caller has left meanwhile.
        """
        body = bytearray()
        has_more = True
        while has_more and len(body) <= max_bytes:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            has_more = message.get("more_body", False)
        return bytes(body)

    async def _hand_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the body on as it comes.

        Reading more than the bound raises an error in the route, which becomes the answer.
        """
        headers = Headers(scope=scope)
        request_state = request_state_of(scope)
        coding = ",".join(headers.getlist(HEADER)).strip().lower()
        if coding not in ("", "identity"):
            message = f"{HEADER}: expected none; what is uploaded is kept as it comes."
            await self._refuse(UnsupportedEncoding(message, field=HEADER), scope, receive, send)
            return
        request_state.num_uploaded = 0
        if self._log_bodies:
            description = f"an upload of {headers.get('content-length', 'some')} bytes"
            extra = _id_fields(request_state)
            access_log.info("Processing request: %s", description, extra=extra)

        num_bytes = 0

        async def receive_bounded() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            request_state.num_uploaded = num_bytes
            if num_bytes > self._max_upload_bytes:
                raise _too_large(self._max_upload_bytes)
            return message

        await self._app(scope, receive_bounded, send)

    @staticmethod
    async def _refuse(error: FleetError, scope: Scope, receive: Receive, send: Send) -> None:
        request_state_of(scope).error = error.code
        await render(problem_of(error), request_state_of(scope))(scope, receive, send)


def _too_large(max_bytes: int, how: str = "") -> PayloadTooLarge:
    return PayloadTooLarge(f"Expected a body of at most {max_bytes} bytes; {how}this is larger.")


def _excerpt(body: bytes) -> str:
    return body[:_SHOWN_BODY].decode(errors="replace")


def replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body once, and then whatever comes."""
    is_given = False

    async def replay() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _id_fields(request_state: RequestState) -> dict[str, Any]:
    """Return the fields that lead from a log line to the request's other lines and its trace."""
    return fields(request_id=request_state.request_id, trace_id=request_state.trace_id)


def log_fields_of(request_state: RequestState) -> dict[str, Any]:
    """Return the fields of a request's log line, without those of HTTP.

    A field is None where there is nothing to tell. Times are in milliseconds.
    """
    line: dict[str, Any] = {
        "request_id": request_state.request_id,
        "trace_id": request_state.trace_id,
        "tenant": request_state.tenant or None,
        "key": request_state.key or None,
        "model": request_state.model,
        "experiment": _experiment_of(request_state),
        "x_job_id": request_state.x_job_id,
        "job_id": request_state.job_ids[0] if request_state.job_ids else None,
        "num_jobs": len(request_state.job_ids) or None,
        "prompt_tokens": request_state.usage.prompt_tokens,
        "completion_tokens": request_state.usage.completion_tokens,
        "upload_bytes": request_state.num_uploaded,
        "error": request_state.error,
    }
    watch = request_state.watch
    if watch is not None:
        line["worker"] = watch.worker
        line["attempts"] = watch.attempts or None
        line |= _times(watch.timings(request_state.usage.completion_tokens))
    return line


def _experiment_of(request_state: RequestState) -> str | None:
    if request_state.assignment is None:
        return None
    return request_state.assignment.experiment


def _times(timings: Timings) -> dict[str, float | None]:
    times: dict[str, float | None] = {}
    for name in ("queue", "prefill", "decode"):
        seconds = getattr(timings, f"{name}_s")
        times[f"{name}_ms"] = None
        if seconds is not None:
            times[f"{name}_ms"] = round(seconds * 1000, 1)
    times["tokens_per_s"] = timings.tokens_per_s
    return times
