"""The interface between the engine and a model: `Runner` and its `RunnerSpec`, and the rules by
which all text runners turn tasks into token ids.

Capabilities are data of the spec; nobody asks which model it is.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from shared.accelerators import ACCELERATORS
from shared.errors import ContextExceeded, FleetError, InvalidRequest
from shared.messages import (
    Chat,
    Classify,
    Detokenize,
    Embed,
    Generate,
    OtherTask,
    Read,
    Sampling,
    Score,
    Solve,
    Task,
    TaskName,
    Text,
    Tokenize,
    name_of,
)
from shared.runner_options import Options
from shared.runner_table import TEXT_TASKS as TEXT_TASKS
from worker.sequence import Encoded, EncodedText, Slice, StepResult, TokenSequence

SomeOptions = TypeVar("SomeOptions", bound=Options)


@dataclass(frozen=True)
class RunnerOptions:
    """Options to load and run one model.

    Sizes are in tokens, `kv_bytes` in bytes. A `tokenizer_path` or `context_window` of None is the
    model's own. On a GPU `kv_fraction`, a share of what the weights leave free, goes before
    `kv_bytes`. `max_device_bytes` is the most that this process may allocate there; None is all
    there is. `quantize` is a row of `shared/accelerators.py`. `own` are the options that the runner
    declares (`shared/runner_options.py`); all others are for every runner.
    """

    path: str
    name: str = "model"
    tokenizer_path: str | None = None
    device: str = "cpu"
    dtype: str = "float32"
    quantize: str = "none"
    max_batch: int = 16
    context_window: int | None = None
    kv_bytes: int = 512 * 2**20
    kv_fraction: float | None = None
    max_device_bytes: int | None = None
    page_size: int = 16
    prefix_cache: bool = True
    step_tokens: int = 256
    own: Options | None = None

    def declared(self, kind: type[SomeOptions]) -> SomeOptions:
        """Return the options that the runner has declared, of type `kind`; their defaults if none
        are given."""
        if self.own is None:
            return kind()
        problem = f"{type(self.own).__name__} for a runner with {kind.__name__}"
        assert isinstance(self.own, kind), problem
        return self.own

    @property
    def precision(self) -> str:
        """Description of the weights' and activations' precision, for people."""
        precision = ACCELERATORS[self.quantize].precision
        return f"{self.dtype} with {precision}" if precision else self.dtype


TextTask = Generate | Score | Read | Tokenize | Detokenize | Embed
"""Tasks of every language model."""

_ONE_TOKEN = Generate("1", Sampling(max_tokens=1, seed=0, temperature=0.0))


@dataclass(frozen=True)
class RunnerSpec:
    """Plain facts of a loaded model, and what its mechanism allows.

    `name` is the model's id, `found` a description for people. `step_tokens` is the most that one
    step should compute. A model with `num_pages` 0 keeps no keys and values. `reuse` says what of a
    computed sequence may serve another one: any `prefix`, only a whole identical `prompt`, or
    nothing. With `chunk_prefill` a prompt may be computed in parts. `tasks` are the names of the
    tasks it serves, and `trial` is a cheap one that shows whether the model works.
    """

    runner: str
    name: str
    found: str
    context_window: int
    max_batch: int
    step_tokens: int = 256
    num_pages: int = 0
    page_size: int = 1
    reuse: Literal["prefix", "prompt", "none"] = "none"
    chunk_prefill: bool = True
    tasks: tuple[TaskName, ...] = TEXT_TASKS
    trial: Task = _ONE_TOKEN
    mechanism: Literal["sequence"] = "sequence"


class OutOfMemory(Exception):
    """Error of a step for which the device has no memory; a step with less in it may fit."""


class Runner(Protocol):
    """A model that is stepped over live sequences.

    `encode` may be called from another thread than `step` and `release`.
    """

    spec: RunnerSpec
    eos_ids: frozenset[int]

    def encode(self, task: Task) -> Encoded:
        """Return a task's token ids, or its answer if it needs no step.

        Raise InvalidRequest, also for a task that the model does not serve.
        """

    def step(self, slices: Sequence[Slice]) -> list[StepResult | FleetError]:
        """Compute every slice; return one result per slice, in order.

        The result of a slice that fails alone is a FleetError. Raise OutOfMemory where fewer or
        smaller slices could help. A step that raised may be repeated with fewer slices, so it must
        leave the state that it started from as it was.
        """

    def release(self, sequence: TokenSequence) -> None:
        """Forget what is kept for a sequence that has ended."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of response tokens, special tokens left out."""


