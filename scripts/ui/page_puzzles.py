"""The page *Puzzles*: a Sudoku that a recurrent network fills in, segment by segment."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import streamlit as st

from scripts.ui.board import show_board
from scripts.ui.client import Body, ServerError
from scripts.ui.config import app_config
from scripts.ui.run import Run
from scripts.ui.session import (
    LINK,
    chosen_model,
    draw_live,
    models_for,
    show_error,
    show_timings,
    stop,
    submitted,
)

TASK = "solve"
BOARD = "board"
_BLANK = "."
BOXES = {9: (3, 3), 6: (2, 3), 4: (2, 2)}
"""The rows and columns of a box, by the size of the Sudoku."""
_KIND = "sudoku"
_EXPECTED = "A Sudoku has 81 or 36 or 16 digits, with a dot for each blank cell."
EXAMPLES = {
    9: {
        "Easy": "64.8.39.1.3.5.9687..9...45.916.8.5724.89523..523.6....257.38169.617.5248.9.6.1...",
        "Medium": "1576...4..984.5.1.3.....856..2896573.3.72168.7..54.192..1...7.5.6927..31...1.4.6.",
        "Hard": ".8.7....1.36..8.9.4..6.2..3563..9.1281..27.6..2.36....69..5..3.3.591.42.1..873.56",
    },
    6: {
        "Easy": "2143...3..42..263.643.2132.4654.5...",
        "Hard": "345.2..265....1.6..5.213......4....1",
    },
    4: {"Easy": "214.341.1.24.231", "Hard": "..2..1.3.....43."},
}


@dataclass
class PuzzlesState:
    """The state of the puzzle on the board.

    `version` counts the boards that were not typed cell by cell, and `shown` the segments of the
    run that a person has seen.
    """

    version: int = 0
    run: Run | None = None
    shown: int = 0
    error: str = ""

    def clear(self) -> None:
        self.run = None
        self.shown = 0
        self.error = ""


def show() -> None:
    """Draw the page."""
    state: PuzzlesState = st.session_state.setdefault("puzzles", PuzzlesState())
    st.title("Puzzles")
    _fields(state)
    puzzle = st.session_state["puzzle"]
    size = size_of(puzzle)
    if size is None:
        state.error = _EXPECTED
    elif state.run is None:
        show_board(puzzle, key=BOARD, box=BOXES[size], version=state.version, on_edit=_take_edit)
    if size is not None:
        _buttons(state, puzzle)
    show_error(state.error)
    if size is not None and state.run is not None:
        _show_run(state, state.run, puzzle)


def size_of(puzzle: str) -> int | None:
    """Return the number of rows of a Sudoku in one text, None if the text is none."""
    for size in BOXES:
        digits = {_BLANK, *map(str, range(1, size + 1))}
        if len(puzzle) == size * size and set(puzzle) <= digits:
            return size
    return None


def examples() -> dict[str, str]:
    """Return the examples by name: those of the configuration, or else the app's own."""
    own = app_config().puzzles.get(_KIND)
    if own:
        return own
    found = {}
    for size, puzzles in EXAMPLES.items():
        for name, puzzle in puzzles.items():
            found[f"{name} {size} x {size}"] = puzzle
    return found


