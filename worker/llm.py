"""The engine from Python: one model in this process, without HTTP and without Redis.

    from worker.llm import LLM, SamplingParams

    with LLM("models/hrm-text-math") as llm:
        params = SamplingParams(temperature=0, max_tokens=100)
        (output,) = llm.generate("Compute: 347 + 285", params)
        print(output.outputs[0].text)

The names are vLLM's. One thread steps the engine. Every method may be called from any thread, and
from a notebook, whose event loop is already running. Answers are the same as over HTTP.
"""

import asyncio
import contextlib
import itertools
import os
import re
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, InvalidStateError, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeGuard, TypeVar, Unpack

from shared.errors import ClientGone, Draining, FleetError, InvalidRequest, WorkerFailed, from_event
from shared.messages import (
    Chat,
    Classify,
    ContinuationScore,
    Depth,
    Detokenize,
    Detokenized,
    Done,
    Effort,
    Embed,
    Embedded,
    Failed,
    Generate,
    Grid,
    Halt,
    Label,
    Labelled,
    ModelInfo,
    Prompt,
    Result,
    Score,
    Scored,
    Solution,
    Solve,
    Task,
    Text,
    Tokenize,
    Tokenized,
    Turn,
)
from shared.settings.hub import with_hub_models
from shared.settings.hub_names import hub_name
from shared.settings.settings import DEFAULT_MODEL, Settings, SettingsError, settings_of
from shared.settings.types import Quantize
from shared.tasks.runner_options import Attention, KVDtype, Scoring, Segments
from shared.tasks.runner_table import WITHOUT_FILES
from shared.tasks.samples import ONE_SAMPLE, Answer, Sampled, answer_of, tasks_of
from shared.tasks.vectors import unpack
from worker.engine.depth import check_depth
from worker.engine.engine import Engine
from worker.engine.engine_thread import EngineThread
from worker.engine.request import Emission, SequenceWork
from worker.engine.runner import Runner
from worker.engine.sequence import Encoded
from worker.hardware import device
from worker.hardware.machine import survey
from worker.hardware.shapes import shape_of
from worker.host.loading import load_models
from worker.outputs import Answers, StreamChunk, chunk_of
from worker.outputs import CompletionOutput as CompletionOutput
from worker.outputs import Logprob as Logprob
from worker.outputs import RequestOutput as RequestOutput
from worker.sampling_params import SamplingParams as SamplingParams

PromptInput = str | Sequence[int] | Mapping[str, Any]
"""A text, token ids, or one of them as `{"prompt": text}` or `{"prompt_token_ids": ids}`."""
Messages = Sequence[Mapping[str, Any]]
"""A dialogue, each turn as `{"role": "user", "content": "..."}`."""
TextInput = str | Sequence[int]
"""A text, or token ids."""
PuzzleInput = str | Sequence[str] | Sequence[Sequence[int]]
"""A Sudoku in one string, or the rows of a grid."""

Whole = TypeVar("Whole")
SomeResult = TypeVar("SomeResult", bound=Result)

_WAIT_S = 0.5
"""The seconds after which a wait for futures begins anew, so that Ctrl-C is noticed."""


class ModelSettings(TypedDict, total=False):
    """The settings of a fleet for the loading and the running of a model (docs/settings.md).

    Each has its default. `runner` is one of `shared/tasks/runner_table.py`, and `options` are those
    that the runner declares.
    """

    runner: str
    options: Mapping[str, Any]
    tokenizer_path: str | Path
    hub: bool
    device: Literal["auto", "cpu", "cuda", "mps"]
    dtype: Literal["auto", "float32", "float16", "bfloat16"]
    quantize: Quantize
    max_batch_size: int
    context_window: int
    threads: int | Literal["auto"]
    scoring: Scoring
    segments: Segments
    attention: Attention
    condition: str
    chat_template: str | Path
    use_ema: bool
    kv_memory_mib: int | Literal["auto"]
    kv_memory_fraction: float
    max_gpu_memory_gb: float
    page_size: int
    kv_dtype: KVDtype
    cuda_graphs: bool
    compile_layers: bool
    prefix_cache: bool
    step_tokens: int


