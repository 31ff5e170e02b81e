"""Bytes that a field of a body stands for: base64, a data URL, or the id of an artifact.

Nothing else is understood. A server that fetches URLs or opens paths for its callers can be made to
read data that is not theirs.
"""

import base64
import binascii
import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from api.http.media_types import media_type_of
from shared.artifacts.store import DEFAULT_MEDIA_TYPE
from shared.errors import InvalidRequest, PayloadTooLarge
from shared.queue.keys import is_artifact_id

_EXPECTED = (
    "expected base64, a data URL (data:image/png;base64,...) or the id of an artifact; URLs are not"
    " fetched and paths are not opened"
)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_SPACE = re.compile(r"\s+")
_OF_TEXT = "text/plain"
"""The media type of a data URL that names none, as RFC 2397 says."""


@dataclass(frozen=True)
class InlineBytes:
    data: bytes
    media_type: str


@dataclass(frozen=True)
class StoredBytes:
    """An artifact, which may be there or not."""

    artifact_id: str


def byte_input_of(text: str, *, name: str, max_bytes: int) -> InlineBytes | StoredBytes:
    """Return the bytes that `text` holds, or the artifact that it names.

    `name` is that of the field. Raise InvalidRequest, and PayloadTooLarge for more than
    `max_bytes`, before anything is decoded.
    """
    if is_artifact_id(text):
        return StoredBytes(text)
    if text[:5].lower() == "data:":
        return _data_url(text[5:], name, max_bytes)
    if _SCHEME.match(text):
        raise InvalidRequest(f"{name}: {_EXPECTED}.", field=name)
    return InlineBytes(_base64(text, name, max_bytes), DEFAULT_MEDIA_TYPE)


def _data_url(rest: str, name: str, max_bytes: int) -> InlineBytes:
    head, comma, data = rest.partition(",")
    if not comma:
        raise InvalidRequest(f"{name}: a data URL has a comma before its data.", field=name)
    declared, semicolon, coding = head.rpartition(";")
    is_base64 = bool(semicolon) and coding.strip().lower() == "base64"
    if not is_base64:
        declared = head
    media_type = media_type_of(declared or _OF_TEXT, field=name)
    if is_base64:
        return InlineBytes(_base64(data, name, max_bytes), media_type)
    # Each %XX stands for one byte.
    _check_size(len(data) - 2 * data.count("%"), name, max_bytes)
    return InlineBytes(unquote_to_bytes(data), media_type)


def _base64(text: str, name: str, max_bytes: int) -> bytes:
    packed = _SPACE.sub("", text)
    # Four characters hold three bytes, less one for each sign of padding.
    _check_size(len(packed) * 3 // 4 - packed[-2:].count("="), name, max_bytes)
    try:
        return base64.b64decode(packed, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(f"{name}: {_EXPECTED}.", field=name) from None


def _check_size(num_bytes: int, name: str, max_bytes: int) -> None:
    if num_bytes > max_bytes:
        raise PayloadTooLarge(
            f"{name}: expected at most {max_bytes} bytes; this has {num_bytes}. Larger ones can be"
            " sent to POST /v1/artifacts first.",
            field=name,
        )
