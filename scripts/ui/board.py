"""A board of cells to click, to type in and to paint, with a pad for fingers.

It is a component of Streamlit in HTML, CSS and JavaScript of its own, which are in `board/`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import streamlit as st
from streamlit.components.v2.types import ComponentRenderer

_FOLDER = Path(__file__).parent / "board"

Rows = list[str]
"""The rows of a board, from the top. Each cell is one character."""


@dataclass(frozen=True)
class Sign:
    """A character that a cell may have, and its name for people.

    `keys` are the keys that enter it, besides its own. One that `is_unique` is in one cell at most.
    One that `is_only_in_answers` cannot be drawn.
    """

    sign: str
    name: str
    keys: str = ""
    is_unique: bool = False
    is_only_in_answers: bool = False


@dataclass(frozen=True)
class BoardStyle:
    """The look of a kind of boards, and the signs that their cells may have.

    The first sign is a blank cell. A board that `paints` has brushes in its pad, for clicks and
    strokes; the pad of any other enters a sign into the selected cell.
    """

    look: Literal["sudoku", "maze", "arc"]
    signs: tuple[Sign, ...]
    paints: bool = False


def show_board(
    rows: Rows,
    style: BoardStyle,
    *,
    key: str,
    label: str,
    box: tuple[int, int] | None = None,
    givens: Sequence[str] = (),
    changed: Sequence[Sequence[int]] = (),
    version: int = 0,
    is_small: bool = False,
    on_edit: Callable[[Rows], None] | None = None,
) -> None:
    """Draw a board. `label` names it for readers of the screen.

    `box` is the number of rows and of columns of a box. The signs of `givens`, which are rows, are
    drawn as such. `changed` are rows and columns, from 0, to be marked. With `on_edit` the board
    can be edited: it is called with all rows of a drawing. The board keeps what a person draws
    until `version` or `label` changes, and drawings on an earlier one are dropped.
    """

    def take_edit() -> None:
        edited = st.session_state[key].get("edited")
        is_ours = edited and (edited["version"], edited["label"]) == (version, label)
        if on_edit is not None and is_ours:
            on_edit(edited["rows"])

    box_rows, box_columns = box or (len(rows), len(rows[0]))
    _board()(
        data={
            "rows": rows,
            "look": style.look,
            "signs": [_in_script(sign) for sign in style.signs],
            "paints": style.paints,
            "label": label,
            "givens": list(givens),
            "changed": [list(cell) for cell in changed],
            "boxRows": box_rows,
            "boxColumns": box_columns,
            "version": version,
            "isSmall": is_small,
            "isEditable": on_edit is not None,
        },
        key=key,
        on_edited_change=take_edit,
    )


def _in_script(sign: Sign) -> dict[str, object]:
    return {
        "sign": sign.sign,
        "name": sign.name,
        "keys": sign.keys,
        "isUnique": sign.is_unique,
        "isOnlyInAnswers": sign.is_only_in_answers,
    }


def _board() -> ComponentRenderer:
    return st.components.v2.component(
        "puzzle_board",
        html='<div class="board"></div>',
        css=_text("board.css"),
        js=_text("board.js"),
    )


@cache
def _text(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")
