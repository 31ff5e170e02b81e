"""The names of a network's puzzle identifiers, from the `identifiers.json` of its data set.

The list of an ARC data set has a million names. They stay in the file, which is mapped into memory,
and only where each of them begins is kept.
"""

import json
import mmap
import re
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path

from worker.models.errors import ModelFormatError
from worker.models.reading import faulty, unusable

_NAME = re.compile(rb'\s*("(?:[^"\\\x00-\x1f]|\\.)*")\s*([,\]])')
_OPENING = re.compile(rb"\s*(\[)")
_EMPTY_LIST = re.compile(rb"\s*\[\s*\]\s*")
_NO_LIST = "is not a list of names; correct or remove it."


class IdentifierNames:
    """Names of rows of a puzzle table, in the table's order. A name may be there more than once."""

    def __init__(self, text: bytes | mmap.mmap, starts: "array[int]") -> None:
        self._text = text
        self._starts = starts

    def __len__(self) -> int:
        return len(self._starts)

    def index(self, name: str) -> int | None:
        """Return the number of the first row of this name, None without one."""
        # As json.dumps writes it, which escapes all that is not ASCII.
        at = self._text.find(json.dumps(name).encode())
        while at >= 0:
            number = bisect_right(self._starts, at) - 1
            if number >= 0 and self._starts[number] == at:
                return number
            at = self._text.find(json.dumps(name).encode(), at + 1)
        return None

    def beginning_with(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Yield the names that begin with `prefix`, and their rows, in order."""
        quoted = json.dumps(prefix).encode()[:-1]
        at = self._text.find(quoted)
        while at >= 0:
            number = bisect_right(self._starts, at) - 1
            if number >= 0 and self._starts[number] == at:
                yield self._name_at(at), number
            at = self._text.find(quoted, at + 1)

    def _name_at(self, at: int) -> str:
        match = _NAME.match(self._text, at)
        assert match is not None
        name: str = json.loads(match[1])
        return name


NO_NAMES = IdentifierNames(b"", array("q"))


def read_identifiers(file: Path) -> IdentifierNames:
    """Return the names in a file. Raise ModelFormatError for one that is no JSON list of strings."""
    try:
        with file.open("rb") as handle:
            text = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise unusable(file, error) from error
    except ValueError as error:  # an empty file cannot be mapped
        raise faulty(file, _NO_LIST) from error
    starts = _starts(text, file)
    # The pages that were read are only asked for again where a name is looked up.
    if hasattr(mmap, "MADV_DONTNEED"):
        text.madvise(mmap.MADV_DONTNEED)
    return IdentifierNames(text, starts)


def _starts(text: mmap.mmap, file: Path) -> "array[int]":
    """Return where the names in a JSON list of strings begin, at their quotes."""
    starts = array("q")
    if _EMPTY_LIST.fullmatch(text):
        return starts
    match = _OPENING.match(text)
    while match is not None and match[match.lastindex or 0] != b"]":
        match = _NAME.match(text, match.end())
        if match is not None:
            starts.append(match.start(1))
    if match is None or text[match.end() :].strip():
        raise _refusal(text, file)
    return starts


def _refusal(text: mmap.mmap, file: Path) -> ModelFormatError:
    try:
        json.loads(text[:])
    except ValueError as error:
        return faulty(file, f"is not valid JSON: {error}; correct or remove it.")
    return faulty(file, _NO_LIST)
