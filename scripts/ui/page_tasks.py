"""The page *Tasks*: a form for each task of the fleet, and its result drawn by what is in it."""

from dataclasses import dataclass, field
from datetime import timedelta

import streamlit as st

from scripts.ui.client import Body, ServerError
from scripts.ui.run import Run
from scripts.ui.session import (
    LINK,
    choose_model,
    client,
    draw_live,
    served_tasks,
    show_error,
    show_timings,
    stop,
    submitted,
    with_model,
)
from scripts.ui.task_fields import File, draw_fields
from scripts.ui.task_forms import LOCAL_INFERENCE, FieldError, TaskForm, forms_of
from scripts.ui.task_results import SentInputs, file_bytes, show_result

_FORMS_KEPT = timedelta(seconds=30)

_ABOUT_ANSWERS = frozenset({"id", "object", "created", "model", "usage"})
"""Fields of answers that are no part of their result."""


@dataclass
class TasksState:
    """The state of the page: a run of the form with this name, and an error."""

    form_name: str = ""
    run: Run | None = None
    sent: SentInputs = field(default_factory=SentInputs)
    error: str = ""

    def clear(self) -> None:
        self.run = None
        self.sent = SentInputs()
        self.error = ""


def show() -> None:
    """Draw the page."""
    state: TasksState = st.session_state.setdefault("tasks", TasksState())
    st.title("Tasks")
    try:
        form = _chosen_form()
    except ServerError as error:
        show_error(str(error))
        return
    if form is None:
        st.info("No model of this fleet is known yet, so there is no task for it.")
        return
    if form.name != state.form_name:
        state.clear()
        state.form_name = form.name
    with st.sidebar:
        choose_model(form.task)
    st.caption(f"{form.about} `POST {form.path}`")
    values = draw_fields(form)
    _buttons(form, values, state)
    show_error(state.error)
    draw_live(state.run, lambda run: _show_run(form, run, state.sent))


def _chosen_form() -> TaskForm | None:
    """Draw the choice of a task. Return its form, None where the fleet does none."""
    forms = _forms(client().url, st.session_state.get("key"))
    served = served_tasks()
    left, right = st.columns([3, 2], vertical_alignment="bottom")
    is_all = right.toggle(
        "Also tasks without a model here", key="all_tasks", help="To see their forms.", **LINK
    )
    asked = st.session_state.get("task") or st.query_params.get("task")
    names = []
    for form in forms.values():
        if is_all or form.task in served or form.name == asked:
            names.append(form.name)
    if not names:
        return None
    name = left.selectbox("Task", names, key="task", **LINK)
    return forms[name]


@st.cache_resource(ttl=_FORMS_KEPT, max_entries=8, show_spinner=False)
def _forms(url: str, key: str | None) -> dict[str, TaskForm]:
    """Return the forms of a server. `url` and `key` tell apart what is kept."""
    return forms_of(client().document())


def _buttons(form: TaskForm, values: Body, state: TasksState) -> None:
    is_running = state.run is not None and not state.run.is_done
    is_served = form.task in served_tasks()
    if not is_served:
        st.info(
            f"No model of this fleet does `{form.task}`. docs/models.md tells which models do.",
            icon=":material/info:",
        )
    with st.container(horizontal=True):
        is_asked = st.button(
            "Run",
            type="primary",
            icon=":material/play_arrow:",
            disabled=is_running or not is_served,
        )
        if st.button("Stop", icon=":material/stop:", disabled=not is_running):
            state.error = stop(state.run)
    if is_asked:
        _run(form, values, state)


def _run(form: TaskForm, values: Body, state: TasksState) -> None:
    state.clear()
    try:
        state.sent, body = _request(form, values)
        state.run = submitted(form.path, body)
    except (FieldError, ServerError) as error:
        state.error = str(error)
    st.rerun()


def _request(form: TaskForm, values: Body) -> tuple[SentInputs, Body]:
    """Return what was sent, and the body of the request. Its files are uploaded for that.

    Raise FieldError for a field that holds no value of its kind, and ServerError.
    """
    picture = None
    series: tuple[float, ...] = ()
    sent: Body = {}
    for entry in form.fields:
        value = values[entry.name]
        if isinstance(value, File):
            if entry.media == "image":
                picture = value.data or file_bytes(value.id)
            value = _file_id(value)
        elif isinstance(value, str) and entry.kind != "choice":
            value = entry.value_of(value)
        if value is None and entry.is_required:
            raise FieldError(f"{entry.label}: fill this in first.")
        if entry.kind == "series" and isinstance(value, list):
            series = tuple(value)
        sent[entry.name] = value
    return SentInputs(picture, series), with_model(form.body(sent), form.task)


def _file_id(file: File) -> str:
    """Return the id of a file, which is uploaded unless the fleet has it."""
    if file.id:
        return file.id
    return client().upload(file.name, file.data, media_type=file.media_type, purpose="user_data")


def _show_run(form: TaskForm, run: Run, sent: SentInputs) -> None:
    if not run.is_done:
        _show_progress(run)
        return
    if run.is_cancelled:
        st.caption("Stopped.")
    else:
        show_error(run.error)
    answer = run.job.get("result")
    if answer is None:
        return
    if form.path == LOCAL_INFERENCE:
        result = answer["result"]
    else:
        result = {name: part for name, part in answer.items() if name not in _ABOUT_ANSWERS}
    try:
        show_result(result, sent)
    except ServerError as error:
        show_error(str(error))
    st.caption(f"Model: {run.job['model']}")
    show_timings(run)
    with st.expander("JSON", icon=":material/data_object:"):
        st.json(answer)


def _show_progress(run: Run) -> None:
    """Draw how far a task has come: its steps, its text so far, and the last preview."""
    text = ""
    progress: Body = {}
    for frame in list(run.frames):
        text += frame.get("token") or ""
        if "done" in frame and "total" in frame:
            progress = frame
    if text:
        st.code(text, language=None, wrap_lines=True)
    if progress:
        share = 0.0
        if progress["total"]:
            share = min(1.0, progress["done"] / progress["total"])
        st.progress(share, text=f"Step {progress['done']} of {progress['total'] or '?'}")
        if progress.get("note"):
            st.code(progress["note"], language=None, wrap_lines=True)
        if progress.get("preview"):
            st.image(progress["preview"], alt="A preview of the picture")
    elif not text:
        st.caption("Waiting for the answer ...")
