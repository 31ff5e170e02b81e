"""A grid that a network fills in, segment by segment, as it comes and afterwards."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import streamlit as st

from scripts.ui.board import BoardStyle, Rows, show_board
from scripts.ui.client import Body, ServerError
from scripts.ui.run import Run
from scripts.ui.session import LINK, draw_live, show_error, show_timings, submitted

_SOLUTION = "solution"


@dataclass
class SolvingState:
    """The state of one kind of puzzle on the page.

    `text` is the puzzle. `version` counts those that were not drawn cell by cell, `drawn` those
    that were not typed as text, and `shown` the segments of the run that a person has seen.
    """

    text: str = ""
    version: int = 0
    drawn: int = 0
    run: Run | None = None
    shown: int = 0
    error: str = ""

    @property
    def is_running(self) -> bool:
        return self.run is not None and not self.run.is_done

    def clear(self) -> None:
        self.run = None
        self.shown = 0
        self.error = ""

    def put(self, text: str) -> None:
        """Put another puzzle on the board."""
        self.text = text
        self.version += 1
        self.drawn += 1
        self.clear()

    def take_text(self, key: str, drawn: int) -> None:
        """Put the puzzle on the board that a person has typed into the field `key`.

        The field is that of the puzzle when so many were drawn.
        """
        # A click that follows a drawing at once still comes with the field from before it.
        if drawn == self.drawn:
            self.text = st.session_state[key]
            self.version += 1
            self.clear()

    def take_drawing(self, text: str) -> None:
        """Take over a puzzle that a person has drawn on the board."""
        # The browser may send a drawing once more, after a click has begun to solve it.
        if text == self.text:
            return
        self.text = text
        self.drawn += 1
        self.clear()

    def submit(self, path: str, body_of: Callable[[], Body]) -> None:
        """Submit a request, or tell in the page why there is none. Then draw the page anew."""
        self.clear()
        try:
            self.run = submitted(path, body_of())
        except ServerError as error:
            self.error = str(error)
        st.rerun()


@dataclass(frozen=True)
class GridView:
    """The way in which the grids of a run are drawn. `givens` are the rows of the puzzle."""

    label: str
    style: BoardStyle
    rows_of: Callable[[Any], Rows]
    givens: Sequence[str] = ()
    box: tuple[int, int] | None = None


def text_field(state: SolvingState, name: str, *, is_long: bool, help: str) -> None:
    """Draw the field with the puzzle as text."""
    # A drawing makes another field, as one with a key keeps its text.
    key = f"{name}_text_{state.drawn}"
    field = st.text_area if is_long else st.text_input
    field(
        "As text",
        state.text,
        key=key,
        on_change=state.take_text,
        args=(key, state.drawn),
        help=help,
    )


def halt_field(place: Any) -> None:
    place.selectbox(
        "Segments",
        ["max", "q_halt"],
        key="halt",
        format_func={"max": "all of them", "q_halt": "until the network halts"}.__getitem__,
        **LINK,
    )


def sample_fields() -> None:
    """Draw the fields of a request: how long the network works, and how many samples there are."""
    left, right = st.columns(2)
    halt_field(left)
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


def sampled_request(model: str, grid: Any) -> Body:
    """Return the body of a request with what the fields say."""
    fields = st.session_state
    body: Body = {"model": model, "grid": grid, "halt": fields["halt"], "stream": True}
    if fields["samples"] > 1:
        body |= {
            "samples": fields["samples"],
            "noise": fields["noise"],
            "select": fields["select"],
        }
    return body


def show_run(state: SolvingState, run: Run, view: GridView) -> None:
    """Draw the segments one by one as they come, and then let a person choose one."""

    def is_settled() -> bool:
        return state.shown >= len(segments_of(run, sample=0))

    def draw(run: Run) -> None:
        segments = segments_of(run, sample=0)
        if run.is_done and is_settled():
            _show_result(run, view)
            return
        state.shown = min(state.shown + 1, len(segments))
        if state.shown == 0:
            st.caption("Waiting for the first segment ...")
        else:
            _show_segment(segments[state.shown - 1], view)

    draw_live(run, draw, is_settled)


def segments_of(run: Run, sample: int) -> list[Body]:
    """Return the segments of a sample that have come so far."""
    segments = []
    for frame in run.frames:
        if frame.get("object") == "solve.segment" and frame["sample"] == sample:
            segments.append(frame)
    return segments


def _show_segment(segment: Body, view: GridView) -> None:
    rows = view.rows_of(segment["grid"])
    if rows and rows[0]:
        show_board(
            rows,
            view.style,
            key=_SOLUTION,
            label=view.label,
            box=view.box,
            givens=view.givens,
            changed=segment["changed"],
        )
    else:
        st.caption("There is no rectangle of colours in the answer yet.")
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
    # Without an overflow for a network that is very unsure.
    return 0.5 * (1 + math.tanh(q / 2))


def _show_result(run: Run, view: GridView) -> None:
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
    _show_segment(segments[step - 1], view)
    show_timings(run)


def _show_verdict(solution: Body) -> None:
    """Say whether the rules are kept, where they are known, and how many samples agree."""
    with st.container(horizontal=True, horizontal_alignment="center"):
        if solution["valid"]:
            st.badge("Solved by the rules", icon=":material/check_circle:", color="green")
        elif solution["valid"] is not None:
            st.badge("Not a solution", icon=":material/cancel:", color="red")
        if solution["shortest"]:
            st.badge("No way is shorter", icon=":material/straighten:", color="green")
        elif solution["shortest"] is not None:
            st.badge("A shorter way exists", icon=":material/straighten:", color="orange")
        if solution["samples_run"] > 1:
            st.badge(
                f"sample {solution['sample']}, {solution['votes']} of {solution['samples_run']} votes",
                icon=":material/how_to_vote:",
                color="blue",
            )
