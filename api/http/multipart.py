"""Read `multipart/form-data` as it comes: files, handed on in pieces, and short fields.

All that is kept in memory has a bound: the number of parts, their heads, and the fields.
"""

from collections.abc import AsyncIterable, Awaitable, Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from api.http.media_types import FORM
from shared.errors import InvalidRequest, PayloadTooLarge

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

_MOST_PARTS = 64
_MOST_HEAD_BYTES = 8192
_MOST_FIELD_BYTES = 65_536
_LIST = "[]"
"""The end of the names of parts that are items of a list, as PHP and OpenAI's clients have it."""
_BROKEN = "The body is not well-formed multipart/form-data"


@dataclass(frozen=True)
class FilePart:
    """The head of a file's part of a form. `is_item` if its field is a list of files."""

    field: str
    name: str
    media_type: str
    is_item: bool = False


@dataclass
class Form:
    """A form that was read: the heads of its files, and its fields by name.

    `lists` are the fields whose names end in [], without that end.
    """

    files: list[FilePart] = field(default_factory=list)
    fields: dict[str, str] = field(default_factory=dict)
    lists: dict[str, list[str]] = field(default_factory=dict)


Take = Callable[[FilePart, bytes], Awaitable[None]]
"""The function that takes the files, piece by piece, one file after the other."""


async def read_form(
    pieces: AsyncIterable[bytes], content_type: str, take: Take, *, files: Collection[str]
) -> Form:
    """Read a form of fields and of files, which are in parts of the names `files`.

    Raise InvalidRequest for a body that is no such form, PayloadTooLarge for a head or field that
    is too long, and what `take` raises.
    """
    reading = _Reading(files)
    parser = MultipartParser(_boundary(content_type), reading.callbacks())
    async for piece in pieces:
        try:
            parser.write(piece)
        except FormParserError as error:
            raise InvalidRequest(f"{_BROKEN}.") from error
        for part, data in reading.take_pieces():
            await take(part, data)
    if not reading.is_whole:
        raise InvalidRequest(f"{_BROKEN}: it is cut off.")
    return reading.form


def _boundary(content_type: str) -> bytes:
    media_type, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if media_type.lower() != FORM.encode() or not 1 <= len(boundary) <= 70:
        raise InvalidRequest(f"Expected a body of Content-Type: {FORM}, with a boundary.")
    return boundary


@dataclass
class _Reading:
    """The state of the parser between two pieces of the body, and what it has found so far."""

    files: Collection[str]
    form: Form = field(default_factory=Form)
    is_whole: bool = False
    _num_parts: int = 0
    _num_head_bytes: int = 0
    _header: bytes = b""
    _value: bytes = b""
    _head: dict[bytes, bytes] = field(default_factory=dict)
    _file: FilePart | None = None
    _field: str = ""
    _text: bytes = b""
    _pieces: list[tuple[FilePart, bytes]] = field(default_factory=list)

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

    def take_pieces(self) -> list[tuple[FilePart, bytes]]:
        """Return the pieces of files that came since the last call."""
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
        field_name = name.removesuffix(_LIST)
        if b"filename" not in options:
            self._file = None
            self._field = name
            self._text = b""
            return
        if field_name not in self.files:
            expected = f"expected files in parts of the name {' or '.join(self.files)} alone"
            raise InvalidRequest(f"{name[:64]}: {expected}.", field=field_name)
        media_type = _text(self._head.get(b"content-type", b""))
        self._file = FilePart(
            field_name, _text(options[b"filename"]), media_type, is_item=name != field_name
        )
        self.form.files.append(self._file)

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            self._pieces.append((self._file, data[start:end]))
            return
        self._text += data[start:end]
        if len(self._text) > _MOST_FIELD_BYTES:
            most = f"at most {_MOST_FIELD_BYTES} bytes"
            raise PayloadTooLarge(f"{self._field[:64]}: expected {most}.")

    def _on_part_end(self) -> None:
        if self._file is not None:
            return
        text = _text(self._text)
        if self._field.endswith(_LIST):
            self.form.lists.setdefault(self._field.removesuffix(_LIST), []).append(text)
        else:
            self.form.fields[self._field] = text

    def _on_end(self) -> None:
        self.is_whole = True


def _text(data: bytes) -> str:
    return data.decode("utf-8", errors="replace")
