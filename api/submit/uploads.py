"""Uploads, which become artifacts piece by piece as they come, and downloads of artifacts."""

import re
from collections.abc import AsyncGenerator, Mapping

from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response, StreamingResponse

from api.access.caller import Caller, caller_of
from api.deps import Front
from api.http.errors import ClientDisconnected, render
from api.http.media_types import disposition, file_name, is_text
from api.http.problem import Problem
from api.http.request_state import RequestState
from api.redis_timeout import redis_answers
from api.submit.prohibited import Scan
from shared.artifacts.store import Artifact, Label, Upload
from shared.errors import Draining, InvalidRequest

_PURPOSE = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_FIELD = "file"


async def admit(front: Front, caller: Caller, request: Request) -> None:
    """Check, before a body is read, whether this caller may upload now.

    Raise OverQuota for a caller that asks too often, and Draining.
    """
    if front.draining.is_set():
        raise Draining("This server is shutting down.", retry_after_s=1)
    async with redis_answers():
        rates = caller.rates_of(request.scope["route"].path)
        await front.rate_limiter.keep(caller.id or caller.tenant, rates)


async def pieces_of(request: Request) -> AsyncGenerator[bytes, None]:
    """Yield the body as it comes.

    Raise ClientDisconnected, and PayloadTooLarge as soon as more than its bound has come.
    """
    try:
        async for piece in request.stream():
            yield piece
    except ClientDisconnect as error:
        raise ClientDisconnected("The caller has hung up.") from error


class ScannedUpload:
    """Writes pieces to an upload once they have been scanned for prohibited terms."""

    def __init__(self, front: Front, upload: Upload) -> None:
        self._prohibited = front.prohibited
        self._upload = upload
        self._scan: Scan | None = None
        self._has_begun = False

    async def write(self, data: bytes, media_type: str) -> None:
        """Write a piece. Raise ProhibitedContent, and what `Upload.write` raises."""
        if not data:
            return
        if not self._has_begun:
            self._has_begun = True
            self._scan = self._prohibited.scan(_FIELD, is_text=is_text(media_type))
        if self._scan is not None:
            self._scan.read(data)
        await self._upload.write(data)


async def keep(
    front: Front,
    request: Request,
    upload: Upload,
    label: Label,
    *,
    key: str,
) -> Artifact:
    """Make an artifact of what was uploaded, if its caller may still call.

    Raise Unauthorized, ProhibitedContent for the name of the file, and what `Upload.keep` raises.
    """
    await caller_of(request)
    front.prohibited.check_text(label.name, field="filename")
    return await upload.keep(label, key=key)


def label_of(media_type: str, name: str, purpose: str, lives_s: float | None = None) -> Label:
    """Return the label of an artifact. Raise InvalidRequest for a purpose that is no plain word."""
    if not _PURPOSE.fullmatch(purpose):
        raise InvalidRequest(
            "purpose: expected up to 64 small letters, digits, dashes and underscores.",
            field="purpose",
        )
    return Label(media_type=media_type, name=file_name(name), purpose=purpose, lives_s=lives_s)


async def bytes_of(
    front: Front, artifact: Artifact, request: Request, request_state: RequestState
) -> Response:
    """Answer with an artifact's bytes, or the part of them that is asked for.

    Artifacts come from callers, so no browser may take one for a page of ours.
    """
    etag = f'"{artifact.digest}"'
    headers = {
        "Content-Type": artifact.media_type,
        "Content-Disposition": disposition(artifact.media_type, artifact.name),
        "Content-Security-Policy": "sandbox; default-src 'none'",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "private, no-cache",
        "Vary": "Authorization, X-API-Key",
        "ETag": etag,
        "Accept-Ranges": "bytes",
    }
    if is_known(request.headers, etag):
        del headers["Content-Type"]
        return Response(status_code=304, headers=headers)
    status = 200
    start = 0
    stop = artifact.num_bytes
    try:
        part = range_of(request.headers, etag, artifact.num_bytes)
    except Unsatisfiable:
        return _unsatisfiable(artifact, request_state)
    if part is not None:
        status = 206
        start, stop = part
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{artifact.num_bytes}"
    headers["Content-Length"] = str(stop - start)
    if request_state.is_head:
        return Response(status_code=status, headers=headers)
    pieces = await front.artifacts.read(artifact, start, stop)
    return StreamingResponse(pieces, status, headers)


def _unsatisfiable(artifact: Artifact, request_state: RequestState) -> Response:
    code = "range_not_satisfiable"
    request_state.error = code
    message = f"Range: expected a part of {artifact.num_bytes} bytes; this begins behind their end."
    headers = {"Content-Range": f"bytes */{artifact.num_bytes}"}
    return render(Problem(416, code, message, "Range", headers), request_state)


_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


class Unsatisfiable(ValueError):
    """The range begins behind the end."""


def range_of(headers: Mapping[str, str], etag: str, num_bytes: int) -> tuple[int, int] | None:
    """Return where the part that is asked for begins and ends, None for the whole.

    Several ranges at once, and what is no range of bytes, are answered with the whole, as RFC 9110
    allows. Raise Unsatisfiable.
    """
    if headers.get("if-range", etag) != etag:
        return None
    match = _RANGE.fullmatch(headers.get("range", "").replace(" ", ""))
    if match is None or match[0] == "bytes=-":
        return None
    first, last = match.groups()
    if not first:
        return _suffix(int(last), num_bytes)
    start = int(first)
    stop = int(last) + 1 if last else num_bytes
    if last and stop <= start:
        return None
    if start >= num_bytes:
        raise Unsatisfiable
    return start, min(stop, num_bytes)


def _suffix(length: int, num_bytes: int) -> tuple[int, int]:
    """Return where the last `length` bytes begin and end. Raise Unsatisfiable for none."""
    if length == 0 or num_bytes == 0:
        raise Unsatisfiable
    return max(0, num_bytes - length), num_bytes


def is_known(headers: Mapping[str, str], etag: str) -> bool:
    """Return whether the caller has these bytes already."""
    given = headers.get("if-none-match", "")
    names = [name.strip().removeprefix("W/") for name in given.split(",")]
    return "*" in names or etag in names
