"""The page *Batches*: files of requests that are answered in idle time, and evaluations."""

import json
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Literal

import streamlit as st

from scripts.ui import evaluations
from scripts.ui.client import Body, ServerError
from scripts.ui.session import LINK, client, show_error, time_text

_BATCHES = "Batches"
_EVALUATIONS = "Evaluations"
_REDRAW_EVERY = timedelta(seconds=1)
_LISTED = "50"
ENDED = frozenset({"completed", "cancelled", "expired", "failed"})
_COLOURS: dict[str, Literal["green", "red", "gray", "blue"]] = {
    "completed": "green",
    "failed": "red",
    "expired": "red",
    "cancelled": "gray",
}
# The answers of larger batches are for a program, not for a page.
_MOST_SHOWN_LINES = 100
_SHOWN_LETTERS = 300


@dataclass
class BatchesState:
    """The state of the page: the batch that was just made, and an error of the last request."""

    made: str = ""
    error: str = ""


def show() -> None:
    """Draw the page."""
    st.title("Batches and evaluations")
    part = st.segmented_control(
        "Part",
        [_BATCHES, _EVALUATIONS],
        default=_BATCHES,
        required=True,
        key="part",
        label_visibility="collapsed",
        **LINK,
    )
    if part == _EVALUATIONS:
        evaluations.show()
    else:
        _show_batches()


def _show_batches() -> None:
    state: BatchesState = st.session_state.setdefault("batches", BatchesState())
    _new_batch(state)
    show_error(state.error)
    try:
        batches = client().get("/v1/batches", limit=_LISTED)["data"]
    except ServerError as error:
        show_error(str(error))
        return
    batch_id = _chosen_batch(state, batches)
    if batch_id is None:
        st.caption("There is no batch yet.")
        return
    _draw_batch(state, batch_id)
    with st.expander("All batches", icon=":material/list:"):
        st.dataframe([_row(batch) for batch in batches], hide_index=True, alt="All batches")


def _chosen_batch(state: BatchesState, batches: list[Body]) -> str | None:
    """Draw the choice of a batch. Return its id, None where there is none.

    The address has the id, which the choice's own text has not.
    """
    summaries = {batch["id"]: _summary(batch) for batch in batches}
    asked = state.made or st.session_state.get("batch") or st.query_params.get("batch")
    if asked:
        summaries.setdefault(asked, asked)
        st.session_state["batch"] = asked
    state.made = ""
    if not summaries:
        return None
    batch_id: str = st.selectbox(
        "Batch",
        list(summaries),
        key="batch",
        format_func=summaries.__getitem__,
        persist_state="session",
    )
    st.query_params["batch"] = batch_id
    return batch_id


def _new_batch(state: BatchesState) -> None:
    with st.expander("New batch", icon=":material/add:"):
        uploaded = st.file_uploader("Requests in JSON, one a line", type=["jsonl", "json", "txt"])
        written = st.text_area(
            "Or the lines themselves",
            key="batch_lines",
            height=100,
            placeholder='{"custom_id": "a", "url": "/generate", "body": {"prompts": ["Hello"]}}',
        )
        window = st.text_input(
            "Completion window", "24h", key="batch_window", help="Such as 24h, 30m or 90s.", **LINK
        )
        if not st.button("Create batch", type="primary", icon=":material/play_arrow:"):
            return
    name = "lines.jsonl"
    data = written.encode()
    if uploaded is not None:
        name = uploaded.name
        data = uploaded.getvalue()
    state.error = ""
    try:
        state.made = _create(name, data, window)
    except ServerError as error:
        state.error = str(error)
    st.rerun()


def _create(name: str, data: bytes, window: str) -> str:
    """Upload requests and make a batch of them. Return its id. Raise ServerError."""
    endpoint = endpoint_of(data)
    server = client()
    file_id = server.upload(name, data, media_type="application/jsonl", purpose="batch")
    body: Body = {
        "input_file_id": file_id,
        "endpoint": endpoint,
        "completion_window": window,
    }
    batch_id: str = server.post("/v1/batches", body)["id"]
    return batch_id


