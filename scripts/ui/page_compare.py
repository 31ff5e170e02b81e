"""The page *Compare*: the answers of several models to the same prompts, side by side."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

import streamlit as st

from scripts.ui.client import Body, ServerError
from scripts.ui.differences import Piece, differences, marked
from scripts.ui.run import Run, RunGroup
from scripts.ui.session import (
    LINK,
    draw_live,
    models_for,
    show_error,
    show_timings,
    stop,
    submitted,
)

TASK = "generate"
_MOST_MODELS = 6
_MOST_ANSWERS = 100
_COLUMNS = 3
_PROMPT = "prompt"
_FORMS = {
    _PROMPT: "/generate",
    "maths problem": "/solve/math",
    "coding problem": "/solve/coding",
}
"""The endpoints that the models are asked by, by the words of the page for them."""
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
_PENDING = "..."


@dataclass(frozen=True)
class Answer:
    """The answer of a model to a prompt. Without a `run` it was refused, as `refusal` says."""

    model: str
    prompt: str
    run: Run | None = None
    refusal: str = ""

    @property
    def is_done(self) -> bool:
        return self.run is None or self.run.is_done

    @property
    def text(self) -> str:
        """The text so far."""
        if self.run is None:
            return ""
        return "".join(frame.get("text", "") for frame in self.run.frames)

    @property
    def error(self) -> str:
        if self.run is None or self.run.is_cancelled:
            return self.refusal
        return self.run.error

    @property
    def final(self) -> str:
        """The answer alone, without its steps: as the server has read it from the text, if it has."""
        if self.run is not None:
            for frame in self.run.frames:
                result = frame.get("result") or {}
                read = result.get("answer") or result.get("code")
                if read:
                    return str(read)
        return final_answer(self.text)

    @property
    def brief(self) -> str:
        """The text that stands in a table for the answer."""
        if not self.is_done:
            return _PENDING
        return f"({self.error})" if self.error else self.final


@dataclass
class CompareState:
    """The state of the page: answers, prompt by prompt and model by model, or an error."""

    answers: list[Answer] = field(default_factory=list)
    run: RunGroup | None = None
    error: str = ""

    @property
    def prompts(self) -> list[str]:
        return list(dict.fromkeys(answer.prompt for answer in self.answers))

    def of(self, prompt: str) -> list[Answer]:
        """Return the answers to a prompt, in the order of their models."""
        return [answer for answer in self.answers if answer.prompt == prompt]


def show() -> None:
    """Draw the page."""
    state: CompareState = st.session_state.setdefault("compare", CompareState())
    st.title("Compare")
    try:
        names = models_for(TASK)
    except ServerError as error:
        show_error(str(error))
        return
    _fields(names)
    _buttons(state, names)
    show_error(state.error)
    prompts = state.prompts
    if not prompts:
        return

    shown = prompts[0]
    if len(prompts) > 1:
        draw_live(state.run, lambda _: _show_tables(state))
        shown = st.selectbox("Answers to", prompts, key="compare_shown")
    draw_live(state.run, lambda _: _show_answers(state.of(shown)))


def _fields(names: list[str]) -> None:
    if len(names) == 1:
        st.info(
            f"The server has one model for text, {names[0]}. To compare, it needs a second one, as "
            "in `aios serve hrm --model maths=models/hrm-text-math "
            "--model code=models/hrm-text-code`.",
            icon=":material/info:",
        )
    st.multiselect(
        "Models",
        names,
        default=names[:2],
        max_selections=_MOST_MODELS,
        key="compare_models",
        help="The answers of the others are compared with those of the first.",
        **LINK,
    )
    st.text_area(
        "Prompts",
        key="compare_prompts",
        height=100,
        placeholder="Compute: 347 + 285",
        help="One a line. In a prompt, \\n is a new line.",
        **LINK,
    )
    st.selectbox(
        "Ask as",
        list(_FORMS),
        key="compare_form",
        help="A problem is put to each model in the form that it was trained with.",
        **LINK,
    )
    left, right = st.columns(2)
    left.slider("Temperature", 0.0, 2.0, 0.0, 0.05, key="compare_temperature", **LINK)
    right.slider("Most tokens", 1, 1024, 128, key="compare_max_tokens", **LINK)
    left.number_input(
        "Seed",
        0,
        None,
        None,
        key="compare_seed",
        placeholder="another one for each answer",
        help="With one, all models draw with the same seed.",
        **LINK,
    )
    right.toggle("Mark what differs", True, key="compare_marks", **LINK)


def _buttons(state: CompareState, names: list[str]) -> None:
    is_running = state.run is not None and not state.run.is_done
    with st.container(horizontal=True):
        if st.button(
            "Compare",
            type="primary",
            icon=":material/compare_arrows:",
            disabled=is_running or len(names) < 2,
        ):
            _compare(state)
        if st.button("Stop", icon=":material/stop:", disabled=not is_running):
            state.error = stop(state.run)


def _compare(state: CompareState) -> None:
    """Ask all models for all answers at once."""
    state.answers = []
    state.run = None
    models = st.session_state["compare_models"]
    prompts = prompts_of(st.session_state["compare_prompts"])
    state.error = _fault(models, prompts)
    if state.error:
        return
    for prompt in prompts:
        for model in models:
            state.answers.append(_asked(model, prompt))
    runs = [answer.run for answer in state.answers if answer.run is not None]
    if not runs:
        # The server is away, or refuses all of them for the same reason.
        state.error = state.answers[0].refusal
        state.answers = []
    state.run = RunGroup(runs)
    st.rerun()


def prompts_of(text: str) -> list[str]:
    r"""Return the prompts of a field, each once: one a line, in which \n is a new line."""
    prompts = []
    for line in text.splitlines():
        if line.strip():
            prompts.append(line.strip().replace("\\n", "\n"))
    return list(dict.fromkeys(prompts))


def _fault(models: Sequence[str], prompts: Sequence[str]) -> str:
    """Return what keeps the page from asking, "" if nothing does."""
    if len(models) < 2:
        return "Choose two models or more."
    if not prompts:
        return "Write a prompt first."
    count = len(models) * len(prompts)
    if count > _MOST_ANSWERS:
        return (
            f"{len(prompts)} prompts for {len(models)} models are {count} answers; at most "
            f"{_MOST_ANSWERS} are shown."
        )
    return ""


def _asked(model: str, prompt: str) -> Answer:
    fields = st.session_state
    body: Body = {
        "model": model,
        "temperature": fields["compare_temperature"],
        "max_tokens": fields["compare_max_tokens"],
        "seed": fields["compare_seed"],
    }
    form = fields["compare_form"]
    if form == _PROMPT:
        body["prompts"] = [prompt]
    else:
        body["problem"] = prompt
    try:
        return Answer(model, prompt, submitted(_FORMS[form], body))
    except ServerError as error:
        return Answer(model, prompt, refusal=str(error))


def _show_answers(answers: Sequence[Answer]) -> None:
    """Draw the answers to one prompt in columns, which a phone shows one below the other."""
    marks = st.session_state["compare_marks"] and all(answer.is_done for answer in answers)
    reference = answers[0]
    columns = []
    for first in range(0, len(answers), _COLUMNS):
        columns += st.columns(len(answers[first : first + _COLUMNS]))
    for answer, column in zip(answers, columns, strict=True):
        with column:
            st.subheader(answer.model)
            # Asked before the text is read, so that figures stand below whole texts alone.
            is_done = answer.is_done
            _show_text(answer, reference.text if marks and answer is not reference else None)
            if is_done:
                _show_end(answer)
    if marks:
        st.caption(
            f"Beside the answer of {reference.model}: underlined words are only in this answer, "
            "words that are struck through only in that one."
        )


def _show_text(answer: Answer, reference: str | None) -> None:
    """Draw the text of an answer, with marks where it differs from a reference."""
    if not answer.text and not answer.is_done:
        st.caption("Waiting for the first token ...")
        return
    pieces: tuple[Piece, ...] = (Piece("same", answer.text),)
    if reference is not None:
        pieces = differences(reference, answer.text)
        if reference == answer.text:
            st.badge("the same text", icon=":material/equal:", color="green")
    st.html(marked(pieces))


def _show_end(answer: Answer) -> None:
    show_error(answer.error)
    if answer.run is None:
        return
    if answer.run.is_cancelled:
        st.caption("Stopped.")
    show_timings(answer.run)


def _show_tables(state: CompareState) -> None:
    """Draw a table of all answers, and one of the models' speeds."""
    rows = []
    num_equal = 0
    for prompt in state.prompts:
        answers = state.of(prompt)
        row = {"Prompt": prompt}
        for answer in answers:
            row[answer.model] = answer.brief
        agreeing = num_agreeing(answers)
        row["Agree"] = f"{agreeing} of {len(answers)}" if agreeing is not None else _PENDING
        num_equal += agreeing == len(answers)
        rows.append(row)
    st.dataframe(rows, hide_index=True, alt="The answers, by prompt and model.")
    st.caption(
        f"All models agree on {num_equal} of {len(rows)} prompts. Compared is what is boxed in each "
        "answer, or the code of a problem in coding, or else the whole text."
    )

    speeds = []
    for first in state.of(state.prompts[0]):
        speeds.append(_speed_of(first.model, state.answers))
    st.dataframe(speeds, hide_index=True, alt="The speed of each model.")
    st.caption("The models answer at the same time, and share what they run on.")


