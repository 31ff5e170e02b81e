"""Parts of a body and conditions on it, as RFC 9110 says: Range, If-Range, If-None-Match."""

import re
from collections.abc import Mapping

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


class Unsatisfiable(ValueError):
    """The range begins behind the end."""


def range_of(headers: Mapping[str, str], etag: str, num_bytes: int) -> tuple[int, int] | None:
    """Return where the part that is asked for begins and ends, None for the whole.

    Several ranges at once, and what is no range of bytes, are answered by the whole, as the RFC
    allows. Raise Unsatisfiable.
    """
    if headers.get("if-range", etag) != etag:
        return None
    found = _RANGE.fullmatch(headers.get("range", "").replace(" ", ""))
    if found is None or found[0] == "bytes=-":
        return None
    first, last = found.groups()
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
    if length == 0 or num_bytes == 0:
        raise Unsatisfiable
    return max(0, num_bytes - length), num_bytes


def is_known(headers: Mapping[str, str], etag: str) -> bool:
    """Return whether the caller has these bytes already."""
    given = headers.get("if-none-match", "")
    names = [name.strip().removeprefix("W/") for name in given.split(",")]
    return "*" in names or etag in names
