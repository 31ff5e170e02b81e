"""The engine from Python, on the echo, which needs no torch.

No caller hangs, and nothing is computed for a caller that has left. `tests/e2e/test_llm.py` tests
that the answers equal those over HTTP.
"""

import asyncio
import dataclasses
import gc
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from api.schemas.openai import CompletionRequest
from shared.errors import (
    ClientGone,
    ContextExceeded,
    Draining,
    FleetError,
    InvalidRequest,
    WorkerFailed,
)
from shared.messages import Depth
from shared.settings.settings import ModelEntry, Settings, SettingsError
from tests.fixtures.polling import until, wait_until
from worker import llm as module
from worker.engine.runner import RunnerOptions
from worker.engine.sequence import Slice, StepResult, TokenSequence
from worker.llm import LLM, ModelSettings, SamplingParams
from worker.runners.echo import Echo

LONG = SamplingParams(max_tokens=2000)


class Watched(Echo):
    """An echo that counts its steps and records the sequences it has released.

    Its step `held_at` begins and does not end before `gate` is open.
    """

    def __init__(self, options: RunnerOptions) -> None:
        super().__init__(options)
        self.num_steps = 0
        self.released: list[str] = []
        self.held_at: int | None = None
        self.holds = threading.Event()
        self.gate = threading.Event()
        self.interrupts = False

    def step(self, slices: Sequence[Slice]) -> list[StepResult | FleetError]:
        self.num_steps += 1
        if self.num_steps == self.held_at:
            self.holds.set()
            if self.interrupts:
                os.kill(os.getpid(), signal.SIGINT)
            assert self.gate.wait(180)
        return super().step(slices)

    def release(self, sequence: TokenSequence) -> None:
        super().release(sequence)
        self.released.append(sequence.key)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    """Return the runner of every LLM that the test creates."""
    runner = Watched(RunnerOptions("echo", name="echo", max_batch=4, context_window=2048))

    def load(settings: Settings) -> list[Any]:
        [model] = load_models(settings)
        return [dataclasses.replace(model, runner=runner)]

    load_models = module.load_models
    monkeypatch.setattr(module, "load_models", load)
    return runner


@pytest.fixture
def llm(watched: Watched) -> Iterator[LLM]:
    with LLM("echo") as instance:
        yield instance


def engine_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "engine"}


def texts(outputs: list[module.RequestOutput]) -> list[str]:
    """Return the texts of all choices, output by output."""
    choice_texts = []
    for output in outputs:
        for choice in output.outputs:
            choice_texts.append(choice.text)
    return choice_texts


def test_answers_stand_in_the_order_of_their_prompts(llm: LLM) -> None:
    """Outputs are in the order of the prompts, with more prompts than rows in a batch.

    The prompts have different lengths, and every second one has two choices.
    """
    prompts = []
    params = []
    for number in range(9):
        prompts.append(f"prompt {number} ")
        params.append(SamplingParams(max_tokens=20 - number, n=1 + number % 2))

    outputs = llm.generate(prompts, params)

    for prompt, sampling, output in zip(prompts, params, outputs, strict=True):
        assert output.prompt == prompt
        assert output.prompt_token_ids == tuple(ord(character) for character in prompt)
        assert len(output.outputs) == sampling.n
        for index, choice in enumerate(output.outputs):
            assert choice.index == index
            assert choice.text == (prompt * 3)[: sampling.max_tokens]
            assert choice.finish_reason == "length"


def test_every_form_of_a_prompt(llm: LLM) -> None:
    """A prompt is a text, ids or a dictionary, alone or in a list."""
    ids = [ord("a"), ord("b"), ord("c")]
    for prompts in (
        "abc",
        ["abc"],
        ids,
        [ids],
        tuple(ids),
        {"prompt": "abc"},
        [{"prompt_token_ids": ids}],
    ):
        outputs = llm.generate(prompts, SamplingParams(max_tokens=4))  # type: ignore[arg-type]
        assert texts(outputs) == ["abca"], prompts
    assert llm.generate([]) == []