SMALLEST_WINDOW = 16
"""The smallest context window that is served, in tokens: the family's marks, some text and an
answer must fit."""


def encode_generate(
    prompt_ids: Sequence[int], task: Generate, window: int, *, vocab_size: int, head: int = 0
) -> Encoded:
    """Return a prompt and `max_tokens` that fit into the context window together.

    A prompt loses tokens at its beginning, behind the first `head` tokens (the family's own marks,
    less than half the smallest window). The task's `overflow` says what happens to a prompt that is
    too long: `truncate` cuts as many tokens as leave room for `max_tokens`, but to no less than
    half the window. Raise ContextExceeded, InvalidRequest.
    """
    if not prompt_ids:
        raise InvalidRequest(
            "The prompt is empty: at least one token is expected.", field=_field(task)
        )
    check_ids([token for token, _ in task.sampling.logit_bias], vocab_size, "logit_bias")
    check_ids(task.sampling.stop_ids, vocab_size, "stop_token_ids")

    # The request's own limit first; at least one token stays behind the marks.
    room = len(prompt_ids)
    if task.max_prompt_tokens is not None:
        room = max(task.max_prompt_tokens, head + 1)
    kept, num_dropped = _cut(prompt_ids, room, head)
    max_tokens = _room_for_answer(len(kept), task, window)
    ids, num_cut = _cut(kept, window - max_tokens, head)
    return Encoded(ids, max_tokens, num_truncated=num_dropped + num_cut)


def _field(task: Generate) -> str:
    if isinstance(task.prompt, Chat):
        return "messages"
    return "prompt"


