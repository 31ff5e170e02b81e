"""The page *Inside the model*: what a model computes beside the text or the grid that it answers."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import streamlit as st

from scripts.ui.client import Body, ServerError
from scripts.ui.run import Run, RunGroup
from scripts.ui.session import (
    LINK,
    client,
    draw_live,
    models_for,
    models_of,
    show_error,
    show_timings,
    stop,
    submitted,
    with_model,
)
from scripts.ui.token_colours import (
    Token,
    coloured,
    legend,
    nats,
    percent,
    title_of,
    tokens_of,
    total,
)

TASK = "generate"
PUZZLE_TASK = "solve"
_COMPLETIONS = "/v1/completions"
_EFFORTS = ("low", "medium", "high")
_SUDOKU = "1576...4..984.5.1.3.....856..2896573.3.72168.7..54.192..1...7.5.6927..31...1.4.6."


@dataclass
class InsideState:
    """The tokens that the page shows: those of an answer, or of a text that is scored.

    The first `num_prompt` tokens of a scored text are the prompt's; it is None for an answer.
    """

    run: Run | None = None
    num_prompt: int | None = None
    error: str = ""


@dataclass
class DepthState:
    """The same text, scored at several depths."""

    names: list[str] = field(default_factory=list)
    num_prompt: int = 0
    run: RunGroup | None = None
    error: str = ""


@dataclass
class SegmentsState:
    """A puzzle whose segments are shown."""

    run: Run | None = None
    error: str = ""


def show() -> None:
    """Draw the page."""
    st.title("Inside the model")
    text, puzzle = st.tabs(["Text", "Puzzle"])
    with text:
        _show_tokens()
        _show_depth()
    with puzzle:
        _show_puzzle()


def _show_tokens() -> None:
    state: InsideState = st.session_state.setdefault("inside", InsideState())
    st.text_area(
        "Prompt", key="inside_prompt", height=100, placeholder="Compute: 347 + 285", **LINK
    )
    st.text_area(
        "Continuation to score",
        key="inside_continuation",
        height=68,
        help="Without one the prompt itself is scored.",
        **LINK,
    )
    left, right = st.columns(2)
    left.slider("Temperature", 0.0, 2.0, 0.0, 0.05, key="inside_temperature", **LINK)
    right.slider("Most tokens", 1, 512, 128, key="inside_max_tokens", **LINK)
    left.slider("Alternatives", 1, 5, 3, key="inside_top", **LINK)
    right.number_input(
        "Seed", 0, None, None, key="inside_seed", placeholder="a new one each time", **LINK
    )

    is_running = state.run is not None and not state.run.is_done
    with st.container(horizontal=True):
        if st.button("Generate", type="primary", icon=":material/play_arrow:", disabled=is_running):
            _generate(state)
        if st.button("Score", icon=":material/functions:", disabled=is_running):
            _score(state)
        if st.button("Stop", icon=":material/stop:", key="inside_stop", disabled=not is_running):
            state.error = stop(state.run)
    show_error(state.error)
    draw_live(state.run, lambda run: _show_run(run, state.num_prompt))


def _generate(state: InsideState) -> None:
    fields = st.session_state
    body: Body = {
        "prompt": fields["inside_prompt"],
        "max_tokens": fields["inside_max_tokens"],
        "temperature": fields["inside_temperature"],
        "seed": fields["inside_seed"],
        "logprobs": fields["inside_top"],
    }
    state.run = None
    state.num_prompt = None
    state.error = ""
    try:
        _require_prompt()
        state.run = submitted(_COMPLETIONS, with_model(body, TASK))
    except ServerError as error:
        state.error = str(error)
    st.rerun()


def _score(state: InsideState) -> None:
    state.run = None
    state.error = ""
    try:
        prompt, continuation = _ids(st.session_state["inside_continuation"])
        state.num_prompt = len(prompt)
        state.run = _reading(prompt + continuation, {})
    except ServerError as error:
        state.error = str(error)
    st.rerun()


def _require_prompt() -> None:
    if not st.session_state["inside_prompt"]:
        raise ServerError("Write a prompt first.")


def _ids(continuation: str) -> tuple[list[int], list[int]]:
    """Return the tokens of the prompt and of a continuation, as the server scores them.

    Raise ServerError.
    """
    _require_prompt()
    prompt = st.session_state["inside_prompt"]
    ids = _tokenized({"prompt": prompt})
    if not continuation:
        return ids, []
    whole = _tokenized({"prompt": prompt + continuation})
    if whole[: len(ids)] == ids:
        return ids, whole[len(ids) :]
    # The prompt has a mark at its end, as that of HRM-Text has.
    return ids, _tokenized({"prompt": continuation, "add_special_tokens": False})


def _tokenized(body: Body) -> list[int]:
    ids: list[int] = client().post("/tokenize", with_model(body, TASK))["tokens"]
    return ids


def _reading(ids: list[int], depth: Body) -> Run:
    """Return a run that reads tokens, and has their log-probabilities in its result."""
    body: Body = {
        "prompt": ids,
        "max_tokens": 0,
        "echo": True,
        "logprobs": st.session_state["inside_top"],
        **depth,
    }
    return submitted(_COMPLETIONS, with_model(body, TASK))


def _choice(run: Run) -> Body:
    """Return the one choice of a completion that has ended, {} for one that failed."""
    result = run.job.get("result") or {}
    for choice in result.get("choices", ()):
        found: Body = choice
        return found
    return {}


def answer_tokens(run: Run) -> list[Token]:
    """Return the tokens of an answer that have come so far."""
    tokens = []
    for frame in run.frames:
        for choice in frame.get("choices", ()):
            tokens += tokens_of(choice["logprobs"])
    return tokens


def _show_run(run: Run, num_prompt: int | None) -> None:
    # Asked before the tokens are read, so that figures are those of all tokens.
    is_done = run.is_done
    if is_done and not run.is_cancelled:
        show_error(run.error)
    if num_prompt is None:
        tokens = answer_tokens(run)
        if tokens:
            st.html(coloured(tokens))
            st.html(legend())
        elif not is_done:
            st.caption("Waiting for the first token ...")
    else:
        tokens = _show_scored(tokens_of(_choice(run).get("logprobs")), num_prompt)
    if not is_done:
        return
    if run.is_cancelled:
        st.caption("Stopped.")
    if any(token.logprob is not None for token in tokens):
        _show_figures(tokens, _choice(run))
        _show_values(tokens)
    show_timings(run)
    _show_model(run)


def _show_model(run: Run) -> None:
    """Tell of the model that has answered, and of its layers, cycles or segments."""
    try:
        models = models_of(TASK)
    except ServerError as error:
        show_error(str(error))
        return
    for model in models:
        if model.id == run.job.get("model"):
            st.caption(f"{model.id}: {model.description}")


def _show_scored(tokens: list[Token], num_prompt: int) -> list[Token]:
    """Draw the tokens of a scored text, and return those that were to be scored."""
    prompt = tokens[:num_prompt]
    continuation = tokens[num_prompt:]
    if not tokens:
        return []
    st.caption("Prompt")
    st.html(coloured(prompt))
    if continuation:
        st.caption("Continuation")
        st.html(coloured(continuation))
    st.html(legend())
    if all(token.logprob is None for token in prompt):
        st.caption("The model sees this prompt at once, and predicts none of its tokens.")
    return continuation or prompt


def _show_figures(tokens: Sequence[Token], choice: Body) -> None:
    with st.container(horizontal=True):
        st.metric("Log-likelihood", nats(total(tokens)), width="content")
        st.metric("Tokens", str(len(tokens)), width="content")
        for name, value in (choice.get("q_values") or {}).items():
            st.metric(
                name,
                f"{value:.3f}",
                help="The value of the q head at the last token.",
                width="content",
            )


def _show_halts(tokens: Sequence[Token]) -> None:
    """Draw where a model with a q head stopped for each token, if it is one."""
    names = tokens[-1].q_values
    if not names:
        return
    curves = {name: [token.q_values.get(name) for token in tokens] for name in names}
    st.line_chart(
        curves,
        x_label="token",
        y_label="q",
        height=180,
        alt="The values of the q head at the state that gave each token.",
    )
    segments = [token.segments for token in tokens]
    if segments[-1] is not None:
        st.bar_chart(
            {"ACT segments": segments},
            x_label="token",
            y_label="ACT segments",
            height=140,
            alt="The ACT segments that ran for each token.",
        )


def _show_values(tokens: Sequence[Token]) -> None:
    """Draw the log-probabilities as a line, and all values as a table."""
    st.line_chart(
        {"log-probability": [token.logprob for token in tokens]},
        x_label="token",
        y_label="nats",
        height=180,
        alt="The log-probability of each token.",
    )
    _show_halts(tokens)
    rows = []
    for number, token in enumerate(tokens):
        row = {
            "": number,
            "Token": repr(token.text),
            "Log-probability": token.logprob,
            "Probability": "" if token.probability is None else percent(token.probability),
            "Alternatives": ", ".join(title_of(token).splitlines()[1:]),
            **token.q_values,
        }
        if token.segments is not None:
            row["ACT segments"] = token.segments
        rows.append(row)
    with st.expander("All values", icon=":material/table:"):
        st.dataframe(rows, hide_index=True, alt="The tokens with their values.")


def _show_depth() -> None:
    state: DepthState = st.session_state.setdefault("inside_depth", DepthState())
    st.subheader("At several depths")
    st.caption(
        "A recurrent model works on each token in cycles, or in ACT segments. Here the answer, or "
        "the continuation, is scored with several numbers of them."
    )
    st.text_input(
        "Depths",
        ", ".join(_EFFORTS),
        key="inside_depths",
        help="low, medium or high; or H and L cycles as 2x1; or a number of ACT segments.",
        **LINK,
    )
    is_running = state.run is not None and not state.run.is_done
    with st.container(horizontal=True):
        if st.button("Score at these depths", icon=":material/layers:", disabled=is_running):
            _compare_depths(state)
        if st.button("Stop", icon=":material/stop:", key="depth_stop", disabled=not is_running):
            state.error = stop(state.run)
    show_error(state.error)
    draw_live(state.run, lambda group: _show_depths(group, state))


def depth_of(name: str) -> Body:
    """Return the field of a request for a depth: an effort, cycles such as 2x1, or segments."""
    if name in _EFFORTS:
        return {"effort": name}
    if name.isdecimal():
        return {"max_steps": int(name)}
    return {"cycles": name}


def _compare_depths(state: DepthState) -> None:
    text = st.session_state["inside_continuation"] or _answer_text()
    asked = st.session_state["inside_depths"].split(",")
    state.names = list(dict.fromkeys(name.strip() for name in asked))
    state.run = None
    state.error = ""
    try:
        prompt, continuation = _ids(text)
        state.num_prompt = len(prompt) if continuation else 0
        runs = [_reading(prompt + continuation, depth_of(name)) for name in state.names]
        state.run = RunGroup(runs)
    except ServerError as error:
        state.error = str(error)
    st.rerun()


def _answer_text() -> str:
    """Return the answer on the tab of tokens, "" without one."""
    state: InsideState = st.session_state["inside"]
    if state.run is None or state.num_prompt is not None:
        return ""
    text: str = _choice(state.run).get("text", "")
    return text


def _show_depths(group: RunGroup, state: DepthState) -> None:
    if not group.is_done:
        st.caption("Scoring ...")
        return
    errors = [run.error for run in group.runs if run.error]
    if errors:
        show_error(errors[0])
        return

    texts: list[str] = []
    columns: dict[str, list[float | None]] = {}
    with st.container(horizontal=True):
        for depth, names in _names_by_depth(group, state).items():
            run = group.runs[state.names.index(names[0])]
            tokens = tokens_of(_choice(run).get("logprobs"))[state.num_prompt :]
            texts = [repr(token.text) for token in tokens]
            label = ", ".join(names)
            if label != depth:
                label += f" ({depth})"
            columns[label] = [token.logprob for token in tokens]
            st.metric(label, nats(total(tokens)), width="content")
    st.line_chart(
        columns,
        x_label="token",
        y_label="nats",
        height=240,
        alt="The log-probability of each token at each depth.",
    )
    st.dataframe({"Token": texts, **columns}, alt="The log-probabilities by token and depth.")


def _names_by_depth(group: RunGroup, state: DepthState) -> dict[str, list[str]]:
    """Return the depths that ran, and by which names they were asked for."""
    names: dict[str, list[str]] = {}
    for name, run in zip(state.names, group.runs, strict=True):
        usage = run.job.get("usage") or {}
        depth = str(usage.get("cycles") or usage.get("max_steps") or name)
        names.setdefault(depth, []).append(name)
    return names


def _show_puzzle() -> None:
    state: SegmentsState = st.session_state.setdefault("inside_segments", SegmentsState())
    try:
        names = models_for(PUZZLE_TASK)
    except ServerError as error:
        show_error(str(error))
        return
    if not names:
        st.info("The server has no model for puzzles.", icon=":material/info:")
        return
    st.selectbox("Model for puzzles", names, key="inside_puzzle_model", **LINK)
    st.text_area(
        "Puzzle",
        _SUDOKU,
        key="inside_puzzle",
        height=68,
        help="A Sudoku in one line, with a dot for each blank cell, or any grid row by row.",
        **LINK,
    )
    left, right = st.columns(2)
    left.slider("Samples", 1, 16, 1, key="inside_samples", **LINK)
    right.slider("Noise of the samples", 0.05, 2.0, 0.5, 0.05, key="inside_noise", **LINK)
    is_running = state.run is not None and not state.run.is_done
    with st.container(horizontal=True):
        if st.button("Run all segments", icon=":material/play_arrow:", disabled=is_running):
            _solve(state)
        if st.button("Stop", icon=":material/stop:", key="segments_stop", disabled=not is_running):
            state.error = stop(state.run)
    show_error(state.error)
    draw_live(state.run, _show_segments)


def _solve(state: SegmentsState) -> None:
    fields = st.session_state
    rows = fields["inside_puzzle"].splitlines()
    body: Body = {
        "model": fields["inside_puzzle_model"],
        "grid": rows[0] if len(rows) == 1 else rows,
        "halt": "max",
        "stream": True,
    }
    if fields["inside_samples"] > 1:
        body |= {"samples": fields["inside_samples"], "noise": fields["inside_noise"]}
    state.run = None
    state.error = ""
    try:
        if not rows:
            raise ServerError("Write a puzzle first.")
        state.run = submitted("/v1/puzzles/solve", body)
    except ServerError as error:
        state.error = str(error)
    st.rerun()


def _show_segments(run: Run) -> None:
    is_done = run.is_done
    if is_done and not run.is_cancelled:
        show_error(run.error)
    samples: dict[int, list[Body]] = {}
    for frame in run.frames:
        if frame.get("object") == "solve.segment":
            samples.setdefault(frame["sample"], []).append(frame)
    if not samples and not is_done:
        st.caption("Waiting for the first segment ...")
    for sample, segments in sorted(samples.items()):
        if len(samples) > 1:
            st.subheader(f"Sample {sample}")
        _show_sample(segments)
    if run.is_cancelled:
        st.caption("Stopped.")
    if is_done:
        show_timings(run)


def _show_sample(segments: Sequence[Body]) -> None:
    """Draw the q values after each segment, and how many cells it changed."""
    columns: dict[str, list[float]] = {
        "segment": [segment["step"] for segment in segments],
        "q_halt": [segment["q_halt"] for segment in segments],
        "q_continue": [segment["q_continue"] for segment in segments],
        "changed cells": [len(segment["changed"]) for segment in segments],
    }
    st.line_chart(
        columns,
        x="segment",
        y=["q_halt", "q_continue"],
        height=200,
        alt="The q values after each segment.",
    )
    st.bar_chart(
        columns,
        x="segment",
        y="changed cells",
        height=200,
        alt="The number of cells that each segment changed.",
    )
    with st.expander("All values", icon=":material/table:"):
        st.dataframe(columns, hide_index=True, alt="The values after each segment.")