async def test_it_works_where_an_event_loop_runs(llm: LLM) -> None:
    """Blocking calls and streams work inside a running loop, as in a notebook."""
    assert texts(llm.generate("abc", SamplingParams(max_tokens=4))) == ["abca"]

    streamed = ["", ""]
    finish_reasons: list[list[str]] = [[], []]
    async for chunk in llm.stream_generate("abc", SamplingParams(max_tokens=4, n=2)):
        streamed[chunk.index] += chunk.text
        if chunk.finish_reason:
            finish_reasons[chunk.index].append(chunk.finish_reason)

    assert streamed == ["abca", "abca"]
    assert finish_reasons == [["length"], ["length"]]


def test_more_choices_than_places(llm: LLM) -> None:
    """A request may have more choices than a batch has rows."""
    outputs = llm.generate("abc", SamplingParams(max_tokens=4, n=11))
    assert len(outputs) == 1
    assert texts(outputs) == ["abca"] * 11


def test_many_threads_share_one(llm: LLM) -> None:
    """Calls from many threads each get their own answer."""

    def ask(number: int) -> str:
        [text] = texts(llm.generate(f"{number},", SamplingParams(max_tokens=30)))
        return text

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(40)))

    assert len(answers) == 40
    for number, text in enumerate(answers):
        assert text == (f"{number}," * 30)[:30]


def test_ctrl_c_drops_what_was_asked(llm: LLM, watched: Watched) -> None:
    """An interrupt drops the call's prompts; the LLM goes on working."""
    watched.held_at = 5
    watched.interrupts = True
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["one ", "two "], LONG)

    watched.gate.set()
    wait_until(lambda: len(watched.released) == 2, "both prompts are dropped")
    assert watched.num_steps == 5
    assert texts(llm.generate("abc", SamplingParams(max_tokens=4))) == ["abca"]


async def test_a_stream_that_is_closed_early_computes_no_more(llm: LLM, watched: Watched) -> None:
    """A stream that its reader closes is dropped from the engine."""
    watched.held_at = 5
    stream = llm.stream_generate("abc", LONG)
    await anext(stream)
    await stream.aclose()  # type: ignore[attr-defined]

    watched.gate.set()
    await until(lambda: watched.released != [], "the sequence is dropped")
    assert watched.num_steps <= 5


async def test_leaving_the_loop_closes_the_stream(llm: LLM, watched: Watched) -> None:
    """A reader that breaks out of its loop closes the stream."""
    watched.held_at = 5
    async for _ in llm.stream_generate("abc", LONG):
        break

    # The event loop closes an iterator that nobody holds, and needs some turns for it.
    for _ in range(5):
        await asyncio.sleep(0)
    watched.gate.set()
    await until(lambda: watched.released != [], "the sequence is dropped")
    assert watched.num_steps <= 6


async def test_a_stream_whose_reader_is_cancelled_computes_no_more(
    llm: LLM, watched: Watched
) -> None:
    """A stream whose reading task is cancelled is dropped from the engine."""
    watched.held_at = 5
    begun = asyncio.Event()

    async def read() -> None:
        async for _ in llm.stream_generate("abc", LONG):
            begun.set()

    reader = asyncio.create_task(read())
    await begun.wait()
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader

    watched.gate.set()
    await until(lambda: watched.released != [], "the sequence is dropped")
    assert watched.num_steps <= 5


def test_a_loop_that_is_closed_under_its_stream_harms_nobody(llm: LLM, watched: Watched) -> None:
    """A stream whose event loop is gone is dropped; the LLM goes on working."""
    watched.held_at = 5
    loop = asyncio.new_event_loop()
    stream = llm.stream_generate("abc", LONG)
    loop.run_until_complete(anext(stream))  # type: ignore[arg-type]
    loop.close()

    watched.gate.set()
    wait_until(lambda: watched.released != [], "the sequence is dropped")
    assert texts(llm.generate("abc", SamplingParams(max_tokens=4))) == ["abca"]