def endpoint_of(data: bytes) -> str:
    """Return the path that the first line names, as all others should. Raise ServerError."""
    lines = data.split(b"\n")
    first = next((line for line in lines if line.strip()), b"")
    if not first:
        raise ServerError("Choose a file first, or write the lines.")
    try:
        url = json.loads(first)["url"]
    except (ValueError, TypeError, KeyError):
        url = None
    if not isinstance(url, str):
        raise ServerError("The first line is no request: it needs a url, such as /generate.")
    return url


def _summary(batch: Body) -> str:
    counts = batch["request_counts"]
    made = time_text(batch["created_at"])
    return f"{made} · {batch['endpoint']} · {counts['total']} lines · {batch['id'][-8:]}"


def _row(batch: Body) -> Body:
    counts = batch["request_counts"]
    return {
        "id": batch["id"],
        "made (UTC)": time_text(batch["created_at"]),
        "endpoint": batch["endpoint"],
        "status": batch["status"],
        "lines": counts["total"],
        "answered": counts["completed"],
        "failed": counts["failed"],
    }


def _draw_batch(state: BatchesState, batch_id: str) -> None:
    """Draw a batch now, and again and again until it has ended."""
    try:
        batch = client().get(f"/v1/batches/{batch_id}")
    except ServerError as error:
        show_error(str(error))
        return
    if batch["status"] in ENDED:
        _show_batch(batch)
        return

    @st.fragment(run_every=_REDRAW_EVERY)
    def redraw() -> None:
        try:
            latest = client().get(f"/v1/batches/{batch_id}")
        except ServerError as error:
            show_error(str(error))
            return
        if latest["status"] in ENDED:
            st.rerun()
        _show_batch(latest)

    redraw()
    if st.button("Cancel", icon=":material/stop:", disabled=batch["status"] == "cancelling"):
        _cancel(state, batch_id)


def _cancel(state: BatchesState, batch_id: str) -> None:
    try:
        client().post(f"/v1/batches/{batch_id}/cancel", {})
    except ServerError as error:
        state.error = str(error)
    st.rerun()


def _show_batch(batch: Body) -> None:
    counts = batch["request_counts"]
    total = counts["total"]
    done = counts["completed"] + counts["failed"]
    st.badge(batch["status"], color=_COLOURS.get(batch["status"], "blue"))
    st.progress(done / total if total else 0.0, text=f"{done} of {total} lines")
    with st.container(horizontal=True):
        st.metric("Answered", counts["completed"], width="content")
        st.metric("Failed", counts["failed"], width="content")
        st.metric("Not run", total - done, width="content")
        st.metric("Prompts", f"{batch['usage']['input_tokens']} tokens", width="content")
        st.metric("Answers", f"{batch['usage']['output_tokens']} tokens", width="content")
    for error in (batch["errors"] or {}).get("data", ()):
        show_error(f"{error['code']}: {error['message']}")
    if batch["status"] in ENDED:
        _show_files(batch)


def _show_files(batch: Body) -> None:
    """Draw the files of answers and of errors, and what is in them if that is not much."""
    server = client()
    for name, field in (("answers", "output_file_id"), ("errors", "error_file_id")):
        file_id = batch[field]
        if file_id is None:
            continue
        st.download_button(
            f"Download {name}",
            partial(server.download, file_id),
            file_name=f"{batch['id']}-{name}.jsonl",
            mime="application/jsonl",
            key=f"download_{name}",
            on_click="ignore",
            icon=":material/download:",
        )
        if batch["request_counts"]["total"] <= _MOST_SHOWN_LINES:
            _show_lines(name, file_id)


def _show_lines(name: str, file_id: str) -> None:
    try:
        content = client().download(file_id)
    except ServerError as error:
        show_error(str(error))
        return
    rows = []
    for line in content.splitlines():
        answer = json.loads(line)
        response = answer["response"] or {}
        told = response.get("body") or answer["error"]
        rows.append(
            {
                "line": answer["line"],
                "custom_id": answer["custom_id"],
                "status": response.get("status_code"),
                "answer": json.dumps(told, ensure_ascii=False)[:_SHOWN_LETTERS],
            }
        )
    st.dataframe(rows, hide_index=True, alt=f"Lines of {name}")
