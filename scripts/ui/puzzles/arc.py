"""The part of the page for ARC tasks: demonstrations and tests to draw, and attempts at the tests."""

from functools import partial
from typing import Any

import streamlit as st

from scripts.ui.board import BoardStyle, Rows, Sign, show_board
from scripts.ui.client import Body, ServerError
from scripts.ui.puzzles.arc_task import (
    EXAMPLES,
    GridPlace,
    Task,
    grid_at,
    places,
    put_grid,
    read_task,
    resized,
    rows_of,
    write_task,
)
from scripts.ui.puzzles.models import model_for, obstacle
from scripts.ui.puzzles.solving import GridView, SolvingState, halt_field, show_run, text_field
from scripts.ui.run import Run
from scripts.ui.session import LINK, draw_live, show_error, show_timings, stop

TITLE = "ARC"
NAME = "arc"
_BOARD = "arc_board"
_ID = "arc_task"
_FIELD_CELLS = 900
_COLOURS = (
    "black",
    "blue",
    "red",
    "green",
    "yellow",
    "grey",
    "magenta",
    "orange",
    "sky blue",
    "maroon",
)
STYLE = BoardStyle(
    "arc",
    tuple(Sign(str(number), name) for number, name in enumerate(_COLOURS)),
    paints=True,
)
_FIRST_ID, _FIRST_TASK = EXAMPLES["Copies of itself"]
_NEW_GRID = ["000", "000", "000"]


def show() -> None:
    """Draw the part of the page."""
    why_not = obstacle(NAME, "ARC tasks")
    if why_not:
        st.info(why_not, icon=":material/info:")
    votes = _state("votes")
    segments = _state("segments")
    _fields(votes)
    try:
        task = read_task(votes.text)
    except ValueError as error:
        _clear()
        show_error(str(error))
        return

    _show_pairs(task)
    _show_editor(task)
    _buttons(task, can_solve=not why_not)
    show_error(votes.error or segments.error)
    if segments.run is not None:
        view = GridView("Answer to test 1", STYLE, rows_of)
        show_run(segments, segments.run, view)
    draw_live(votes.run, partial(_show_votes, task))


def _fields(votes: SolvingState) -> None:
    st.pills("Examples", list(EXAMPLES), key="arc_example", on_change=_take_example)
    st.text_input(
        "Task",
        _FIRST_ID,
        key=_ID,
        on_change=_clear,
        help="The id under which the network was trained with the task. It knows no others.",
        **LINK,
    )
    with st.expander("More", icon=":material/tune:"):
        text_field(votes, NAME, is_long=True, help="JSON, as in ARC's own files.")
        left, right = st.columns(2)
        left.number_input(
            "Augmentations",
            1,
            1000,
            8,
            key="augmentations",
            help="So many turned and recoloured forms of the task vote on each test.",
            **LINK,
        )
        right.slider("Attempts", 1, 10, 2, key="attempts", **LINK)
        halt_field(left)
        right.toggle("Check the demonstrations, too", key="check_demonstrations", **LINK)


def _show_pairs(task: Task) -> None:
    """Draw all pairs of the task, small."""
    for part, name in (("train", "Demonstrations"), ("test", "Tests")):
        st.caption(name)
        with st.container(horizontal=True, gap="large"):
            for place in places(task):
                if place.part == part and place.side == "input":
                    _show_pair(task, place)


def _show_pair(task: Task, place: GridPlace) -> None:
    with st.container(horizontal=True, width="content", vertical_alignment="center"):
        for side in (place, place._replace(side="output")):
            rows = grid_at(task, side)
            if side.side == "output":
                st.markdown(":material/arrow_forward:", width="content")
            if rows:
                _show_small(rows, key=f"pair {side.title}", label=side.title)
            else:
                st.caption("not known", width="content")


def _show_small(rows: Rows, *, key: str, label: str) -> None:
    with st.container(width=_small_width(rows)):
        show_board(rows, STYLE, key=key, label=label, is_small=True)


