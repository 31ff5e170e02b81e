"""Read `multipart/form-data` as it comes: one file, handed on in pieces, and short fields.

All that is kept in memory has a bound: the number of parts, their heads, and the fields.
"""

from collections.abc import AsyncIterable, Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from shared.errors import InvalidRequest, PayloadTooLarge

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MEDIA_TYPE = "multipart/form-data"
FILE = "file"
"""The name of the part that has the file."""

_MOST_PARTS = 16
_MOST_HEAD_BYTES = 8192
_MOST_FIELD_BYTES = 4096
_BROKEN = "The body is not well-formed multipart/form-data"


@dataclass(frozen=True)
class FilePart:
    """The head of the file's part of a form."""

    name: str
    media_type: str


@dataclass
class Form:
    """A form that was read: the head of its file, and its fields by name."""

    file: FilePart
    fields: dict[str, str]


Take = Callable[[FilePart, bytes], Awaitable[None]]
"""The function that takes the file, piece by piece."""


async def read_form(pieces: AsyncIterable[bytes], content_type: str, take: Take) -> Form:
    """Read a form of one file and fields around it.

    Raise InvalidRequest for a body that is no such form, PayloadTooLarge for a head or field that
    is too long, and what `take` raises.
    """
    reading = _Reading()
    parser = MultipartParser(_boundary(content_type), reading.callbacks())
    async for piece in pieces:
        try:
            parser.write(piece)
        except FormParserError as error:
            raise InvalidRequest(f"{_BROKEN}.") from error
        for data in reading.take_pieces():
            assert reading.file is not None
            await take(reading.file, data)
    if not reading.is_whole:
        raise InvalidRequest(f"{_BROKEN}: it is cut off.")
    if reading.file is None:
        raise _no_file("this field is required")
    return Form(reading.file, reading.fields)


def _boundary(content_type: str) -> bytes:
    media_type, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if media_type.lower() != MEDIA_TYPE.encode() or not 1 <= len(boundary) <= 70:
        raise InvalidRequest(f"Expected a body of Content-Type: {MEDIA_TYPE}, with a boundary.")
    return boundary


def _no_file(expected: str) -> InvalidRequest:
    return InvalidRequest(f"{FILE}: {expected}.", field=FILE)


@dataclass
class _Reading:
    """The state of the parser between two pieces of the body, and what it has found so far."""

    fields: dict[str, str] = field(default_factory=dict)
    file: FilePart | None = None
    is_whole: bool = False
    _num_parts: int = 0
    _num_head_bytes: int = 0
    _header: bytes = b""
    _value: bytes = b""
    _head: dict[bytes, bytes] = field(default_factory=dict)
    _field: str | None = None
    _text: bytes = b""
    _pieces: list[bytes] = field(default_factory=list)

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._on_part_begin,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_part_data": self._on_part_data,
            "on_part_end": self._on_part_end,
            "on_end": self._on_end,
        }

    def take_pieces(self) -> list[bytes]:
        """Return the pieces of the file that came since the last call."""
        pieces = self._pieces
        self._pieces = []
        return pieces

    def _on_part_begin(self) -> None:
        self._num_parts += 1
        if self._num_parts > _MOST_PARTS:
            raise PayloadTooLarge(f"Expected at most {_MOST_PARTS} parts in the form.")
        self._num_head_bytes = 0
        self._head = {}
        self._header = b""
        self._value = b""

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._count_head(end - start)
        self._header += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._count_head(end - start)
        self._value += data[start:end]

    def _count_head(self, num_bytes: int) -> None:
        self._num_head_bytes += num_bytes
        if self._num_head_bytes > _MOST_HEAD_BYTES:
            most = f"at most {_MOST_HEAD_BYTES} bytes"
            raise PayloadTooLarge(f"Expected {most} in the headers of a part.")

    def _on_header_end(self) -> None:
        self._head[self._header.lower()] = self._value
        self._header = b""
        self._value = b""

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._head.get(b"content-disposition", b""))
        name = _text(options.get(b"name", b""))
        if not name:
            raise InvalidRequest(f"{_BROKEN}: a part has no name.")
        if b"filename" not in options:
            self._field = name
            self._text = b""
            return
        if name != FILE or self.file is not None:
            raise _no_file(f"expected one file, in a part of the name {FILE}")
        self._field = None
        media_type = _text(self._head.get(b"content-type", b""))
        self.file = FilePart(_text(options[b"filename"]), media_type)

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._field is None:
            self._pieces.append(data[start:end])
            return
        self._text += data[start:end]
        if len(self._text) > _MOST_FIELD_BYTES:
            most = f"at most {_MOST_FIELD_BYTES} bytes"
            raise PayloadTooLarge(f"{self._field[:64]}: expected {most}.")

    def _on_part_end(self) -> None:
        if self._field == FILE:
            raise _no_file("expected a file, with a filename (curl -F file=@NAME)")
        if self._field is not None:
            self.fields[self._field] = _text(self._text)

    def _on_end(self) -> None:
        self.is_whole = True


def _text(data: bytes) -> str:
    return data.decode("utf-8", errors="replace")