def test_a_future_that_is_cancelled_is_dropped(llm: LLM, watched: Watched) -> None:
    """A future that is cancelled in the middle of a step is dropped after it."""
    watched.held_at = 5
    future = llm.submit("abc", LONG)
    assert watched.holds.wait(180)
    assert future.cancel()

    watched.gate.set()
    wait_until(lambda: watched.released != [], "it is dropped")
    assert watched.num_steps == 5
    output = llm.submit("xyz", SamplingParams(max_tokens=4)).result(timeout=180)
    assert output.outputs[0].text == "xyzx"


def test_one_prompt_that_fails_ends_the_call(llm: LLM, watched: Watched) -> None:
    """A call raises the error of its first prompt that fails, and drops the others."""

    def step(slices: Sequence[Slice]) -> list[StepResult | FleetError]:
        results = Echo.step(watched, slices)
        for row, part in enumerate(slices):
            if part.sequence.encoded.prompt_ids == (ord("!"),):
                results[row] = WorkerFailed("no numbers")
        return results

    watched.step = step  # type: ignore[method-assign]
    with pytest.raises(WorkerFailed, match="no numbers"):
        llm.generate(["abc", "!", "xyz"], LONG)
    wait_until(lambda: len(watched.released) == 3, "the others are dropped")


def test_nobody_waits_for_an_engine_that_broke(llm: LLM, watched: Watched) -> None:
    """After a fault in the engine itself, its calls and later ones raise WorkerFailed."""

    def release(sequence: TokenSequence) -> None:
        raise RuntimeError("a fault of our own")

    watched.release = release  # type: ignore[method-assign]
    with pytest.raises(WorkerFailed):
        llm.generate(["abc", "xyz"], SamplingParams(max_tokens=4))
    with pytest.raises(WorkerFailed):
        llm.generate("abc")


def test_closing_ends_what_is_in_hand_and_frees_the_model(watched: Watched) -> None:
    """A closed LLM ends its running requests, refuses new ones and has no thread.

    Closing it twice is harmless.
    """
    before = engine_threads()
    llm = LLM("echo")
    watched.held_at = 5
    future = llm.submit("abc", LONG)
    assert watched.holds.wait(180)
    watched.gate.set()

    llm.close()
    llm.close()

    with pytest.raises(ClientGone):
        future.result(timeout=0)
    with pytest.raises(Draining):
        llm.generate("abc")
    with pytest.raises(Draining):
        llm.score("a", "b")
    with pytest.raises(Draining):
        llm.submit("abc")
    assert engine_threads() <= before


def test_an_llm_that_nobody_holds_is_gone() -> None:
    """An LLM without references is collected, and its thread ends."""
    before = engine_threads()
    llm = LLM("echo")
    assert texts(llm.generate("abc", SamplingParams(max_tokens=4))) == ["abca"]
    remains = weakref.ref(llm)
    del llm
    gc.collect()
    assert remains() is None
    assert engine_threads() <= before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks there")
def test_a_forked_process_is_told_that_it_has_no_engine() -> None:
    """A call in a forked process fails; it would wait for ever, as no engine runs there."""
    program = """if True:
        import os
        from shared.errors import WorkerFailed
        from worker.llm import LLM
        llm = LLM("echo")
        if os.fork() == 0:
            try:
                llm.generate("abc")
            except WorkerFailed as error:
                os._exit(7)
        print(os.waitstatus_to_exitcode(os.wait()[1]))
    """
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=180, check=True
    )
    assert done.stdout == "7\n"


