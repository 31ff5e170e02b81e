"""The lines of a batch's file: found in pieces of bytes, and read as requests.

This module is pure: it knows neither Redis nor endpoints. Lines are numbered from 1, blank ones
among them.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass

import msgspec

_BOM = b"\xef\xbb\xbf"
_MOST_CUSTOM_ID = 512


@dataclass(frozen=True)
class RawLine:
    """A line without its end. `end` is the offset behind it in the file.

    `data` is None where the line is longer than lines may be.
    """

    number: int
    end: int
    data: bytes | None

    @property
    def is_blank(self) -> bool:
        return self.data is not None and not self.data.strip()


@dataclass(frozen=True)
class BatchLine:
    """A request of a batch, to the path `url`. `body` is its JSON, byte by byte as in the file."""

    number: int
    custom_id: str
    url: str
    body: bytes


@dataclass(frozen=True)
class LineFault:
    """A line that is no request, and why. `custom_id` is None where it has none."""

    number: int
    custom_id: str | None
    code: str
    message: str


class _Envelope(msgspec.Struct):
    custom_id: str
    url: str
    body: msgspec.Raw
    method: str = "POST"


class _WithId(msgspec.Struct):
    custom_id: str


_envelope = msgspec.json.Decoder(_Envelope)
_with_id = msgspec.json.Decoder(_WithId)


async def raw_lines(
    pieces: AsyncIterator[bytes], *, first: int = 1, offset: int = 0, max_bytes: int
) -> AsyncGenerator[RawLine, None]:
    """Yield the lines of a file whose bytes come in pieces.

    The first piece begins at `offset` with the line `first`. No more than a piece and one line of
    `max_bytes` are in memory at any time.
    """
    number = first
    start = bytearray()
    num_skipped = 0
    async for piece in pieces:
        *ended, rest = piece.split(b"\n")
        for part in ended:
            length = num_skipped + len(start) + len(part)
            offset += length + 1
            data = None
            if length <= max_bytes:
                data = _without_bom(bytes(start) + part, number)
            yield RawLine(number, offset, data)
            number += 1
            start.clear()
            num_skipped = 0
        start += rest
        if num_skipped + len(start) > max_bytes:
            # Of a line that is too long only the length matters.
            num_skipped += len(start)
            start.clear()
    length = num_skipped + len(start)
    if length > 0:
        data = None
        if length <= max_bytes:
            data = _without_bom(bytes(start), number)
        yield RawLine(number, offset + length, data)


def _without_bom(data: bytes, number: int) -> bytes:
    """Return the line without the mark that some editors put before the first one."""
    if number == 1:
        return data.removeprefix(_BOM)
    return data


def read_line(raw: RawLine, *, url: str | None, max_bytes: int) -> BatchLine | LineFault:
    """Return the request in a line, or why there is none.

    It must be for the endpoint at `url`, unless that is None.
    """
    if raw.data is None:
        message = f"Expected at most {max_bytes} bytes; this line is longer."
        return LineFault(raw.number, None, "line_too_long", message)
    try:
        envelope = _envelope.decode(raw.data)
    except msgspec.ValidationError as error:
        message = f"Expected an object with custom_id, method, url and body: {error}."
        return LineFault(raw.number, _custom_id_of(raw.data), "invalid_line", message)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        message = f"This line is not valid JSON: {error}."
        return LineFault(raw.number, None, "invalid_json_line", message)

    custom_id = envelope.custom_id

    def fault(code: str, message: str) -> LineFault:
        return LineFault(raw.number, custom_id, code, message)

    if not 1 <= len(custom_id) <= _MOST_CUSTOM_ID:
        message = f"custom_id: expected 1 to {_MOST_CUSTOM_ID} characters."
        return LineFault(raw.number, None, "invalid_line", message)
    if envelope.method != "POST":
        return fault("invalid_method", f"method: expected POST, got {envelope.method[:64]!r}.")
    if url is not None and envelope.url != url:
        message = f"url: expected {url}, the endpoint of the batch, got {envelope.url[:256]!r}."
        return fault("mismatched_url", message)
    return BatchLine(raw.number, custom_id, envelope.url, bytes(envelope.body))


def duplicate(line: BatchLine) -> LineFault:
    """Return the fault of a line whose `custom_id` an earlier line has."""
    message = "custom_id: an earlier line has the same one."
    return LineFault(line.number, line.custom_id, "duplicate_custom_id", message)


def custom_id_of(raw: RawLine) -> str | None:
    """Return the `custom_id` of a line, whatever else is wrong with it; None where it has none."""
    if raw.data is None:
        return None
    return _custom_id_of(raw.data)


def _custom_id_of(data: bytes) -> str | None:
    try:
        return _with_id.decode(data).custom_id[:_MOST_CUSTOM_ID]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