def example_problems(kinds: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return what is wrong with the puzzles of a configuration, which are given by kind and name."""
    found = []
    for kind, puzzles in kinds.items():
        if kind != _KIND:
            found.append(f"puzzles: expected {_KIND}, got {kind!r}")
            continue
        for name, puzzle in puzzles.items():
            if size_of(puzzle) is None:
                found.append(f"puzzles.{kind}.{name}: {_EXPECTED}")
    return found


def _fields(state: PuzzlesState) -> None:
    st.pills("Examples", list(examples()), key="puzzle_example", on_change=_take_example)
    with st.expander("More", icon=":material/tune:"):
        st.text_input(
            "As text",
            EXAMPLES[9]["Medium"],
            key="puzzle",
            on_change=_take_text,
            help="All cells, row by row; a dot is blank.",
            **LINK,
        )
        left, right = st.columns(2)
        left.selectbox(
            "Segments",
            ["max", "q_halt"],
            key="halt",
            format_func={"max": "all of them", "q_halt": "until the network halts"}.__getitem__,
            **LINK,
        )
        right.slider("Samples", 1, 16, 1, key="samples", **LINK)
        left.slider("Noise of the samples", 0.05, 2.0, 0.5, 0.05, key="noise", **LINK)
        right.selectbox(
            "Selected is",
            ["best_q", "mode", "verified"],
            key="select",
            format_func={
                "best_q": "the surest sample",
                "mode": "the commonest grid",
                "verified": "the first that is right",
            }.__getitem__,
            **LINK,
        )


def _take_edit() -> None:
    """Take over what a person has typed into the board."""
    cells = st.session_state[BOARD].edited
    # Streamlit may report an edit again with the click that follows it.
    if cells and cells != st.session_state["puzzle"]:
        st.session_state["puzzle"] = cells
        _state().clear()


def _take_text() -> None:
    """Draw the puzzle that a person has written as text."""
    _state().clear()
    _state().version += 1


def _take_example() -> None:
    name = st.session_state["puzzle_example"]
    if name:
        _put(examples()[name])


def _put(puzzle: str) -> None:
    """Put another puzzle on the board."""
    st.session_state["puzzle"] = puzzle
    _take_text()


def _state() -> PuzzlesState:
    state: PuzzlesState = st.session_state["puzzles"]
    return state


def _buttons(state: PuzzlesState, puzzle: str) -> None:
    run = state.run
    is_running = run is not None and not run.is_done
    with st.container(horizontal=True, horizontal_alignment="center"):
        if run is None:
            if st.button("Solve", type="primary", icon=":material/play_arrow:"):
                _solve(state, puzzle)
            blank = _BLANK * len(puzzle)
            st.button("Clear", icon=":material/backspace:", on_click=_put, args=(blank,))
        elif is_running:
            if st.button("Stop", icon=":material/stop:"):
                state.error = stop(state.run)
        else:
            st.button("Back to the puzzle", icon=":material/edit:", on_click=_take_text)


def _solve(state: PuzzlesState, puzzle: str) -> None:
    state.clear()
    try:
        state.run = submitted("/v1/puzzles/solve", _request(puzzle))
    except ServerError as error:
        state.error = str(error)
    st.rerun()


def _request(puzzle: str) -> Body:
    """Return the body of a request. Raise ServerError if the server has no model for puzzles."""
    model = chosen_model(TASK)
    if not model:
        served = models_for(TASK)
        if not served:
            raise ServerError(
                "The server has no model for puzzles. One that ships is served by "
                "`aios serve hrm --model sudoku=models/sample-trm-sudoku-9x9`."
            )
        model = served[0]

    fields = st.session_state
    body: Body = {"model": model, "grid": puzzle, "halt": fields["halt"], "stream": True}
    if fields["samples"] > 1:
        body |= {
            "samples": fields["samples"],
            "noise": fields["noise"],
            "select": fields["select"],
        }
    return body


def _show_run(state: PuzzlesState, run: Run, puzzle: str) -> None:
    """Draw the segments one by one as they come, and then let a person choose one."""

    def is_settled() -> bool:
        return state.shown >= len(segments_of(run, sample=0))

    def draw(run: Run) -> None:
        segments = segments_of(run, sample=0)
        if run.is_done and is_settled():
            _show_result(run, puzzle)
            return
        state.shown = min(state.shown + 1, len(segments))
        if state.shown == 0:
            st.caption("Waiting for the first segment ...")
        else:
            _show_segment(segments[state.shown - 1], puzzle)

    draw_live(run, draw, is_settled)


def segments_of(run: Run, sample: int) -> list[Body]:
    """Return the segments of a sample that have come so far."""
    segments = []
    for frame in run.frames:
        if frame.get("object") == "solve.segment" and frame["sample"] == sample:
            segments.append(frame)
    return segments


def _show_segment(segment: Body, puzzle: str) -> None:
    size = size_of(puzzle)
    if size is None:
        return
    show_board(
        segment["grid"],
        key="solution",
        box=BOXES[size],
        givens=puzzle,
        changed=segment["changed"],
    )
    with st.container(horizontal=True, horizontal_alignment="center"):
        st.metric("Segment", f"{segment['step']} of {segment['max_steps']}", width="content")
        st.metric("Changed", f"{len(segment['changed'])} cells", width="content")
        st.metric(
            "Sure",
            f"{100 * _sigmoid(segment['q_halt']):.1f} %",
            help="The sigmoid of q_halt: how sure the network is that the board is right.",
            width="content",
        )


def _sigmoid(q: float) -> float:
    return 1 / (1 + math.exp(-q))


def _show_result(run: Run, puzzle: str) -> None:
    solution: Body = {}
    samples = set()
    for frame in run.frames:
        if frame.get("object") == "solve.segment":
            samples.add(frame["sample"])
        if "solutions" in frame:
            solution = frame["solutions"][0]
    if run.is_cancelled:
        st.caption("Stopped.")
    else:
        show_error(run.error)
    if solution:
        _show_verdict(solution)
    if not samples:
        return

    sample = solution.get("sample", 0)
    if len(samples) > 1:
        numbers = sorted(samples)
        sample = st.selectbox("Sample", numbers, index=numbers.index(sample), key="sample")
    segments = segments_of(run, sample)
    step = len(segments)
    if step > 1:
        step = st.slider("Segment", 1, step, step, key=f"segment_{sample}")
    _show_segment(segments[step - 1], puzzle)
    show_timings(run)


def _show_verdict(solution: Body) -> None:
    with st.container(horizontal=True, horizontal_alignment="center"):
        if solution["valid"]:
            st.badge("Solved by the rules", icon=":material/check_circle:", color="green")
        else:
            st.badge("Not a solution", icon=":material/cancel:", color="red")
        if solution["samples_run"] > 1:
            st.badge(
                f"sample {solution['sample']}, {solution['votes']} of {solution['samples_run']} votes",
                icon=":material/how_to_vote:",
                color="blue",
            )