class LLM:
    """A loaded model, from a directory, a file or a hub. `info` describes the model.

    `org/name[@revision]` and `hf://org/name[@revision]` are fetched from the Hugging Face hub.

    Raises SettingsError for a model or a setting that cannot be used. Methods raise the errors of
    `shared.errors`, such as InvalidRequest for a task that the model cannot do, and ContextExceeded
    for a prompt that is too long for it.

    Loading sets the number of torch's threads for the whole process, and lets malloc keep memory
    that is freed. `close` returns this memory to the system.
    """

    def __init__(
        self, model: str | Path = DEFAULT_MODEL, **settings: Unpack[ModelSettings]
    ) -> None:
        chosen = with_hub_models(_settings(model, settings))
        _prepare_process(chosen)
        (loaded,) = load_models(chosen)
        self.info: ModelInfo = loaded.info
        if loaded.runner.spec.mechanism != "sequence":
            remedy = "serve it with a fleet (`aios serve`)"
            raise SettingsError(
                f"model {self.info.id!r}: its tasks are done whole, and not by LLM; {remedy}."
            )
        runner = loaded.runner

        # The thread refers to the listeners and not to this object. So this object can be freed,
        # which ends the thread.
        self._listeners = _Listeners()
        broken = WorkerFailed("The engine broke down.")
        thread = EngineThread(on_death=partial(self._listeners.end_all, broken))
        engine = Engine(runner, self._listeners.deliver, thread.wake)
        thread.add(engine)
        thread.start()
        self._parts: _Parts | None = _Parts(runner, engine, thread)
        self._finalizer = weakref.finalize(self, _end, thread, self._listeners)

        self._keys = itertools.count()
        self._encode_lock = threading.Lock()

    def close(self) -> None:
        """Drop unfinished tasks, end the engine's thread and free the model.

        May be called again.
        """
        self._finalizer()
        self._parts = None
        device.give_back_memory()

    def __enter__(self) -> "LLM":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def generate(
        self,
        prompts: PromptInput | Sequence[PromptInput],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Answer all prompts in one batch.

        `sampling_params` is one value for all prompts, or a sequence with one for each. The first
        prompt that fails ends the call with its error, and all other prompts are dropped. Ctrl-C
        drops them, too.
        """
        return self._generate(_prompts(prompts), sampling_params)

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Answer a dialogue, or each of several, in the form of the model's chat template."""
        dialogues: Sequence[Any] = [messages] if _is_dialogue(messages) else messages
        return self._generate([_chat(dialogue) for dialogue in dialogues], sampling_params)

    def submit(
        self, prompt: PromptInput, sampling_params: SamplingParams | None = None
    ) -> "Future[RequestOutput]":
        """Begin to answer one prompt, and return at once.

        Cancelling the future drops the prompt.
        """
        return self._begin_answer(
            self._prepare(_prompt(prompt), sampling_params or SamplingParams())
        )

    async def stream_generate(
        self, prompt: PromptInput | Messages, sampling_params: SamplingParams | None = None
    ) -> AsyncIterator[StreamChunk]:
        """Answer a prompt, or a dialogue, chunk by chunk.

        Closing the iterator early drops the rest of the answer.
        """
        request = _chat(prompt) if _is_dialogue(prompt) else _prompt(prompt)
        # In a thread, because tokenizing a long prompt would block the event loop.
        prepared = await asyncio.to_thread(
            self._prepare, request, sampling_params or SamplingParams()
        )
        key = prepared.key
        loop = asyncio.get_running_loop()
        emissions: asyncio.Queue[Emission] = asyncio.Queue()

        def on_emission(emission: Emission) -> None:
            try:
                loop.call_soon_threadsafe(emissions.put_nowait, emission)
            except RuntimeError:  # the loop was closed before the iterator, so nobody reads on
                self._drop(key)

        self._start(prepared, on_emission)
        try:
            while True:
                emission = await emissions.get()
                if isinstance(emission.ended, Failed):
                    raise from_event(emission.ended)
                yield chunk_of(emission)
                if emission.ended is not None:
                    return
        finally:
            self._drop(key)

    def score(
        self,
        contexts: TextInput | Sequence[TextInput],
        continuations: TextInput | Sequence[TextInput],
        *,
        condition: str | None = None,
        method: Literal["strict", "aios_compat"] | None = None,
        depth: Depth | None = None,
    ) -> list[ContinuationScore]:
        """Score each continuation behind its context.

        Return for each its log-likelihood (nats), its number of tokens, and whether it is greedy.
        `depth` is that of a recurrent model, such as `Depth(cycles="2x1")`; None is its own.
        Contexts and continuations are pairs, or one context has all the continuations. Each
        distinct context is computed once.
        """
        texts = _texts(continuations, "continuations")
        context_texts = _texts(contexts, "contexts", may_be_empty=True)
        if len(context_texts) == 1:
            context_texts *= len(texts)
        if len(context_texts) != len(texts):
            problem = (
                f"expected one, or as many as continuations, which are {len(texts)}; got "
                f"{len(context_texts)}"
            )
            raise InvalidRequest(f"contexts: {problem}.", field="contexts")

        # One task for each distinct context, with all its continuations.
        indices_of: dict[Text, list[int]] = {}
        for index, context in enumerate(context_texts):
            indices_of.setdefault(context, []).append(index)
        tasks: list[Task] = []
        for context, indices in indices_of.items():
            group = tuple(texts[index] for index in indices)
            tasks.append(Score(context, group, condition=condition, method=method, depth=depth))

        scores: dict[int, ContinuationScore] = {}
        for indices, scored in zip(indices_of.values(), self._run(tasks, Scored), strict=True):
            scores.update(zip(indices, scored.scores, strict=True))
        return [scores[index] for index in range(len(texts))]

    def score_rolling(
        self,
        texts: TextInput | Sequence[TextInput],
        *,
        condition: str | None = None,
        depth: Depth | None = None,
    ) -> list[ContinuationScore]:
        """Score whole texts of any length.

        Return for each its log-likelihood (nats) and its number of tokens. `depth` is as in
        `score`.
        """
        tasks: list[Task] = []
        for text in _texts(texts, "texts"):
            tasks.append(Score("", (text,), condition=condition, rolling=True, depth=depth))
        return [scored.scores[0] for scored in self._run(tasks, Scored)]

    def embed(
        self, texts: TextInput | Sequence[TextInput], *, normalize: bool = True
    ) -> list[list[float]]:
        """Return a vector [hidden] for each text, of length 1 if `normalize`."""
        tasks = [Embed(text, normalize) for text in _texts(texts, "texts")]
        return [unpack(embedded.vector) for embedded in self._run(tasks, Embedded)]

    def classify(
        self, texts: TextInput | Sequence[TextInput], *, top_k: int | None = None
    ) -> list[list[Label]]:
        """Return the labels that a classifier gives each text, likeliest first.

        There are `top_k` labels for each text, or all if it is None.
        """
        tasks = [Classify(text, top_k) for text in _texts(texts, "texts")]
        return [list(labelled.labels) for labelled in self._run(tasks, Labelled)]

    def solve(
        self,
        puzzles: Sequence[PuzzleInput],
        *,
        identifier: int | str | None = None,
        halt: Halt | None = None,
        max_steps: int | None = None,
        effort: Effort | None = None,
    ) -> list[Solution]:
        """Return the solutions of puzzles, each a Sudoku in one string, or the rows of a grid.

        At most one of `max_steps` and `effort` is expected.
        """
        answers = self.solve_sampled(
            puzzles,
            ONE_SAMPLE,
            identifier=identifier,
            halt=halt,
            max_steps=max_steps,
            effort=effort,
        )
        return [answer.solution for answer in answers]

    def solve_sampled(
        self,
        puzzles: Sequence[PuzzleInput],
        sampled: Sampled,
        *,
        identifier: int | str | None = None,
        halt: Halt | None = None,
        max_steps: int | None = None,
        effort: Effort | None = None,
    ) -> list[Answer]:
        """Return the answers to puzzles, each selected among several samples of its solution."""
        fault = sampled.fault()
        if fault is not None:
            field, expected = fault
            raise InvalidRequest(f"{field}: {expected}.", field=field)
        if max_steps is not None and effort is not None:
            raise InvalidRequest(
                "effort: expected at most one of max_steps, effort.", field="effort"
            )
        if isinstance(puzzles, str):
            raise InvalidRequest(
                "puzzles: expected a list of puzzles, got a text.", field="puzzles"
            )
        groups: list[list[Solve]] = []
        for puzzle in puzzles:
            grid = _puzzle(puzzle)
            task = Solve(grid, identifier, halt=halt, max_steps=max_steps, effort=effort)
            groups.append(tasks_of(task, sampled))
        return [
            answer_of(solutions, sampled.select) for solutions in self._samples(groups, sampled)
        ]

    def _samples(
        self, groups: Sequence[Sequence[Solve]], sampled: Sampled
    ) -> list[list[Solution | None]]:
        """Return the solutions of all samples of each puzzle, None for those that are needless."""
        first_wave: list[Solve] = []
        for group in groups:
            first_wave += group[:1] if sampled.select == "verified" else group
        solved = iter(self._run(first_wave, Solution))
        samples: list[list[Solution | None]] = []
        for group in groups:
            num_solved = 1 if sampled.select == "verified" else len(group)
            samples.append(list(itertools.islice(solved, num_solved)))

        # Only where the first sample is not valid the others are needed.
        second_wave: list[Solve] = []
        for group, known in zip(groups, samples, strict=True):
            if not _is_valid(known[0]):
                second_wave += group[len(known) :]
        solved = iter(self._run(second_wave, Solution))
        for group, known in zip(groups, samples, strict=True):
            num_missing = len(group) - len(known)
            if _is_valid(known[0]):
                known.extend([None] * num_missing)
            else:
                known.extend(itertools.islice(solved, num_missing))
        return samples

    def tokenize(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        """Return a text's token ids."""
        (tokenized,) = self._run([Tokenize(text, add_special_tokens)], Tokenized)
        return tokenized.ids

    def detokenize(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Return the text of token ids."""
        task = Detokenize(_ids(token_ids, "token_ids"), skip_special_tokens)
        (detokenized,) = self._run([task], Detokenized)
        return detokenized.text

    def _generate(
        self, prompts: Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None
    ) -> list[RequestOutput]:
        if params is None:
            params = SamplingParams()
        if isinstance(params, Sequence) and not isinstance(params, str | bytes):
            params_by_prompt = params
        else:
            params_by_prompt = [params] * len(prompts)
        if len(params_by_prompt) != len(prompts):
            problem = (
                f"expected one, or as many as prompts, which are {len(prompts)}; got "
                f"{len(params_by_prompt)}"
            )
            raise InvalidRequest(f"sampling_params: {problem}.", field="sampling_params")

        # All prompts are encoded before the first begins, so that they share every step.
        prepared: list[_Prepared] = []
        for prompt, prompt_params in zip(prompts, params_by_prompt, strict=True):
            prepared.append(self._prepare(prompt, prompt_params))
        return self._results(prepared, self._begin_answer)

    def _run(self, tasks: Sequence[Task], kind: type[SomeResult]) -> list[SomeResult]:
        """Return the results of tasks that are not generation, all computed together."""
        prepared = [self._encode(task) for task in tasks]
        results: list[SomeResult] = []
        for done in self._results(prepared, self._begin):
            assert isinstance(done.result, kind), done
            results.append(done.result)
        return results

    def _results(
        self, prepared: "Sequence[_Prepared]", begin: "Callable[[_Prepared], Future[Whole]]"
    ) -> list[Whole]:
        """Return all results, or raise the first error."""
        try:
            futures = [begin(task) for task in prepared]
            _wait_for(futures)
            return [future.result() for future in futures]
        finally:
            # However this call ends, none of its tasks goes on.
            for task in prepared:
                self._drop(task.key)

    def _prepare(self, prompt: Prompt, params: SamplingParams) -> "_Prepared":
        if not isinstance(params, SamplingParams):
            raise _invalid(
                "sampling_params", f"expected SamplingParams, got {type(params).__name__}"
            )
        return self._encode(params.task(prompt, self.info.context_window))

    def _encode(self, task: Task) -> "_Prepared":
        """Turn a task into token ids. Raise a FleetError for one that the model cannot do."""
        parts = self._open_parts()
        try:
            # A tokenizer must not be used by two threads at once.
            with self._encode_lock:
                encoded = parts.runner.encode(task)
            check_depth(task, encoded)
        except FleetError:
            raise
        except Exception as error:
            # A tokenizer is foreign code and may raise anything, as in worker/host/intake.py.
            raise WorkerFailed(f"The request could not be tokenized: {error}") from error
        return _Prepared(str(next(self._keys)), task, encoded)

    def _begin_answer(self, prepared: "_Prepared") -> "Future[RequestOutput]":
        task = prepared.task
        assert isinstance(task, Generate)
        prompt = None
        if isinstance(task.prompt, str):
            prompt = task.prompt
        answers = Answers(prepared.key, prompt, prepared.encoded.prompt_ids, task.sampling.n)
        return self._begin_future(prepared, answers.add, answers.whole)

    def _begin(self, prepared: "_Prepared") -> "Future[Done]":
        answer = prepared.encoded.answer
        if answer is None:
            return self._begin_future(prepared, _ignore, _unchanged)
        future: Future[Done] = Future()
        future.set_result(answer)
        return future

    def _begin_future(
        self, prepared: "_Prepared", add: Callable[[Emission], None], whole: Callable[[Done], Whole]
    ) -> "Future[Whole]":
        """Begin a task. Return a future of what `whole` returns for its end.

        `add` is called with each emission. Both are called from the engine's thread.
        """
        future: Future[Whole] = Future()

        def on_emission(emission: Emission) -> None:
            add(emission)
            # A future that its owner has cancelled takes neither an error nor a result.
            with contextlib.suppress(InvalidStateError):
                if isinstance(emission.ended, Failed):
                    future.set_exception(from_event(emission.ended))
                elif emission.ended is not None:
                    future.set_result(whole(emission.ended))

        self._start(prepared, on_emission)
        future.add_done_callback(partial(self._drop_cancelled, prepared.key))
        return future

    def _start(self, prepared: "_Prepared", on_emission: Callable[[Emission], None]) -> None:
        """Submit a task to the engine. Call `on_emission` with each of its emissions."""
        parts = self._open_parts()
        task = prepared.task
        # Before the engine has the task, so that no emission is missed.
        self._listeners.add(prepared.key, on_emission)
        sampling = task.sampling if isinstance(task, Generate) else None
        parts.engine.submit(SequenceWork(prepared.key, prepared.encoded, sampling))

    def _drop_cancelled(self, key: str, future: "Future[Any]") -> None:
        if future.cancelled():
            self._drop(key)

    def _drop(self, key: str) -> None:
        """Compute nothing more for a task, unless it has ended."""
        parts = self._parts
        if self._listeners.remove(key) and parts is not None:
            parts.engine.abort(key)

    def _open_parts(self) -> "_Parts":
        """Return the parts. Raise Draining once closed, WorkerFailed without a live thread."""
        parts = self._parts
        if parts is None:
            raise Draining("This LLM is closed.")
        if not parts.thread.is_alive():
            raise WorkerFailed(
                "The engine's thread is gone: it broke down, or this process was forked "
                "from another."
            )
        return parts


@dataclass(frozen=True)
class _Parts:
    """The parts of an open LLM."""

    runner: Runner
    engine: Engine
    thread: EngineThread


@dataclass(frozen=True)
class _Prepared:
    """A task in tokens. `key` is its name in the engine."""

    key: str
    task: Task
    encoded: Encoded


class _Listeners:
    """The listeners to emissions, by the keys of their tasks.

    `deliver` is called from the engine's thread. Other methods may be called from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: dict[str, Callable[[Emission], None]] = {}
        self._error: FleetError | None = None

    def add(self, key: str, on_emission: Callable[[Emission], None]) -> None:
        """Call `on_emission` with each emission of `key`, up to its end.

        Raise the error of `end_all` if that was called.
        """
        with self._lock:
            if self._error is not None:
                raise self._error
            self._listeners[key] = on_emission

    def remove(self, key: str) -> bool:
        """Stop listening to `key`. Return whether its task had not ended."""
        with self._lock:
            return self._listeners.pop(key, None) is not None

    def deliver(self, emissions: Sequence[Emission]) -> None:
        """Call the listener of each emission, if there is one."""
        for emission in emissions:
            with self._lock:
                on_emission = self._listeners.get(emission.key)
                if emission.ended is not None:
                    self._listeners.pop(emission.key, None)
            # Without the lock, because a listener may drop its task.
            if on_emission is not None:
                on_emission(emission)

    def end_all(self, error: FleetError) -> None:
        """End all present and later tasks with an error."""
        with self._lock:
            self._error = error
            listeners = self._listeners
            self._listeners = {}
        for key, on_emission in listeners.items():
            on_emission(Emission(key, ended=error.as_event()))


def _end(thread: EngineThread, listeners: _Listeners) -> None:
    """End the engine after its current step, and every task that waits for it."""
    # The finalizer calls this at the latest when the interpreter ends: torch must not compute while
    # it is taken apart.
    thread.stop()
    if threading.current_thread() is not thread:
        thread.join()
    listeners.end_all(ClientGone("The LLM was closed."))


def _wait_for(futures: "Sequence[Future[Any]]") -> None:
    """Wait until all futures have results. Raise the first error."""
    remaining = set(futures)
    while remaining:
        # With a timeout: a Ctrl-C that comes just before a wait begins does not end that wait.
        ended, remaining = wait(remaining, timeout=_WAIT_S, return_when=FIRST_EXCEPTION)
        for future in ended:
            future.result()


def _ignore(_: Emission) -> None:
    pass


def _unchanged(done: Done) -> Done:
    return done


def _settings(model: str | Path, given: ModelSettings) -> Settings:
    """Return the settings of a fleet that serves this one model. Raise SettingsError."""
    known = ModelSettings.__annotations__
    unknown = sorted(given.keys() - known.keys())
    if unknown:
        raise SettingsError(f"{unknown[0]}: no setting of a model; expected {', '.join(known)}")
    values = _without_paths(given)

    # Path.expanduser raises for an unknown user; os.path.expanduser leaves the path as it is.
    path = Path(os.path.expanduser(model))
    # A directory may have any name, but an id is at most 128 of these characters.
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.absolute().name).lstrip("._-") or "model"
    entry: dict[str, Any] = {"id": name[:128], "path": str(path)}
    named = hub_name(str(model))
    if named is not None:
        entry["id"] = named.model_id
    if named is not None or str(model) in WITHOUT_FILES:
        entry["path"] = str(model)
    if "runner" in values:
        entry["runner"] = values.pop("runner")
    if "options" in values:
        entry["options"] = _without_paths(values.pop("options"))
    return settings_of({**values, "models": (entry,)})


def _without_paths(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with a string in place of each Path."""
    plain: dict[str, Any] = {}
    for name, value in values.items():
        plain[name] = str(value) if isinstance(value, Path) else value
    return plain


def _prepare_process(settings: Settings) -> None:
    """Set threads and malloc as in a worker (`worker/__main__.py`).

    OMP_NUM_THREADS keeps its effect, unless the setting `threads` names a number.
    """
    threads = settings.threads
    if threads == "auto" and "OMP_NUM_THREADS" not in os.environ:
        single_worker = settings.model_copy(update={"workers": 1})
        threads = shape_of(single_worker, survey(settings.device)).threads
    if threads != "auto":
        device.use_threads(threads)
    device.keep_freed_memory()


def _is_dialogue(value: Any) -> TypeGuard[Messages]:
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    return is_list and len(value) > 0 and isinstance(value[0], Mapping) and "role" in value[0]


def _chat(messages: Messages) -> Chat:
    """Return a dialogue. Raise InvalidRequest."""
    if not _is_dialogue(messages):
        raise _invalid("messages", "expected a list of turns, each with `role` and `content`")
    return Chat(tuple(_turn(message) for message in messages))


def _turn(message: Mapping[str, Any]) -> Turn:
    role = message.get("role")
    content = message.get("content")
    if role == "developer":
        role = "system"
    if role not in ("system", "user", "assistant"):
        raise _invalid(
            "messages", f"expected the role system, developer, user or assistant, got {role!r}"
        )
    return Turn(role, _text(_content(content), "messages", may_be_empty=True))


def _content(value: Any) -> str:
    """Return the text of a turn's content.

    The content is a text, or a list of parts of type `text`, as OpenAI's clients write them.
    """
    if isinstance(value, str):
        return value
    if not isinstance(value, Sequence) or not value:
        raise _invalid("messages", f"expected a text as content, got {type(value).__name__}")
    text = ""
    for part in value:
        is_text = isinstance(part, Mapping) and part.get("type") == "text"
        if not is_text or not isinstance(part.get("text"), str):
            raise _invalid("messages", "expected parts of type 'text', each with a text")
        text += part["text"]
    return text


def _prompts(value: Any) -> list[Prompt]:
    """Return a call's prompts, of which there are one or several. Raise InvalidRequest."""
    if isinstance(value, str | Mapping) or _is_ids(value):
        return [_prompt(value)]
    if not isinstance(value, Sequence):
        raise _invalid(
            "prompts",
            f"expected a text, token ids, or a list of prompts, got {type(value).__name__}",
        )
    return [_prompt(prompt) for prompt in value]


def _prompt(value: Any) -> Text:
    """Return a prompt that is no dialogue. Raise InvalidRequest."""
    if isinstance(value, Mapping):
        ids = value.get("prompt_token_ids")
        value = value.get("prompt") if ids is None else ids
    return _text_or_ids(value, "prompts")


def _texts(value: Any, field: str, *, may_be_empty: bool = False) -> list[Text]:
    """Return a call's texts, of which there are one or several. Raise InvalidRequest."""
    if isinstance(value, str) or _is_ids(value):
        value = [value]
    if not isinstance(value, Sequence):
        raise _invalid(
            field, f"expected a text, token ids, or a list of them, got {type(value).__name__}"
        )
    return [_text_or_ids(text, field, may_be_empty=may_be_empty) for text in value]


def _text_or_ids(value: Any, field: str, *, may_be_empty: bool = False) -> Text:
    if isinstance(value, str):
        return _text(value, field, may_be_empty=may_be_empty)
    if isinstance(value, Sequence) and (_is_ids(value) or (may_be_empty and not value)):
        return _ids(value, field)
    raise _invalid(field, f"expected a text or token ids, got {type(value).__name__}")


def _text(value: str, field: str, *, may_be_empty: bool = False) -> str:
    if not value and not may_be_empty:
        raise _invalid(field, "expected a text that is not empty")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise _invalid(field, "expected Unicode text, got half a surrogate pair")
    return value


def _is_ids(value: Any) -> bool:
    """Return whether a value is a list of token ids that is not empty."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not value:
        return False
    for token in value:
        if not isinstance(token, int) or isinstance(token, bool):
            return False
    return True


def _ids(value: Sequence[int], field: str) -> tuple[int, ...]:
    if value and not _is_ids(value):
        raise _invalid(field, "expected whole numbers")
    return tuple(value)


def _is_valid(solution: Solution | None) -> bool:
    return solution is not None and solution.is_valid is True


def _puzzle(value: Any) -> str | Grid:
    if isinstance(value, str):
        return value
    if not isinstance(value, Sequence):
        raise _invalid("puzzles", f"expected a text or rows, got {type(value).__name__}")
    rows: list[str | tuple[int, ...]] = []
    for row in value:
        rows.append(row if isinstance(row, str) else _ids(row, "puzzles"))
    return tuple(rows)


def _invalid(field: str, problem: str) -> InvalidRequest:
    return InvalidRequest(f"{field}: {problem}.", field=field)
