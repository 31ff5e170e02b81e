"""The page *Solve*: problems in maths and coding, solved in steps."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import streamlit as st

from scripts.ui.answer_text import show_text
from scripts.ui.client import Body, ServerError
from scripts.ui.config import app_config
from scripts.ui.plugin_parts import SUBJECTS_GROUP, PluginParts, plugin_parts
from scripts.ui.run import Run
from scripts.ui.session import (
    LINK,
    draw_live,
    show_error,
    show_timings,
    stop,
    submitted,
    with_model,
)


@dataclass(frozen=True)
class Subject:
    """A kind of problem: its tab, its endpoint and the endpoint's defaults, and examples.

    `show` draws a solution, as far as it has come, and the server's last frame, {} before that. A
    plugin gives its entry point the subject's `name`.
    """

    name: str
    title: str
    path: str
    max_tokens: int
    temperature: float
    examples: tuple[str, ...]
    show: Callable[[str, Body], None]


@dataclass
class SolveState:
    """The state of one tab: a solution, or an error."""

    run: Run | None = None
    error: str = ""


def show() -> None:
    """Draw the page."""
    st.title("Solve")
    shown = subjects()
    tabs = st.tabs([subject.title for subject in shown])
    for subject, tab in zip(shown, tabs, strict=True):
        with tab:
            _show_subject(subject)


def subjects() -> list[Subject]:
    """Return the subjects of the app and of plugins, with the examples of the configuration."""
    examples = app_config().solve
    found = []
    for subject in (*SUBJECTS, *plugin_subjects().parts.values()):
        own = examples.get(subject.name, subject.examples)
        found.append(replace(subject, examples=tuple(own)))
    return found


@cache
def plugin_subjects() -> PluginParts[Subject]:
    """Return the subjects that plugins add, by the names of their entry points."""
    return plugin_parts(SUBJECTS_GROUP, Subject, taken=[subject.name for subject in SUBJECTS])


def _show_subject(subject: Subject) -> None:
    state: SolveState = st.session_state.setdefault(f"solve_{subject.name}", SolveState())
    _fields(subject)
    is_running = state.run is not None and not state.run.is_done
    with st.container(horizontal=True):
        is_asked = st.button(
            "Solve",
            type="primary",
            icon=":material/play_arrow:",
            key=f"{subject.name}_solve",
            disabled=is_running,
        )
        is_stopped = st.button(
            "Stop", icon=":material/stop:", key=f"{subject.name}_stop", disabled=not is_running
        )
    if is_asked:
        _solve(subject, state)
    if is_stopped:
        state.error = stop(state.run)

    show_error(state.error)
    draw_live(state.run, lambda run: _show_solution(subject, run))


def _fields(subject: Subject) -> None:
    name = subject.name
    st.pills(
        "Examples",
        subject.examples,
        key=f"{name}_example",
        on_change=_take_example,
        args=(name,),
    )
    st.text_area("Problem", key=name, height=100, **LINK)
    left, right = st.columns(2)
    left.slider(
        "Temperature", 0.0, 2.0, subject.temperature, 0.05, key=f"{name}_temperature", **LINK
    )
    right.slider("Most tokens", 16, 2048, subject.max_tokens, key=f"{name}_max_tokens", **LINK)


def _take_example(name: str) -> None:
    """Put the chosen example into the field of the problem."""
    example = st.session_state[f"{name}_example"]
    if example:
        st.session_state[name] = example


def _solve(subject: Subject, state: SolveState) -> None:
    state.run = None
    problem = st.session_state[subject.name]
    if not problem:
        state.error = "Write a problem first, or choose an example."
        return
    state.error = ""
    body: Body = {
        "problem": problem,
        "temperature": st.session_state[f"{subject.name}_temperature"],
        "max_tokens": st.session_state[f"{subject.name}_max_tokens"],
    }
    try:
        state.run = submitted(subject.path, with_model(body, "generate"))
    except ServerError as error:
        state.error = str(error)
    st.rerun()


def _show_solution(subject: Subject, run: Run) -> None:
    text = ""
    result: Body = {}
    for frame in run.frames:
        text += frame.get("text", "")
        result = frame.get("result", result)

    subject.show(text, result)
    if not text and not run.is_done:
        st.caption("Waiting for the first token ...")
    if not run.is_done:
        return
    if run.is_cancelled:
        st.caption("Stopped.")
    else:
        show_error(run.error)
    if result and not result.get("in_domain", True):
        st.warning(
            "The model says that this problem is outside what it knows.", icon=":material/help:"
        )
    show_timings(run)


def _show_maths(text: str, result: Body) -> None:
    """Draw the steps, and the answer in a box."""
    answer = result.get("answer")
    steps = text.splitlines()
    if answer is not None and steps and steps[-1] == f"\\boxed{{{answer}}}":
        steps.pop()
    for number, step in enumerate(steps, start=1):
        with st.container(horizontal=True, gap="small", vertical_alignment="center"):
            st.badge(str(number), color="gray")
            st.text(step)
    if answer is not None:
        st.success(f"**{answer}**", icon=":material/task_alt:")


def _show_code(text: str, result: Body) -> None:
    """Draw the explanation and the code as they come, and the code alone in the end."""
    if text:
        show_text(text)
    if result and result.get("code") is None:
        st.caption("The answer has no code.")


SUBJECTS = (
    Subject(
        name="maths",
        title="Maths",
        path="/solve/math",
        max_tokens=512,
        temperature=0.7,
        examples=(
            "Solve for x: 2x + 3 = 9",
            "Compute: 347 + 285",
            "What is 15% of 240?",
            "Find the derivative of f(x) = x^3 + 2x^2 - 5x + 3",
        ),
        show=_show_maths,
    ),
    Subject(
        name="coding",
        title="Coding",
        path="/solve/coding",
        max_tokens=1024,
        temperature=0.8,
        examples=(
            "Write a function that adds two numbers.",
            "Write a function to calculate the Fibonacci sequence",
            "Write a function that checks whether a number is prime.",
            "Write a Python function that reverses a string.",
        ),
        show=_show_code,
    ),
)
"""The tabs of the page, from left to right. Those of plugins follow."""