def _small_width(rows: Rows) -> int:
    """Return the width in pixels of a small board, which fits a phone."""
    return min(320, max(40, 16 * len(rows[0])))


def _show_editor(task: Task) -> None:
    """Draw one grid of the task, to be drawn on."""
    version = _state("votes").version
    titles = {place.title: place for place in places(task)}
    title = st.selectbox(
        "Grid to draw on", list(titles), index=_first_test(list(titles)), key=f"arc_place_{version}"
    )
    place = titles[title]
    rows = grid_at(task, place)
    if not rows:
        st.button(
            "Draw the output, to compare with",
            icon=":material/add:",
            on_click=_change_grid,
            args=(place, resized([], *_size_of(task, place))),
        )
        return

    left, right = st.columns(2)
    for name, at, size in (("Rows", left, len(rows)), ("Columns", right, len(rows[0]))):
        # A key for each size, so that the field follows the grid.
        key = f"{name} {title} {len(rows)} {len(rows[0])}"
        at.number_input(
            name, 1, 30, size, key=key, on_change=_resize, args=(place, rows, name, key)
        )
    show_board(
        rows,
        STYLE,
        key=_BOARD,
        label=title,
        version=version,
        on_edit=partial(_take_drawing, place),
    )
    with st.container(horizontal=True, horizontal_alignment="center"):
        st.button(
            "Clear", on_click=_change_grid, args=(place, resized([], len(rows), len(rows[0])))
        )
        st.button("Add a demonstration", icon=":material/add:", on_click=_add_demonstration)
        if place.part == "train":
            st.button("Remove this demonstration", on_click=_remove, args=(place,))
        elif place.side == "output":
            st.button("Forget this output", on_click=_remove, args=(place,))


def _first_test(titles: list[str]) -> int:
    return titles.index(GridPlace("test", 0, "input").title)


def _size_of(task: Task, place: GridPlace) -> tuple[int, int]:
    rows = grid_at(task, place._replace(side="input"))
    return len(rows), len(rows[0])


def _take_drawing(place: GridPlace, rows: Rows) -> None:
    """Take over what a person has drawn on the board."""
    task = read_task(_state("votes").text)
    put_grid(task, place, rows)
    _state("votes").take_drawing(write_task(task))
    _state("segments").clear()


def _change_grid(place: GridPlace, rows: Rows) -> None:
    """Put another grid into the task. The place that is drawn on stays."""
    task = read_task(_state("votes").text)
    put_grid(task, place, rows)
    _put(task, place)


def _resize(place: GridPlace, rows: Rows, name: str, key: str) -> None:
    height = len(rows)
    width = len(rows[0])
    if name == "Rows":
        height = st.session_state[key]
    else:
        width = st.session_state[key]
    _change_grid(place, resized(rows, height, width))


def _add_demonstration() -> None:
    task = read_task(_state("votes").text)
    place = GridPlace("train", len(task["train"]), "input")
    task["train"].append({})
    put_grid(task, place, _NEW_GRID)
    put_grid(task, place._replace(side="output"), _NEW_GRID)
    _put(task, place)


def _remove(place: GridPlace) -> None:
    """Remove a demonstration, or the output of a test."""
    task = read_task(_state("votes").text)
    if place.part == "train":
        del task["train"][place.number]
    else:
        del task["test"][place.number]["output"]
    _put(task, None)


def _put(task: Task, place: GridPlace | None) -> None:
    """Put another task on the page, and one of its grids on the board."""
    _state("votes").put(write_task(task))
    _state("segments").clear()
    if place is not None:
        st.session_state[f"arc_place_{_state('votes').version}"] = place.title


def _clear() -> None:
    for name in ("votes", "segments"):
        _state(name).clear()


def _take_example() -> None:
    name = st.session_state["arc_example"]
    if name:
        task_id, task = EXAMPLES[name]
        st.session_state[_ID] = task_id
        _put(task, None)


