"""Media types as callers give them: well-formed or not, text or not, safe in a browser or not."""

import re
from urllib.parse import quote

from shared.errors import InvalidRequest

FORM = "multipart/form-data"
JSON = "application/json"

_TOKEN = r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}"
_MEDIA_TYPE = re.compile(rf"({_TOKEN}/{_TOKEN})\s*(?:;(.*))?", re.DOTALL)
_CHARSET = re.compile(r"\s*charset\s*=\s*\"?([A-Za-z0-9_.:-]{1,40})\"?\s*", re.IGNORECASE)
_TEXTS = re.compile(
    r"text/.*"
    r"|application/(?:json|xml|javascript|yaml|x-ndjson|jsonl)"
    r"|application/.*\+(?:json|xml)"
)
_SHOWN = re.compile(
    r"image/(?:png|jpeg|gif|webp|avif|bmp)|audio/[a-z0-9.-]+|video/[a-z0-9.-]+"
    r"|text/plain|application/json"
)
"""Media types that can hold no script that a browser would run."""
_MOST_NAME = 255


def media_type_of(text: str, *, field: str) -> str:
    """Return the media type in lower case, with its charset and no other parameter.

    Raise InvalidRequest, which names `field`, for text that is no media type (RFC 6838).
    """
    match = _MEDIA_TYPE.fullmatch(text.strip())
    if match is None:
        expected = "expected a media type, such as image/png"
        raise InvalidRequest(f"{field}: {expected}, got {text[:64]!r}.", field=field)
    essence = match[1].lower()
    for parameter in (match[2] or "").split(";"):
        charset = _CHARSET.fullmatch(parameter)
        if charset is not None:
            return f"{essence}; charset={charset[1].lower()}"
    return essence


def is_text(media_type: str) -> bool:
    return _TEXTS.fullmatch(media_type.partition(";")[0]) is not None


def is_json(content_type: str) -> bool:
    """Return whether a body is meant as JSON. curl calls it a form, unless it is told otherwise."""
    essence = content_type.partition(";")[0].strip().lower()
    return essence in (JSON, "application/x-www-form-urlencoded")


def is_form(content_type: str) -> bool:
    return content_type.partition(";")[0].strip().lower() == FORM


def disposition(media_type: str, name: str) -> str:
    """Return a Content-Disposition (RFC 6266): `inline` only if the type can hold no script."""
    is_shown = _SHOWN.fullmatch(media_type.partition(";")[0]) is not None
    kind = "inline" if is_shown else "attachment"
    if not name:
        return kind
    return f"{kind}; filename*=UTF-8''{quote(name, safe='')}"


def file_name(text: str) -> str:
    """Return the last part of the path that a caller names a file by.

    Characters that cannot be printed are left out. The name has at most 255 bytes of UTF-8.
    """
    last = re.split(r"[/\\]", text)[-1]
    printable = "".join(character for character in last if character.isprintable())
    return printable.encode("utf-8", errors="replace")[:_MOST_NAME].decode(errors="ignore")
