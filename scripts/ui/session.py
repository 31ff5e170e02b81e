"""The parts that all pages share: the server, the model, and work that is drawn as it comes."""

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import streamlit as st

from scripts.ui.client import Body, Client, Model, ServerError
from scripts.ui.run import Run, RunGroup

URL_ENV = "API_URL"
KEY_ENV = "API_KEY"
DEFAULT_URL = "http://localhost:8000"
LINK: dict[str, Any] = {"bind": "query-params", "persist_state": "session"}
"""Arguments of a field that a link can fill in, and that keeps its value on the other pages."""

Followed = TypeVar("Followed", Run, RunGroup)
"""One run, or several that belong together."""

_STATUS_EVERY = timedelta(seconds=5)
_REDRAW_EVERY = timedelta(seconds=0.25)
_MODELS_KEPT = timedelta(seconds=5)


def client() -> Client:
    """Return a client with the key of the password field, or else of the environment."""
    key = st.session_state.get("key") or os.environ.get(KEY_ENV)
    return Client(os.environ.get(URL_ENV, DEFAULT_URL), key)


def sidebar(task: str) -> None:
    """Draw the state of the server, the choice of a model that does `task`, and the key.

    A page without a task of its own, "", has no such choice, or draws it by `choose_model`.
    A server that is away is told above the page, too.
    """
    if not client().status().is_up:
        st.warning(
            f"No server answers at {client().url}. Start one with `aios serve hrm`, or name another "
            "with `aios ui --server-url URL`, and try again.",
            icon=":material/cloud_off:",
        )
    with st.sidebar:
        _server_status()
        if task:
            choose_model(task)
        st.text_input(
            "Key",
            type="password",
            key="key",
            persist_state="session",
            placeholder="only if the server wants one",
        )


def chosen_model(task: str) -> str:
    """Return the name of the model that the sidebar has chosen for `task`, "" for the server's."""
    name: str | None = st.session_state.get(_model_key(task))
    return name or ""


def with_model(body: Body, task: str) -> Body:
    """Return the body of a request with the chosen model. The server chooses if none is."""
    name = chosen_model(task)
    return {**body, "model": name} if name else body


def show_error(message: str) -> None:
    """Say in the page what went wrong, if anything did."""
    if message:
        st.error(message, icon=":material/error:")


def time_text(seconds: int) -> str:
    """Return a time in UTC, of seconds since 1970."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def submitted(path: str, body: Body) -> Run:
    """Submit a request as a job, and return the run that follows it. Raise ServerError."""
    server = client()
    return Run(server, server.submit(path, body))


def stop(run: Run | RunGroup | None) -> str:
    """Cancel a run, or several. Return what the page has to say then, "" if all went well."""
    if run is None:
        return ""
    try:
        run.cancel()
    except ServerError as error:
        return str(error)
    return ""


def draw_live(
    run: Followed | None,
    draw: Callable[[Followed], None],
    is_settled: Callable[[], bool] | None = None,
) -> None:
    """Draw a run, or several, again and again until they are done. Then the page is drawn anew.

    A run that is done is still drawn again and again while `is_settled` says that it is not.
    """

    def is_over(run: Followed) -> bool:
        return run.is_done and (is_settled is None or is_settled())

    if run is None:
        return
    if is_over(run):
        draw(run)
        return

    @st.fragment(run_every=_REDRAW_EVERY)
    def redraw() -> None:
        run.watch()
        if is_over(run):
            st.rerun()
        draw(run)

    redraw()


def show_timings(run: Run) -> None:
    """Show the usage and the timings of a run that has ended."""
    usage = run.job.get("usage") or {}
    timings = run.job.get("timings") or {}
    with st.container(horizontal=True):
        if usage.get("prompt_tokens"):
            st.metric("Prompt", f"{usage['prompt_tokens']} tokens", width="content")
        if usage.get("completion_tokens"):
            st.metric("Answer", f"{usage['completion_tokens']} tokens", width="content")
        if timings.get("total_s") is not None:
            st.metric("Response time", f"{timings['total_s']:.2f} s", width="content")
        if timings.get("tokens_per_s"):
            st.metric("Speed", f"{timings['tokens_per_s']:.0f} tokens/s", width="content")


@st.fragment(run_every=_STATUS_EVERY)
def _server_status() -> None:
    # Work goes on while its browser shows any page.
    for value in st.session_state.values():
        run = getattr(value, "run", None)
        if isinstance(run, Run | RunGroup):
            run.watch()

    server = client()
    status = server.status()
    if status.is_ready:
        st.badge("Ready", icon=":material/check_circle:", color="green")
        st.caption(f"{server.url} answers in {1000 * status.answered_in_s:.0f} ms")
    elif status.is_up:
        st.badge("Not ready", icon=":material/hourglass_empty:", color="orange")
        st.caption(f"{server.url}: {status.reason}")
    else:
        st.badge("Away", icon=":material/cloud_off:", color="red")
        st.caption(f"{server.url} does not answer.")


def choose_model(task: str) -> None:
    """Draw the choice of a model that does `task`."""
    try:
        names = models_for(task)
    except ServerError as error:
        st.caption(str(error))
        return
    if not names:
        st.caption("The server has no model for this page.")
        return
    st.selectbox(
        "Model",
        names,
        index=None,
        placeholder="the server's choice",
        key=_model_key(task),
        bind="query-params",
        persist_state="session",
    )


def models_for(task: str) -> list[str]:
    """Return the names of the models that do `task`. Raise ServerError if they are not known."""
    return [model.id for model in models_of(task)]


def models_of(task: str) -> list[Model]:
    """Return the models that do `task`. Raise ServerError if they are not known."""
    models = _models(client().url, st.session_state.get("key"))
    return [model for model in models if task in model.tasks]


def all_models() -> list[str]:
    """Return the names of all models. Raise ServerError if they are not known."""
    return [model.id for model in _models(client().url, st.session_state.get("key"))]


def served_tasks() -> set[str]:
    """Return the tasks that some model does. Raise ServerError if the models are not known."""
    tasks: set[str] = set()
    for model in _models(client().url, st.session_state.get("key")):
        tasks.update(model.tasks)
    return tasks


@st.cache_data(ttl=_MODELS_KEPT, show_spinner=False)
def _models(url: str, key: str | None) -> list[Model]:
    """Return the models of a server. `url` and `key` tell apart what is kept."""
    return client().models()


def _model_key(task: str) -> str:
    return "model" if task == "generate" else f"{task}_model"