@pytest.mark.parametrize("end", ["", "raise SystemExit(0)", "llm.close()"])
def test_a_program_may_end_in_the_middle(end: str) -> None:
    """A program that ends while a request runs exits at once and without a word."""
    program = (
        "from worker.llm import *; llm = LLM('echo'); f = llm.submit('abc', "
        f"SamplingParams(max_tokens=2000)); {end}"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0
    assert done.stdout == ""
    assert done.stderr == ""


def test_it_loads_neither_redis_nor_a_server() -> None:
    """An echo from Python imports neither Redis, nor a server, nor torch."""
    program = (
        "import sys; from worker.llm import LLM; LLM('echo').generate('hi'); print({*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=180, check=True
    )
    assert not {"redis", "fastapi", "uvicorn", "torch"} & eval(done.stdout)


WRONG: dict[str, tuple[Callable[[LLM], object], str]] = {
    "an empty prompt": (lambda llm: llm.generate(["a", ""]), "prompts"),
    "half a character": (lambda llm: llm.generate("\ud800"), "prompts"),
    "a number": (lambda llm: llm.generate(3), "prompts"),  # type: ignore[arg-type]
    "no prompt in it": (lambda llm: llm.generate({"text": "a"}), "prompts"),
    "ids with a boolean": (lambda llm: llm.generate([[1, True]]), "prompts"),
    "ids beyond the vocabulary": (lambda llm: llm.generate([[1, 2**30]]), "prompt"),
    "too few parameters": (
        lambda llm: llm.generate(["a", "b"], [SamplingParams()]),
        "sampling_params",
    ),
    "parameters in a dictionary": (
        lambda llm: llm.generate("a", {"n": 2}),  # type: ignore[arg-type]
        "sampling_params",
    ),
    "parameters among others": (
        lambda llm: llm.generate(["a"], [{}]),  # type: ignore[list-item]
        "sampling_params",
    ),
    "bytes": (lambda llm: llm.generate(b"abc"), "prompts"),
    "a text for a dialogue": (lambda llm: llm.chat("hello"), "messages"),  # type: ignore[arg-type]
    "a turn of nobody": (lambda llm: llm.chat([{"role": "robot", "content": "a"}]), "messages"),
    "a turn without words": (lambda llm: llm.chat([{"role": "user", "content": None}]), "messages"),
    "an empty continuation": (lambda llm: llm.score("a", ["b", ""]), "continuations"),
    "more contexts": (lambda llm: llm.score(["a", "b"], ["c"]), "contexts"),
    "one puzzle": (lambda llm: llm.solve("." * 81), "puzzles"),
    "a puzzle for a model of texts": (lambda llm: llm.solve(["." * 81]), "model"),
    "a depth that the model has not": (
        lambda llm: llm.generate("a", SamplingParams(effort="low")),
        "effort",
    ),
    "scores at such a depth": (
        lambda llm: llm.score("a", ["b"], depth=Depth(cycles="1x1")),
        "cycles",
    ),
    "two depths": (lambda llm: llm.solve(["." * 81], max_steps=2, effort="low"), "effort"),
    "temperature": (lambda llm: SamplingParams(temperature=float("nan")), "temperature"),
    "stop": (lambda llm: SamplingParams(stop=["a", ""]), "stop"),
    "logit_bias": (lambda llm: SamplingParams(logit_bias={-1: 1.0}), "logit_bias"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_named(llm: LLM, case: str) -> None:
    """Wrong input raises InvalidRequest with the name of the field."""
    call, field = WRONG[case]

    with pytest.raises(InvalidRequest) as caught:
        call(llm)

    assert caught.value.field == field


def test_what_is_too_long_is_refused_unless_it_may_be_cut(llm: LLM) -> None:
    """A prompt longer than the context window is refused, or cut where the caller allows it.

    Without a limit an answer fills the window.
    """
    prompt = "abc" * 3000
    with pytest.raises(ContextExceeded):
        llm.generate(prompt)

    cut = SamplingParams(max_tokens=4, truncate_prompt_tokens=5)
    assert texts(llm.generate(prompt, cut)) == ["bcab"]

    [text] = texts(llm.generate("abc", SamplingParams(max_tokens=None)))
    assert len(text) == 2048 - 3


def test_settings_are_those_of_a_model(tmp_path: object) -> None:
    """An LLM takes the settings of a model, and refuses others with their name."""
    assert ModelSettings.__annotations__.keys() - {"runner"} < Settings.model_fields.keys()
    # `prompting` tells the front's dialects how to write prompts for a model.
    not_here = {"id", "path", "gpu_required", "prompting"}
    assert ModelEntry.model_fields.keys() - not_here < ModelSettings.__annotations__.keys()
    with pytest.raises(SettingsError, match=r"^port: no setting of a model"):
        LLM("echo", port=80)  # type: ignore[call-arg]
    with pytest.raises(SettingsError, match=r"^quantize: .*got 'int3'"):
        LLM("echo", quantize="int3")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match=r"There is no model at .*/a name with spaces"):
        LLM(f"{tmp_path}/a name with spaces")
    for impossible in ("~nobody-of-this-name/model", "a\0b"):
        with pytest.raises(SettingsError, match=r"^model '"):
            LLM(impossible)
    with pytest.raises(SettingsError, match=r"runner: .*got 'magic'"):
        LLM(str(tmp_path), runner="magic")  # type: ignore[arg-type]


FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "n": st.integers(0, 17),
    "max_tokens": st.integers(0, 40),
    "temperature": st.floats(-0.1, 2.1),
    "top_p": st.floats(0, 1.1),
    "top_k": st.integers(-2, 9),
    "min_p": st.floats(-0.1, 1.1),
    "repetition_penalty": st.floats(0, 101),
    "presence_penalty": st.floats(-2.1, 2.1),
    "frequency_penalty": st.floats(-2.1, 2.1),
    "logit_bias": st.dictionaries(st.integers(0, 9), st.floats(-100.1, 100.1), max_size=2),
    "seed": st.integers(-(2**63) - 1, 2**64),
    "stop": st.lists(st.text("ab", max_size=2), max_size=2),
    "stop_token_ids": st.lists(st.integers(-1, 9), max_size=2),
    "ignore_eos": st.booleans(),
    "min_tokens": st.integers(-1, 40),
    "logprobs": st.integers(-1, 5),
    "truncate_prompt_tokens": st.integers(-2, 9),
    "cycles": st.sampled_from(["2x1", "2x", "1x100", "2x3\n", ""]),
    "max_steps": st.integers(0, 3),
    "effort": st.sampled_from(["low", "high", "none", ""]),
}


@given(st.fixed_dictionaries({}, optional=FIELDS))
def test_parameters_mean_what_they_mean_over_http(fields: dict[str, Any]) -> None:
    """Parameters make the same task as a body over HTTP with the same fields.

    A value out of its range is refused by both.
    """
    fields = {"seed": 1} | fields
    # In JSON the keys of `logit_bias` are texts.
    named_bias = {str(token): bias for token, bias in fields.get("logit_bias", {}).items()}
    json_body = {"prompt": "x"} | fields | {"logit_bias": named_bias}

    try:
        body = CompletionRequest.model_validate(json_body)
    except ValidationError:
        # More than 16 choices are refused by the front alone.
        if fields.get("n", 1) <= 16:
            with pytest.raises(InvalidRequest):
                SamplingParams(**fields)
        return
    # Here, as in vLLM, the default limit is 16 tokens, and a minimum above it is refused.
    if body.max_tokens is None and body.min_tokens > 16:
        return

    expected = body.task("x", body.max_tokens or 16)
    task = SamplingParams(**fields).task("x", 100)
    assert task.sampling == expected.sampling
    assert task.max_prompt_tokens == expected.max_prompt_tokens
    assert (task.overflow == "truncate") == (expected.overflow == "truncate")
