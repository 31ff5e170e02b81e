"""The part of the page for a puzzle on one grid: examples, a board to draw on, its solution."""

from functools import partial

import streamlit as st

from scripts.ui.board import Rows, show_board
from scripts.ui.client import Body
from scripts.ui.config import app_config
from scripts.ui.puzzles.grid_kind import GridKind
from scripts.ui.puzzles.models import cells_served, model_for, obstacle
from scripts.ui.puzzles.solving import (
    GridView,
    SolvingState,
    sample_fields,
    sampled_request,
    show_run,
    text_field,
)
from scripts.ui.session import show_error, stop


def show_one_grid(kind: GridKind) -> None:
    """Draw the part of the page for a kind of puzzle."""
    state = _state(kind)
    why_not = obstacle(kind.name, kind.plural)
    if why_not:
        st.info(why_not, icon=":material/info:")
    _fields(kind, state)
    st.query_params[kind.field] = state.text
    try:
        rows = kind.read(state.text)
    except ValueError as error:
        state.clear()
        show_error(str(error))
        return

    if state.run is None:
        show_board(
            rows,
            kind.style_of(rows),
            key=_board_key(kind),
            label=_label(kind, rows),
            box=kind.box_of(rows),
            version=state.version,
            on_edit=lambda drawn: state.take_drawing(kind.write(drawn)),
        )
    _buttons(kind, state, rows, can_solve=not why_not)
    show_error(state.error)
    if state.run is not None:
        view = GridView(
            _label(kind, rows),
            kind.style_of(rows),
            partial(_rows_of, kind, rows),
            givens=rows,
            box=kind.box_of(rows),
        )
        show_run(state, state.run, view)


def _rows_of(kind: GridKind, puzzle: Rows, grid: object) -> Rows:
    return kind.rows_of(grid, puzzle)


def _label(kind: GridKind, rows: Rows) -> str:
    return f"{kind.title} of {len(rows)} rows"


def _board_key(kind: GridKind) -> str:
    return f"{kind.name}_board"


def _state(kind: GridKind) -> SolvingState:
    """Return the state of a kind of puzzle. At first the puzzle is that of the link, if any."""
    name = f"{kind.name}_solving"
    if name not in st.session_state:
        examples = _examples(kind)
        first = examples.get(kind.first) or next(iter(examples.values()))
        text = st.query_params.get(kind.field, kind.write(first))
        st.session_state[name] = SolvingState(text)
    state: SolvingState = st.session_state[name]
    return state


def _examples(kind: GridKind) -> dict[str, Rows]:
    """Return the examples by name: those of the configuration, or else the app's own."""
    own = app_config().puzzles.get(kind.name)
    if own:
        return {name: kind.read(text) for name, text in own.items()}
    return kind.examples(cells_served(kind.name))


def _fields(kind: GridKind, state: SolvingState) -> None:
    examples = _examples(kind)
    st.pills(
        "Examples",
        list(examples),
        key=f"{kind.field}_example",
        on_change=_take_example,
        args=(kind, state, examples),
    )
    with st.expander("More", icon=":material/tune:"):
        text_field(state, kind.field, is_long=kind.is_long, help=kind.text_help)
        sample_fields()


def _take_example(kind: GridKind, state: SolvingState, examples: dict[str, Rows]) -> None:
    name = st.session_state[f"{kind.field}_example"]
    if name:
        state.put(kind.write(examples[name]))


def _buttons(kind: GridKind, state: SolvingState, rows: Rows, *, can_solve: bool) -> None:
    with st.container(horizontal=True, horizontal_alignment="center"):
        if state.run is None:
            if st.button(
                "Solve", type="primary", icon=":material/play_arrow:", disabled=not can_solve
            ):
                state.submit("/v1/puzzles/solve", partial(_request, kind, rows))
            blank = kind.style_of(rows).signs[0].sign
            empty = [blank * len(row) for row in rows]
            st.button(
                "Clear",
                icon=":material/backspace:",
                on_click=state.put,
                args=(kind.write(empty),),
            )
        elif state.is_running:
            if st.button("Stop", icon=":material/stop:"):
                state.error = stop(state.run)
        else:
            st.button("Back to the puzzle", icon=":material/edit:", on_click=state.clear)


def _request(kind: GridKind, rows: Rows) -> Body:
    num_cells = len(rows) * len(rows[0])
    return sampled_request(model_for(kind.name, num_cells), kind.grid_of(rows))
