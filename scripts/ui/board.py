"""A Sudoku board: cells to click and to type in, and a pad of digits for fingers.

It is a component of Streamlit in HTML, CSS and JavaScript of its own, which are in `board/`.
"""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import streamlit as st
from streamlit.components.v2.types import ComponentRenderer

_FOLDER = Path(__file__).parent / "board"


def show_board(
    cells: str,
    *,
    key: str,
    box: tuple[int, int],
    givens: str = "",
    changed: Sequence[Sequence[int]] = (),
    version: int = 0,
    on_edit: Callable[[], None] | None = None,
) -> None:
    """Draw a board of n x n cells, given row by row; `.` is blank.

    `box` is the number of rows and of columns of a box. The digits of `givens` are drawn as such.
    `changed` are rows and columns, from 0, to be marked. With `on_edit` the board can be edited: it
    is called when `st.session_state[key].edited` is a new text of all cells. The board keeps what
    a person types until `version` changes.
    """
    _board()(
        data={
            "cells": cells,
            "givens": givens,
            "changed": [list(cell) for cell in changed],
            "boxRows": box[0],
            "boxColumns": box[1],
            "version": version,
            "isEditable": on_edit is not None,
        },
        key=key,
        on_edited_change=on_edit or _ignore,
    )


def _ignore() -> None:
    """Do nothing: a board that only shows has no edits."""


def _board() -> ComponentRenderer:
    return st.components.v2.component(
        "sudoku_board",
        html='<div class="sudoku"></div>',
        css=_text("board.css"),
        js=_text("board.js"),
    )


@cache
def _text(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")
