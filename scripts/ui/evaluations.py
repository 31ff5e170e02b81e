"""Evaluations: how many answers of the models are right, asked by the fleet itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache, partial

import msgspec
import streamlit as st

from api.evaluation.report import Report
from api.evaluation.sets import read_sets
from scripts.cli.evaluation.pages import as_html
from scripts.ui.client import Body, Client, NotAllowed, ServerError
from scripts.ui.session import LINK, all_models, client, show_error, time_text

_PATH = "/api/evaluation"
_REDRAW_EVERY = timedelta(seconds=1)
_OPEN = frozenset({"queued", "running"})
_MOST_EARLIER = 20


@dataclass
class EvaluationsState:
    """The state of the part: the run that was just made, and an error of the last request."""

    made: str = ""
    error: str = ""


def show() -> None:
    """Draw the choice of sets and models, and an evaluation with those before it."""
    state: EvaluationsState = st.session_state.setdefault("evaluations", EvaluationsState())
    try:
        runs = client().get(f"{_PATH}/runs")["runs"]
        models = all_models()
    except NotAllowed as error:
        st.info(
            f"Evaluations are for operators: enter an admin key at the left. ({error})",
            icon=":material/key:",
        )
        return
    except ServerError as error:
        show_error(str(error))
        return
    _new_evaluation(state, models)
    show_error(state.error)
    _choose(state, runs)
    if runs:
        with st.expander("All evaluations", icon=":material/list:"):
            st.dataframe([_row(run) for run in runs], hide_index=True, alt="All evaluations")


def _row(run: Body) -> Body:
    return {
        "id": run["id"],
        "made (UTC)": time_text(run["created_at"]),
        "sets": ", ".join(run["tasks"]) if run["tasks"] else "all",
        "model": run["model"] or "all",
        "state": run["state"],
    }


@cache
def _set_names() -> tuple[str, ...]:
    """Return the names of the sets that ship. The fleet is the one that knows its own."""
    return tuple(read_sets())


def _new_evaluation(state: EvaluationsState, models: Sequence[str]) -> None:
    with st.container(border=True):
        sets = st.multiselect(
            "Sets", _set_names(), key="eval_sets", placeholder="all of them", **LINK
        )
        model = st.selectbox(
            "Of the model",
            models,
            index=None,
            placeholder="all that can do a set",
            key="eval_model",
            **LINK,
        )
        is_accepted = st.checkbox(
            "Accept as the baseline",
            key="eval_accept",
            help="Later evaluations are compared with it in spite of its regressions.",
        )
        is_asked = st.button("Evaluate", type="primary", icon=":material/play_arrow:")
    if not is_asked:
        return
    body: Body = {"tasks": sets or None, "model": model, "accept": is_accepted}
    try:
        run = client().post(f"{_PATH}/run", body)
    except ServerError as error:
        state.error = str(error)
    else:
        state.error = ""
        state.made = run["id"]
    st.rerun()


def _choose(state: EvaluationsState, runs: Sequence[Body]) -> None:
    """Draw the choice of an evaluation, and the one that is chosen."""
    ids = [run["id"] for run in runs]
    if state.made:
        st.session_state["evaluation"] = state.made
        state.made = ""
    asked = st.session_state.get("evaluation") or st.query_params.get("evaluation")
    if asked and asked not in ids:
        ids.append(asked)
    if not ids:
        st.caption("No evaluation has been made yet.")
        return
    run_id = st.selectbox("Evaluation", ids, key="evaluation", **LINK)
    try:
        run = client().get(f"{_PATH}/runs/{run_id}")
    except ServerError as error:
        show_error(str(error))
        return
    if run["state"] not in _OPEN:
        earlier = [other["id"] for other in runs if other["created_at"] < run["created_at"]]
        _show_run(run, earlier)
        return

    @st.fragment(run_every=_REDRAW_EVERY)
    def redraw() -> None:
        try:
            latest = client().get(f"{_PATH}/runs/{run_id}")
        except ServerError as error:
            show_error(str(error))
            return
        if latest["state"] not in _OPEN:
            st.rerun()
        _show_progress(latest)

    redraw()


def _show_progress(run: Body) -> None:
    share = run["done"] / run["total"] if run["total"] else 0.0
    st.progress(share, text=f"{run['state']}: {run['done']} of {run['total'] or '?'} requests")


def _show_run(run: Body, earlier: Sequence[str]) -> None:
    """Draw an evaluation that has ended. `earlier` are the ids of those before it."""
    if run["error"]:
        show_error(run["error"])
    report = run["report"]
    if report is None:
        return
    st.caption(f"{report['id']}, {report['made_at']}")
    for result in report["results"]:
        _show_result(result)
    for skipped in report["skipped"]:
        of_model = f" of {skipped['model']}" if skipped["model"] else ""
        st.caption(f"Skipped: {skipped['task']}{of_model}: {skipped['reason']}")
    st.download_button(
        "Report as a page",
        partial(report_page, client(), report, earlier[:_MOST_EARLIER]),
        file_name=f"{run['id']}.html",
        mime="text/html",
        on_click="ignore",
        icon=":material/download:",
    )


def report_page(server: Client, report: Body, earlier: Sequence[str]) -> str:
    """Return a report in HTML, with the course of the evaluations before it. Raise ServerError."""
    history = []
    for run_id in earlier:
        run = server.get(f"{_PATH}/runs/{run_id}")
        if run["report"] is not None:
            history.append(msgspec.convert(run["report"], Report))
    return as_html(msgspec.convert(report, Report), history)


def _show_result(result: Body) -> None:
    """Draw the figures of a model at a task, and its answers."""
    right = result["accuracy"]
    st.subheader(f"{result['task']} by {result['model']['id']}", divider="gray")
    st.progress(
        right["value"],
        text=(
            f"{100 * right['value']:.1f} % right of {right['count']}; the interval of 95 % is"
            f" {100 * right['low']:.1f} to {100 * right['high']:.1f} %"
        ),
    )
    with st.container(horizontal=True):
        _timing("Latency", result["latency_ms"])
        _timing("First token", result["first_token_ms"])
        if result["tokens_per_s"] is not None:
            st.metric("Speed", f"{result['tokens_per_s']:.0f} tokens/s", width="content")
        st.metric("Errors", f"{result['errors']} of {len(result['items'])}", width="content")
    for regression in result["regressions"]:
        st.warning(
            f"Regression in {regression['kind']}: {regression['before']:.4g} before,"
            f" {regression['now']:.4g} now, the limit is {regression['limit']:.4g}.",
            icon=":material/trending_down:",
        )
    with st.expander("All answers"):
        rows = []
        for item in result["items"]:
            rows.append(
                {
                    "item": item["id"],
                    "score": item["score"],
                    "ms": item["latency_ms"],
                    "answer": item["error"] or item["answered"],
                }
            )
        st.dataframe(rows, hide_index=True, alt=f"Answers at {result['task']}")


def _timing(name: str, timing: Body | None) -> None:
    if timing is not None:
        shown = f"{timing['p50']:.0f} / {timing['p95']:.0f} ms"
        st.metric(name, shown, help="The median / the 95th percentile.", width="content")