def num_agreeing(answers: Sequence[Answer]) -> int | None:
    """Return how many models give the commonest answer, None while one is being written.

    A failure is no answer.
    """
    if not all(answer.is_done for answer in answers):
        return None
    counts = Counter(answer.final for answer in answers if not answer.error)
    return max(counts.values(), default=0)


def final_answer(text: str) -> str:
    r"""Return the inside of the last \boxed{...} of a text, or else the whole text."""
    found = _BOXED.findall(text)
    return (found[-1] if found else text).strip()


def _speed_of(model: str, answers: Sequence[Answer]) -> dict[str, str]:
    """Return a row with the tokens and times of a model's answers so far."""
    num_answers = 0
    num_tokens = 0
    times = []
    speeds = []
    for answer in answers:
        if answer.model != model or answer.run is None or not answer.run.job:
            continue
        num_answers += 1
        num_tokens += (answer.run.job.get("usage") or {}).get("completion_tokens") or 0
        timings = answer.run.job.get("timings") or {}
        if timings.get("total_s") is not None:
            times.append(timings["total_s"])
        if timings.get("tokens_per_s"):
            speeds.append(timings["tokens_per_s"])
    return {
        "Model": model,
        "Answers": str(num_answers),
        "Tokens": str(num_tokens),
        "Response time, mean": f"{fmean(times):.2f} s" if times else _PENDING,
        "Speed, mean": f"{fmean(speeds):.0f} tokens/s" if speeds else _PENDING,
    }