def _room_for_answer(num_prompt_tokens: int, task: Generate, window: int) -> int:
    """Return how many tokens the answer may have; raise ContextExceeded for a prompt that leaves
    too little."""
    wanted = task.sampling.max_tokens
    left = window - num_prompt_tokens
    if task.overflow == "truncate":
        # The prompt makes room for the answer, but keeps half the window.
        return min(wanted, max(left, window // 2))

    least = wanted if task.overflow == "refuse" else 1
    if least > left:
        at_least = "" if least == wanted else "at least "
        raise ContextExceeded(
            f"This model's maximum context length is {window} tokens; the request needs "
            f"{num_prompt_tokens + least} ({num_prompt_tokens} in the prompt, "
            f"{at_least}{least} for the completion).",
            field=_field(task) if left < 1 else "max_tokens",
        )
    return min(wanted, left)


def encode_score(
    context: Sequence[int],
    continuations: Sequence[Sequence[int]],
    window: int,
    *,
    method: str = "strict",
    head: int = 0,
) -> Encoded:
    """Return a context and its continuations.

    The context is cut at its beginning (behind `head`) so that the longest continuation fits behind
    it. Raise InvalidRequest where there is nothing to score, or it does not fit.
    """
    lengths = [len(continuation) for continuation in continuations]
    if not context:
        raise InvalidRequest(
            "The prompt has no tokens and the model has no start token.", field="prompts"
        )
    if 0 in lengths:
        raise InvalidRequest("A continuation has no tokens.", field="continuations")

    longest = max(lengths)
    room = window - longest
    if method == "strict":
        # A continuation's last token is predicted and never read, so it needs no room.
        room += 1
    if room <= head:
        problem = (
            f"A continuation has {longest} tokens; at most {longest + room - head - 1} fit the "
            "context window."
        )
        raise InvalidRequest(problem, field="continuations")
    ids, num_cut = _cut(context, room, head)
    return Encoded(
        ids,
        continuations=tuple(tuple(continuation) for continuation in continuations),
        method=method,
        num_truncated=num_cut,
    )


def encode_read(prompt_ids: Sequence[int], num_seen: int, task: Read, window: int) -> Encoded:
    """Return a prompt whose first `num_seen` tokens are seen at once, and whose rest is predicted
    token by token."""
    if not prompt_ids:
        raise InvalidRequest("The prompt is empty: at least one token is expected.", field="prompt")
    if len(prompt_ids) > window:
        problem = (
            f"This model's maximum context length is {window} tokens; the prompt has "
            f"{len(prompt_ids)}."
        )
        raise ContextExceeded(problem, field="prompt")
    seen = tuple(prompt_ids[:num_seen])
    rest = tuple(prompt_ids[num_seen:])
    if not rest:
        return Encoded(seen, num_top=task.num_top)
    return Encoded(seen, continuations=(rest,), num_top=task.num_top)


def encode_text(
    ids: Sequence[int], task: Embed | Classify, window: int, *, num_behind: int = 0
) -> Encoded:
    """Return a text that is read in one pass.

    One that is too long is refused, or loses tokens before its last `num_behind`, as the task's
    `overflow` says.
    """
    if not ids:
        raise InvalidRequest("The text has no tokens.", field="input")
    num_cut = max(0, len(ids) - window)
    if num_cut and task.overflow == "refuse":
        problem = (
            f"This model's maximum context length is {window} tokens; the text has {len(ids)}."
        )
        raise ContextExceeded(problem, field="input")
    end = len(ids) - num_behind
    kept = (*ids[: end - num_cut], *ids[end:])
    if isinstance(task, Embed):
        return Encoded(kept, num_truncated=num_cut, is_pooled=True, is_normalized=task.normalize)
    if task.top_k is not None and task.top_k < 1:
        raise InvalidRequest(f"top_k: expected at least 1, got {task.top_k}.", field="top_k")
    return EncodedText(kept, num_truncated=num_cut, top_k=task.top_k)


def _cut(ids: Sequence[int], room: int, head: int) -> tuple[tuple[int, ...], int]:
    """Cut `ids` behind the first `head` to at most `room`; return them and how many were cut."""
    num_cut = max(0, len(ids) - room)
    return (*ids[:head], *ids[head + num_cut :]), num_cut


def text_task(task: Task) -> TextTask:
    """Return the task if it is one for a language model; raise InvalidRequest for any other."""
    # The front checks that too, but a model's kind may change under its name.
    if isinstance(task, Solve):
        raise InvalidRequest("This model solves no puzzles.", field="model")
    if isinstance(task, Classify):
        raise InvalidRequest("This model knows no labels.", field="model")
    if isinstance(task, OtherTask):
        raise InvalidRequest(
            f"This model does not serve the task {name_of(task)!r}.", field="model"
        )
    return task


def as_ids(text: Text, vocab_size: int, field: str) -> tuple[int, ...] | None:
    """Return the ids of a prompt given as ids, checked against the vocabulary; None for a prompt
    given as text."""
    if isinstance(text, str):
        return None
    check_ids(text, vocab_size, field)
    return text


def check_ids(
    ids: Sequence[int], vocab_size: int, field: str, texts: Callable[[int], str] | None = None
) -> None:
    """Raise InvalidRequest naming the first id that no token has.

    `texts` maps ids to the pieces of the text that they come from, which are then named too.
    """
    for token in ids:
        if 0 <= token < vocab_size:
            continue
        named = str(token) if texts is None else f"{token} for {texts(token)!r}"
        raise InvalidRequest(
            f"{field}: token ids from 0 to {vocab_size - 1} are expected, got {named}.", field=field
        )


def known_ids(ids: Iterable[int], vocab_size: int) -> frozenset[int]:
    """Return those of the ids that the network can predict; a tokenizer may name others."""
    return frozenset(token for token in ids if 0 <= token < vocab_size)