def _state(name: str) -> SolvingState:
    """Return the state of the `votes` on all tests, or of the `segments` of one answer.

    The task is in that of the votes.
    """
    first = SolvingState(write_task(_FIRST_TASK))
    state: SolvingState = st.session_state.setdefault(f"arc_{name}", first)
    return state


def _buttons(task: Task, *, can_solve: bool) -> None:
    running = [_state(name) for name in ("votes", "segments") if _state(name).is_running]
    with st.container(horizontal=True, horizontal_alignment="center"):
        is_disabled = not can_solve or bool(running)
        if st.button("Solve", type="primary", icon=":material/play_arrow:", disabled=is_disabled):
            _clear()
            _state("votes").submit("/v1/puzzles/arc", partial(_votes_request, task))
        if st.button("Show segments", icon=":material/layers:", disabled=is_disabled):
            _clear()
            _state("segments").submit("/v1/puzzles/solve", partial(_segments_request, task))
        if st.button("Stop", icon=":material/stop:", disabled=not running):
            for state in running:
                state.error = stop(state.run)


def _votes_request(task: Task) -> Body:
    fields = st.session_state
    if not fields[_ID]:
        raise ServerError("Name the task: the network knows only those that it was trained with.")
    return {
        "model": model_for(NAME, _FIELD_CELLS),
        "task_id": fields[_ID],
        "train": task["train"],
        "test": task["test"],
        "augmentations": fields["augmentations"],
        "attempts": fields["attempts"],
        "halt": fields["halt"],
        "check_demonstrations": bool(fields["check_demonstrations"] and task["train"]),
    }


def _segments_request(task: Task) -> Body:
    """Return the body of a request for one answer to the first test, of the task as it is."""
    fields = st.session_state
    body: Body = {
        "model": model_for(NAME, _FIELD_CELLS),
        "grid": task["test"][0]["input"],
        "halt": fields["halt"],
        "stream": True,
    }
    if fields[_ID]:
        body["identifier"] = fields[_ID]
    return body


def _show_votes(task: Task, run: Run) -> None:
    """Draw how far the votes are, and then the attempts with the most."""
    answer: Body = {}
    newest: dict[int, Body] = {}
    for frame in run.frames:
        if "answers" in frame:
            answer = frame
        elif "total" in frame:
            newest[frame["job"]] = frame
    if not run.is_done:
        done = sum(frame["done"] for frame in newest.values())
        st.caption(f"{done} segments of {len(newest)} augmented grids are computed ...")
        return
    if run.is_cancelled:
        st.caption("Stopped.")
    else:
        show_error(run.error)
    if not answer:
        return

    if answer["valid"] is not None:
        _badge(answer["valid"], "Demonstrations solved", "Not all demonstrations solved")
    for number, tested in enumerate(answer["answers"]):
        _show_attempts(task, number, tested, answer["num_augmentations"])
    show_timings(run)


def _show_attempts(task: Task, number: int, answer: Body, voters: int) -> None:
    output = task["test"][number].get("output")
    st.subheader(f"Test {number + 1}")
    with st.container(horizontal=True, gap="large"):
        for index, attempt in enumerate(answer["attempts"], start=1):
            with st.container(width="content"):
                _show_attempt(attempt, number, index, output)
                st.caption(
                    f"{attempt['votes']} of {voters} votes, {100 * attempt['mean_q']:.1f} % sure"
                )


def _show_attempt(attempt: Body, test: int, index: int, output: Any) -> None:
    title = f"Attempt {index}"
    st.markdown(f"**{title}**")
    if attempt["grid"]:
        _show_small(
            rows_of(attempt["grid"]), key=f"attempt {test} {index}", label=f"{title} at {test + 1}"
        )
    else:
        st.caption("no rectangle of colours")
    if output is not None:
        _badge(attempt["grid"] == output, "Right", "Wrong")


def _badge(is_good: bool, good: str, bad: str) -> None:
    if is_good:
        st.badge(good, icon=":material/check_circle:", color="green")
    else:
        st.badge(bad, icon=":material/cancel:", color="red")
