"""The page *Generate*: text from a prompt as it comes, and log-likelihoods."""

import math
from dataclasses import dataclass

import streamlit as st

from scripts.ui.client import Body, ServerError
from scripts.ui.run import Run
from scripts.ui.session import (
    LINK,
    client,
    draw_live,
    show_error,
    show_timings,
    stop,
    submitted,
    with_model,
)


@dataclass
class GenerateState:
    """The state of the page: an answer, scores, or an error."""

    run: Run | None = None
    scores: Body | None = None
    error: str = ""

    def clear(self) -> None:
        self.run = None
        self.scores = None
        self.error = ""


def show() -> None:
    """Draw the page."""
    state: GenerateState = st.session_state.setdefault("generate", GenerateState())
    st.title("Generate")
    _fields()
    _buttons(state)

    show_error(state.error)
    draw_live(state.run, _show_answer)
    if state.scores is not None:
        _show_scores(state.scores)


def _fields() -> None:
    st.text_area("Prompt", key="prompt", height=140, placeholder="Solve for x: 2x + 3 = 9", **LINK)
    st.slider("Most tokens", 1, 1024, 128, key="max_tokens", **LINK)
    left, right = st.columns(2)
    left.slider("Temperature", 0.0, 2.0, 0.7, 0.05, key="temperature", **LINK)
    right.slider("Top p", 0.05, 1.0, 1.0, 0.05, key="top_p", **LINK)
    with st.expander("More"):
        st.number_input(
            "Seed", 0, None, None, key="seed", placeholder="a new one each time", **LINK
        )
        st.text_input(
            "Stop before",
            key="stop",
            help="Text that ends the answer. Several are separated by |, and \\n is a new line.",
            **LINK,
        )
        st.text_input(
            "Condition",
            key="condition",
            help="For HRM-Text: names joined by commas, such as direct or synth,cot.",
            **LINK,
        )
        st.text_input(
            "Continuation to score",
            key="continuation",
            help="Without one the whole prompt is scored.",
            **LINK,
        )


def _buttons(state: GenerateState) -> None:
    is_running = state.run is not None and not state.run.is_done
    prompt = st.session_state["prompt"]
    with st.container(horizontal=True):
        if st.button("Generate", type="primary", icon=":material/play_arrow:", disabled=is_running):
            state.clear()
            _generate(state, prompt)
        if st.button("Score loglikelihood", icon=":material/functions:", disabled=is_running):
            state.clear()
            _score(state, prompt)
        if st.button("Stop", icon=":material/stop:", disabled=not is_running):
            state.error = stop(state.run)


def _generate(state: GenerateState, prompt: str) -> None:
    if not prompt:
        state.error = "Write a prompt first."
        return
    fields = st.session_state
    body: Body = {
        "prompts": [prompt],
        "max_tokens": fields["max_tokens"],
        "temperature": fields["temperature"],
        "top_p": fields["top_p"],
        "seed": fields["seed"],
        "stop": stop_strings(fields["stop"]),
    }
    try:
        state.run = submitted("/generate", _with_condition(body))
    except ServerError as error:
        state.error = str(error)
    st.rerun()


def _score(state: GenerateState, prompt: str) -> None:
    if not prompt:
        state.error = "Write a prompt first."
        return
    continuation = st.session_state["continuation"]
    body: Body = {"prompts": [prompt]}
    path = "/loglikelihood_rolling"
    if continuation:
        body["continuations"] = [continuation]
        path = "/loglikelihood"
    try:
        state.scores = client().post(path, _with_condition(body))
    except ServerError as error:
        state.error = str(error)


def _with_condition(body: Body) -> Body:
    body = with_model(body, "generate")
    condition = st.session_state["condition"]
    return {**body, "condition": condition} if condition else body


def stop_strings(text: str) -> list[str]:
    r"""Return the stop strings of a field: they are separated by |, and \n is a new line."""
    parts = text.replace("\\n", "\n").split("|")
    return [part for part in parts if part]


def _show_answer(run: Run) -> None:
    text = ""
    for frame in run.frames:
        text += frame.get("text", "")
    if text or run.is_done:
        st.code(text, language=None, wrap_lines=True)
    else:
        st.caption("Waiting for the first token ...")
    if not run.is_done:
        return
    if run.is_cancelled:
        st.caption("Stopped.")
    else:
        show_error(run.error)
    show_timings(run)


def _show_scores(scores: Body) -> None:
    total = scores["ll"][0]
    tokens = scores["num_tokens"][0]
    with st.container(horizontal=True):
        st.metric("Log-likelihood", f"{total:.3f} nats", width="content")
        st.metric("Scored", f"{tokens} tokens", width="content")
        if tokens:
            st.metric("Perplexity", f"{math.exp(-total / tokens):.4g}", width="content")
        if "is_greedy" in scores:
            greedy = "yes" if scores["is_greedy"][0] else "no"
            st.metric("The model's first choice", greedy, width="content")
