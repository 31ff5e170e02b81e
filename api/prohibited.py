"""Terms that no request for work may contain, whatever their letter case and in whichever text of its body.

Knows no dialect: a body is any JSON, and the text at fault is named by the way to it. Token ids are not text.
"""

import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

from shared.errors import ProhibitedContent
from shared.paths import read_text
from shared.settings import Settings


class Prohibited:
    def __init__(self, terms: Sequence[str] = ()) -> None:
        folded = sorted({_folded(term) for term in terms})
        self._pattern = re.compile("|".join(map(re.escape, folded))) if folded else None

    def check(self, body: bytes) -> None:
        """Raises ProhibitedContent, which names the field and not the term. What is no JSON has no text: its route
        refuses it."""
        if self._pattern is None:
            return
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            return
        for path, text in _texts(value):
            if self._pattern.search(_folded(text)):
                raise ProhibitedContent(f"{path}: Prohibited content in request", field=re.split(r"[.\[]", path)[0])


def read_terms(settings: Settings) -> list[str]:
    """One a line; empty lines and those that begin with # are none. Raises SettingsError."""
    if settings.prohibited_terms is None:
        return []
    lines = read_text(settings, "prohibited_terms").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def _texts(value: Any) -> Iterator[tuple[str, str]]:
    """Every string in a JSON value, and the way to it: `prompts[1]`, `messages[0].content`."""
    todo: list[tuple[str, Any]] = [("", value)]
    while todo:
        path, item = todo.pop()
        if isinstance(item, str):
            yield path, item
        elif isinstance(item, dict):
            todo += [(f"{path}.{name}" if path else name, part) for name, part in item.items()]
        elif isinstance(item, list):
            todo += [(f"{path}[{number}]", part) for number, part in enumerate(item)]


def _folded(text: str) -> str:
    """As letters that look alike in Unicode's eyes compare, and runs of white space as one space."""
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()))
