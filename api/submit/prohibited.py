"""Terms that no request for work may contain, whatever their letter case and in whichever text of
its body.

Knows no dialect: a body is any JSON, and the text at fault is named by the way to it. Token ids are
not text.
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
"""At most so many characters are folded into one, but for what nobody writes."""


class Prohibited:
    def __init__(self, terms: Sequence[str] = ()) -> None:
        folded = sorted({_folded(term) for term in terms})
        self._pattern = re.compile("|".join(map(re.escape, folded))) if folded else None
        self._longest = max(map(len, folded), default=0)

    def check(self, body: bytes) -> None:
        """Raises ProhibitedContent, which names the field and not the term. What is no JSON has no
        text: its route refuses it."""
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
        """Raise ProhibitedContent."""
        if self._pattern is not None and self._pattern.search(_folded(text)):
            raise _refusal(field)

    def scan(self, field: str, *, is_text: bool) -> "Scan | None":
        """Return what looks through bytes that come in pieces; None if there is nothing to look
        for.

        Bytes that are not said to be text are looked through if they begin as text does.
        """
        if self._pattern is None:
            return None
        return Scan(self._pattern, field, kept=_RAW_OF_FOLDED * self._longest, is_text=is_text)


class Scan:
    """Looks for terms in UTF-8 text that comes in pieces, also where one lies across two of them.

    So much of the text before is `kept` for that, runs of white space as one space.
    """

    def __init__(self, pattern: re.Pattern[str], field: str, *, kept: int, is_text: bool) -> None:
        self._pattern = pattern
        self._field = field
        self._kept = kept
        self._is_text: bool | None = is_text or None
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
        self._tail = text[-self._kept :]


def read_terms(settings: Settings) -> list[str]:
    """One a line; empty lines and those that begin with # are none. Raises SettingsError."""
    if settings.prohibited_terms is None:
        return []
    lines = read_text(settings, "prohibited_terms").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def _refusal(path: str) -> ProhibitedContent:
    return ProhibitedContent(
        f"{path}: Prohibited content in request", field=re.split(r"[.\[]", path)[0]
    )


def _texts(value: Any) -> Iterator[tuple[str, str]]:
    """Yield every string in a JSON value with its path: `prompts[1]`, `messages[0].content`."""
    todo: list[tuple[str, Any]] = [("", value)]
    while todo:
        path, item = todo.pop()
        if isinstance(item, str):
            yield path, item
        elif isinstance(item, dict):
            for name, part in item.items():
                todo.append((f"{path}.{name}" if path else name, part))
        elif isinstance(item, list):
            for number, part in enumerate(item):
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
    """As letters that look alike in Unicode's eyes compare, and runs of white space as one
    space."""
    return _SPACES.sub(
        " ", unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    )
