"""Words that differ between two texts, drawn without trust in the texts."""

import difflib
import html
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

_WORD = re.compile(r"\w+|[^\w\s]|\s+")
_BLOCK = "white-space: pre-wrap; overflow-wrap: anywhere"
# A mark is a line as well as a colour, for those who do not see the colour.
_ADDED = "background: rgba(46, 160, 67, .25); text-decoration: underline; font-weight: 600"
_REMOVED = "background: rgba(229, 83, 75, .22); text-decoration: line-through"


@dataclass(frozen=True)
class Piece:
    """A part of a text: what both texts have, or only one of them.

    What is "added" is not in the reference, and what is "removed" is only there.
    """

    kind: Literal["same", "added", "removed"]
    text: str


@lru_cache(maxsize=256)
def differences(reference: str, text: str) -> tuple[Piece, ...]:
    """Return the pieces of a text beside a reference, word by word, in their order."""
    before = _WORD.findall(reference)
    after = _WORD.findall(text)
    pieces: list[Piece] = []
    # Without the heuristic for long texts, which would ignore frequent words.
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    for kind, first, end, new_first, new_end in matcher.get_opcodes():
        old = "".join(before[first:end])
        new = "".join(after[new_first:new_end])
        if kind == "equal":
            pieces.append(Piece("same", new))
            continue
        if old:
            pieces.append(Piece("removed", old))
        if new:
            pieces.append(Piece("added", new))
    return tuple(pieces)


def marked(pieces: tuple[Piece, ...]) -> str:
    """Return a block of HTML in which added and removed pieces are marked."""
    parts = []
    for piece in pieces:
        text = html.escape(piece.text)
        if piece.kind == "added":
            text = f'<ins style="{_ADDED}">{text}</ins>'
        elif piece.kind == "removed":
            # The end of a line that is not there must not break this one.
            text = text.replace("\n", "\u21b5")
            text = f'<del style="{_REMOVED}">{text}</del>'
        parts.append(text)
    return f'<div style="{_BLOCK}">{"".join(parts)}</div>'
