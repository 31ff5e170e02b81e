"""The page *Puzzles*: boards that a recurrent network fills in, segment by segment."""

from collections.abc import Callable, Mapping
from functools import partial

import streamlit as st

from scripts.ui.puzzles import arc
from scripts.ui.puzzles.maze import MAZE
from scripts.ui.puzzles.one_grid import show_one_grid
from scripts.ui.puzzles.sudoku import SUDOKU
from scripts.ui.session import LINK

GRID_KINDS = (SUDOKU, MAZE)
KINDS: dict[str, Callable[[], None]] = {
    **{kind.title: partial(show_one_grid, kind) for kind in GRID_KINDS},
    arc.TITLE: arc.show,
}
"""The kinds of puzzles, by their titles."""


def example_problems(kinds: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return what is wrong with the puzzles of a configuration, which are given by kind and name."""
    known = {kind.name: kind for kind in GRID_KINDS}
    found = []
    for name, puzzles in kinds.items():
        if name not in known:
            found.append(f"puzzles: expected {' or '.join(known)}, got {name!r}")
            continue
        for title, text in puzzles.items():
            try:
                known[name].read(text)
            except ValueError as error:
                found.append(f"puzzles.{name}.{title}: {error}")
    return found


def show() -> None:
    """Draw the page."""
    st.title("Puzzles")
    kind = st.segmented_control(
        "Kind",
        list(KINDS),
        default=SUDOKU.title,
        required=True,
        key="kind",
        label_visibility="collapsed",
        **LINK,
    )
    # The address has the puzzle of this kind, not those of the others.
    for other in GRID_KINDS:
        if other.title != kind:
            st.query_params.pop(other.field, None)
    KINDS[kind or SUDOKU.title]()
