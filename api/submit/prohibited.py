"""Terms that no request for work may contain, in any text of its body and in any letter case.

This module knows no dialect: a body may be any JSON, and the text at fault is named by its path.
Token ids are not text.
"""

import codecs
import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

from shared.errors import ProhibitedContent
from shared.settings.paths import read_text
from shared.settings.settings import Settings

_SPACES = re.compile(r"\s+")
_RAW_OF_FOLDED = 8
"""The most characters that are folded into one, in text that anybody would write."""


class Prohibited:
    """Checks the texts of requests for any of the terms."""

    def __init__(self, terms: Sequence[str] = ()) -> None:
        folded = sorted({_folded(term) for term in terms})
        self._longest = max(map(len, folded), default=0)
        self._pattern: re.Pattern[str] | None = None
        if folded:
            self._pattern = re.compile("|".join(map(re.escape, folded)))

    def check(self, body: bytes) -> None:
        """Raise ProhibitedContent for a body with a term. It names the field, but not the term.

        A body that is no JSON has no text: its route refuses it.
        """
        if self._pattern is None:
            return
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            return
        for path, text in _texts(value):
            if self._pattern.search(_folded(text)):
                raise _refusal(path)

    def check_text(self, text: str, *, field: str) -> None:
        """Raise ProhibitedContent for a text with a term."""
        if self._pattern is not None and self._pattern.search(_folded(text)):
            raise _refusal(field)

    def scan(self, field: str, *, is_text: bool) -> "Scan | None":
        """Return a Scan for bytes that come in pieces; None if there are no terms.

        Bytes that are not declared as text are scanned if they begin as text does.
        """
        if self._pattern is None:
            return None
        return Scan(self._pattern, field, num_kept=_RAW_OF_FOLDED * self._longest, is_text=is_text)


class Scan:
    """Looks for terms in UTF-8 text that comes in pieces.

    A term may lie across two pieces. So the last `num_kept` characters before a piece are scanned
    again with it. A run of white space counts as one space among them.
    """

    def __init__(
        self, pattern: re.Pattern[str], field: str, *, num_kept: int, is_text: bool
    ) -> None:
        self._pattern = pattern
        self._field = field
        self._num_kept = num_kept
        self._is_text: bool | None = None  # until the first piece tells
        if is_text:
            self._is_text = True
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._tail = ""

    def read(self, piece: bytes) -> None:
        """Raise ProhibitedContent, which names the field and not the term."""
        if self._is_text is None:
            self._is_text = _begins_as_text(piece)
        if not self._is_text:
            return
        text = _SPACES.sub(" ", self._tail + self._decoder.decode(piece))
        if self._pattern.search(_folded(text)):
            raise _refusal(self._field)
        self._tail = text[-self._num_kept :]


def read_terms(settings: Settings) -> list[str]:
    """Return the terms in the file that settings name, which has one in each line.

    Empty lines, and lines that begin with #, are left out. Raise SettingsError.
    """
    if settings.prohibited_terms is None:
        return []
    terms = []
    for line in read_text(settings, "prohibited_terms").splitlines():
        term = line.strip()
        if term and not line.startswith("#"):
            terms.append(term)
    return terms


def _refusal(path: str) -> ProhibitedContent:
    return ProhibitedContent(
        f"{path}: Prohibited content in request", field=re.split(r"[.\[]", path)[0]
    )


def _texts(value: Any) -> Iterator[tuple[str, str]]:
    """Yield every string in a JSON value with its path: `prompts[1]`, `messages[0].content`."""
    todo: list[tuple[str, Any]] = [("", value)]
    while todo:
        path, node = todo.pop()
        if isinstance(node, str):
            yield path, node
        elif isinstance(node, dict):
            for name, part in node.items():
                todo.append((f"{path}.{name}" if path else name, part))
        elif isinstance(node, list):
            for number, part in enumerate(node):
                todo.append((f"{path}[{number}]", part))


def _begins_as_text(piece: bytes) -> bool:
    if b"\0" in piece:
        return False
    try:
        codecs.getincrementaldecoder("utf-8")().decode(piece)
    except UnicodeDecodeError:
        return False
    return True


def _folded(text: str) -> str:
    """Return the text in the form in which texts are compared.

    Letters have no case, and those that Unicode holds compatible (NFKC) are equal. A run of white
    space is one space.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    # Folding a normal text may yield letters that are not normal.
    return _SPACES.sub(" ", unicodedata.normalize("NFKC", folded))
