"""The page *Fleet*: queues, workers and models as they are now, and what operators can change.

An admin key opens all of it. Other callers see their models, the figures of the front and their
own usage.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import streamlit as st

from scripts.ui.client import Body, NotAllowed, ServerError
from scripts.ui.fleet_history import FleetHistory
from scripts.ui.fleet_keys import draw_keys
from scripts.ui.run import Run
from scripts.ui.session import LINK, all_models, client, show_error

_REDRAW_EVERY = timedelta(seconds=2)
_POLL_EVERY_S = 1.5
_MEBIBYTE = 2**20
_OPEN_STATES = frozenset({"queued", "running"})
_ORDERS = {
    "load": (":material/download:", "Every worker that knows the model loads it, if it has room."),
    "unload": (":material/eject:", "Its memory is freed; the next request loads it again."),
    "pin": (":material/keep:", "It is kept in memory once it is there."),
    "unpin": (":material/keep_off:", "It may make room for others again."),
}
"""The orders for a model: their icons, and what they do."""
_GROUPS = {
    "model": "by model",
    "day": "by day",
    "key": "by key",
    "tenant": "by tenant",
    "day,model": "by day and model",
}


@dataclass
class FleetState:
    """The state of the page: what came of the last orders, and errors by their places."""

    told: str = ""
    retried: str = ""
    errors: dict[str, str] = field(default_factory=dict)


@st.cache_resource(max_entries=16, show_spinner=False)
def _history(url: str, key: str | None) -> FleetHistory:
    """Return the history of a server, as a key sees it."""
    return FleetHistory()


def show() -> None:
    """Draw the page."""
    state: FleetState = st.session_state.setdefault("fleet", FleetState())
    st.title("Fleet")
    try:
        names = all_models()
    except ServerError as error:
        show_error(str(error))
        return
    _live()
    _change_models(state, names)
    _jobs(state)
    _dead_jobs(state)
    draw_keys(names)
    _usage()


@st.fragment(run_every=_REDRAW_EVERY)
def _live() -> None:
    """Draw the fleet as it is now, again and again."""
    server = client()
    history = _history(server.url, st.session_state.get("key"))
    try:
        health = server.health()
        fleet = _fleet()
        models = server.get("/api/models/status")["models"]
        pinned = [] if fleet is None else server.get("/api/models/catalogue")["pinned"]
        if history.is_due(_POLL_EVERY_S):
            history.add(server.metrics(), fleet)
    except ServerError as error:
        show_error(str(error))
        return
    if fleet is None:
        st.info(
            "Workers, keys and values are for operators: enter an admin key at the left to see "
            "them, and to load, unload and pin models.",
            icon=":material/key:",
        )
    _show_now(health, fleet, history)
    _show_curves(history)
    _show_models(models, fleet, pinned)
    if fleet is not None:
        _show_workers(fleet)
    _show_times(history)


def _fleet() -> Body | None:
    """Return the whole state of the fleet, None where the key does not open it."""
    try:
        return client().get("/v1/fleet")
    except NotAllowed:
        return None


def _show_now(health: Body, fleet: Body | None, history: FleetHistory) -> None:
    ready = health["workers"]["ready"]
    with st.container(horizontal=True):
        st.metric("Workers ready", f"{ready} of {sum(health['workers'].values())}", width="content")
        served = health["models"]
        st.metric("Models served", f"{served['served']} of {served['known']}", width="content")
        st.metric("Jobs in hand", health["in_flight"], width="content")
        st.metric("Waiting", f"{history.latest('Waiting'):.0f}", width="content")
        st.metric("Tokens/s", f"{history.latest('Tokens/s'):.0f}", width="content")
        memory = health["memory_bytes"] / _MEBIBYTE
        st.metric("Memory", f"{memory:,.0f} MiB", width="content")
        if fleet is not None:
            st.metric("Dead jobs", fleet["dead_jobs"], width="content")


def _show_curves(history: FleetHistory) -> None:
    names = history.names()
    columns = st.columns(2)
    for place, name in enumerate(names):
        curves = history.curves(name)
        column = columns[place % 2]
        column.caption(name)
        if len(curves) == 1:
            column.caption("0 all the time")
        else:
            column.line_chart(curves, x="s", x_label="seconds", height=170)


def _show_models(models: list[Body], fleet: Body | None, pinned: list[str]) -> None:
    queues = {model["id"]: model for model in fleet["models"]} if fleet is not None else {}
    rows = []
    for model in models:
        row = {
            "model": model["model_id"],
            "status": model["status"],
            "loaded": f"{model['loaded']} of {model['workers']}",
            "jobs a minute": model["popularity"],
        }
        queue = queues.get(model["model_id"])
        if queue is not None:
            row["pinned"] = model["model_id"] in pinned
            row["waiting"] = queue["waiting"]
            row["running"] = queue["running"]
            row["tokens/s"] = queue["tokens_per_s"]
            oldest = [one["oldest_s"] for one in queue["classes"].values()]
            row["oldest, s"] = max(oldest, default=0.0)
        row["runner"] = model["runner"]
        row["on"] = f"{model['acceleration']['device']} {model['acceleration']['dtype']}".strip()
        row["reason"] = model.get("reason", "")
        rows.append(row)
    st.subheader("Models")
    st.dataframe(rows, hide_index=True, alt="Table of models")


def _show_workers(fleet: Body) -> None:
    rows = []
    for worker in fleet["workers"]:
        used = sum(model["kv_used"] for model in worker["models"])
        pages = sum(model["kv_pages"] for model in worker["models"])
        rows.append(
            {
                "worker": worker["id"],
                "state": worker["state"],
                "pool": worker["pool"],
                "jobs in hand": worker["in_flight"],
                "pages of keys and values": f"{used} of {pages}",
                "tokens/s": round(sum(model["tokens_per_s"] for model in worker["models"]), 1),
                "failures": sum(model["errors"] for model in worker["models"]),
                "memory, MiB": round(worker["memory_bytes"] / _MEBIBYTE),
                "device, MiB": round(worker["device_bytes"] / _MEBIBYTE),
                "up, s": round(worker["uptime_s"]),
            }
        )
    st.subheader("Workers")
    st.dataframe(rows, hide_index=True, alt="Table of workers")


def _show_times(history: FleetHistory) -> None:
    rows = []
    for one in history.times:
        row: Body = {"model": one.model, "of": "lately" if one.is_recent else "all"}
        for name, (median, high) in one.quantiles.items():
            row[f"{name} p50, ms"] = round(1000 * median, 1)
            row[f"{name} p95, ms"] = round(1000 * high, 1)
        rows.append(row)
    if rows:
        st.subheader("Latencies")
        st.dataframe(rows, hide_index=True, alt="Table of latencies")


def _change_models(state: FleetState, names: list[str]) -> None:
    """Draw the orders for a model."""
    with st.container(border=True):
        name = st.selectbox("Change the model", names, key="fleet_model", **LINK)
        with st.container(horizontal=True):
            for order, (icon, about) in _ORDERS.items():
                is_asked = st.button(
                    order.capitalize(), icon=icon, help=about, key=f"order_{order}"
                )
                if is_asked and name:
                    _order(state, order, name)
        show_error(state.errors.get("model", ""))
        if state.told:
            st.success(state.told, icon=":material/check_circle:")


def _order(state: FleetState, order: str, name: str) -> None:
    state.told = ""

    def change() -> None:
        answer = client().post(f"/api/models/{order}/{name}", {})
        done = answer.get("done") or answer.get("status")
        state.told = f"{name}: {done}"

    state.errors["model"] = _error_of(change)


def _error_of(do: Callable[[], object]) -> str:
    """Do something, and return what the page has to say then, "" if all went well."""
    try:
        do()
    except NotAllowed as error:
        return f"This is for operators: enter an admin key at the left. ({error})"
    except ServerError as error:
        return str(error)
    return ""


def _jobs(state: FleetState) -> None:
    """Draw the jobs of this browser, and one that is looked up by its id."""
    st.subheader("Jobs")
    open_ids = []
    for value in st.session_state.values():
        run = getattr(value, "run", None)
        if isinstance(run, Run) and not run.is_done:
            open_ids.append(run.job_id)
    job_id = st.text_input(
        "The id of a job",
        key="fleet_job",
        placeholder=open_ids[0] if open_ids else "as X-Job-Id of an answer has it",
        help="You see the jobs of your own tenant.",
        **LINK,
    )
    if open_ids:
        st.caption(f"Open jobs of this browser: {', '.join(open_ids)}")
    if not job_id:
        return
    try:
        job = client().job(job_id)
    except ServerError as error:
        show_error(str(error))
        return
    with st.container(horizontal=True):
        st.metric("State", job["state"], width="content")
        st.metric("Task", job["task"], width="content")
        st.metric("Model", job["model"], width="content")
        if job["queue_position"] is not None:
            st.metric("Place in the queue", job["queue_position"], width="content")
    is_open = job["state"] in _OPEN_STATES
    if st.button("Cancel the job", icon=":material/stop:", disabled=not is_open):
        state.errors["job"] = _error_of(lambda: client().cancel(job_id))
        st.rerun()
    show_error(state.errors.get("job", ""))
    with st.expander("JSON", icon=":material/data_object:"):
        st.json(job)


def _dead_jobs(state: FleetState) -> None:
    """Draw the jobs that workers died of, for an operator, and what can be done about them."""
    try:
        jobs = client().get("/v1/dead-jobs")["jobs"]
    except NotAllowed:
        return
    except ServerError as error:
        show_error(str(error))
        return
    st.subheader("Dead jobs")
    show_error(state.errors.get("dead", ""))
    if state.retried:
        st.success(state.retried, icon=":material/check_circle:")
    if not jobs:
        st.caption("No job was given up because its workers died.")
        return
    st.dataframe(jobs, hide_index=True, alt="Table of dead jobs")
    ids = [job["id"] for job in jobs]
    job_id = st.selectbox("Dead job", ids, key="dead_job")
    with st.container(horizontal=True):
        if st.button("Retry", icon=":material/replay:", help="As a new job of its tenant."):
            _change_dead(state, lambda: _retry(state, job_id))
        if st.button("Drop", icon=":material/delete:", help="It is forgotten, with its task."):
            _change_dead(state, lambda: client().delete(f"/v1/dead-jobs/{job_id}"))


def _change_dead(state: FleetState, do: Callable[[], object]) -> None:
    state.retried = ""
    state.errors["dead"] = _error_of(do)
    st.rerun()


def _retry(state: FleetState, job_id: str) -> None:
    answer = client().post(f"/v1/dead-jobs/{job_id}/retry", {})
    state.retried = f"It is job {answer['retried_as']} now."


def _usage() -> None:
    """Draw what has been used: by the caller's key, or by all keys for an admin."""
    st.subheader("Usage")
    left, right = st.columns(2)
    groups = left.selectbox(
        "Sums", list(_GROUPS), format_func=_GROUPS.__getitem__, key="usage_by", **LINK
    )
    days = right.slider("Days", 1, 90, 30, key="usage_days", **LINK)
    start = datetime.now(UTC).date() - timedelta(days=days - 1)
    try:
        report = client().get("/v1/usage", group_by=groups, start=start.isoformat())
    except ServerError as error:
        show_error(str(error))
        return
    totals = report["totals"]
    with st.container(horizontal=True):
        st.metric("Requests", totals["requests"], width="content")
        st.metric("Jobs", totals["jobs"], width="content")
        st.metric("Prompts", f"{totals['prompt_tokens']} tokens", width="content")
        st.metric("Answers", f"{totals['completion_tokens']} tokens", width="content")
        st.metric("Computed", f"{totals['compute_seconds']:.1f} s", width="content")
    if report["rows"]:
        st.dataframe(report["rows"], hide_index=True, alt="Table of usage")
    budget = report.get("budget")
    if budget:
        st.progress(
            min(1.0, budget["used"] / budget["tokens"]),
            text=f"{budget['used']} of {budget['tokens']} tokens of this {budget['period']}",
        )
