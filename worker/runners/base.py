"""What the engine asks of a model: three verbs and a spec. Capabilities are data; nobody asks which
model it is."""

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
    """How to load and run one model. Sizes in tokens, `kv_bytes` in bytes; None means the model's
    own.

    On a GPU `kv_fraction` outranks `kv_bytes`: a share of what the weights leave free.
    `max_device_bytes` is the most that this process may allocate there; None is all there is.
    `quantize` is a row of `shared/accelerators.py`. `own` are the options that the runner declares
    (`shared/runner_options.py`); the others are for all of them.
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
        """Return what the runner has declared for itself; the defaults of all if nothing is
        given."""
        if self.own is None:
            return kind()
        assert isinstance(self.own, kind), (
            f"{type(self.own).__name__} for a runner with {kind.__name__}"
        )
        return self.own

    @property
    def precision(self) -> str:
        """Of weights and activations, for people."""
        precision = ACCELERATORS[self.quantize].precision
        return f"{self.dtype} with {precision}" if precision else self.dtype


TextTask = Generate | Score | Read | Tokenize | Detokenize | Embed
"""What every language model does."""

_ONE_TOKEN = Generate("1", Sampling(max_tokens=1, seed=0, temperature=0.0))


@dataclass(frozen=True)
class RunnerSpec:
    """Plain facts of a loaded model and what its mechanism allows. `name` is the model's id,
    `found` is for people.

    `num_pages` 0: it keeps no keys and values. `step_tokens` is what one step should compute at
    most. `reuse`: any `prefix` of a computed sequence may serve another one, or a whole identical
    `prompt`, or nothing. `chunk_prefill`: a prompt may be computed in parts. `tasks` are the tags
    of the tasks it serves, `trial` is a cheap one that shows whether the model works.
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
    """The device has no memory for a step; a step with less in it may fit."""


class Runner(Protocol):
    """A model that is stepped over live sequences.

    `encode` may be called from another thread than `step` and `release`.
    """

    spec: RunnerSpec
    eos_ids: frozenset[int]

    def encode(self, task: Task) -> Encoded:
        """Token ids of a task, or its answer; raises InvalidRequest, for a task of another kind
        too."""

    def step(self, slices: Sequence[Slice]) -> list[StepResult | FleetError]:
        """Compute every slice; one result per slice, in order: a FleetError for one that fails
        alone.

        A step that raised may be repeated with fewer slices: it must not have moved what it would
        start from. Raises OutOfMemory where fewer or smaller slices could help.
        """

    def release(self, sequence: TokenSequence) -> None:
        """Forget what is kept for a sequence that has ended."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of response tokens, special tokens left out."""


SMALLEST_WINDOW = 16
"""Tokens of context below which no model is served: prompt marks, some text and an answer must
fit."""


def encode_generate(
    prompt_ids: Sequence[int], task: Generate, window: int, *, vocab_size: int, head: int = 0
) -> Encoded:
    """A prompt and `max_tokens` that fit into the context window together (X20), by the task's own
    rule.

    What a prompt loses, it loses at its beginning, behind the first `head` tokens (the family's own
    marks, less than half the smallest window). `truncate` cuts as many as leave room for
    `max_tokens`, but keeps no more than half the window free for the answer at the prompt's
    expense. Raises ContextExceeded, InvalidRequest.
    """
    if not prompt_ids:
        raise InvalidRequest(
            "The prompt is empty: at least one token is expected.", field=_field(task)
        )
    check_ids([token for token, _ in task.sampling.logit_bias], vocab_size, "logit_bias")
    check_ids(task.sampling.stop_ids, vocab_size, "stop_token_ids")
    most = task.max_prompt_tokens
    kept, num_dropped = _cut(
        prompt_ids, len(prompt_ids) if most is None else max(most, head + 1), head
    )
    max_tokens = _room_for_answer(len(kept), task, window)
    ids, num_cut = _cut(kept, window - max_tokens, head)
    return Encoded(ids, max_tokens, num_truncated=num_dropped + num_cut)


def _field(task: Generate) -> str:
    return "messages" if isinstance(task.prompt, Chat) else "prompt"


def _room_for_answer(num_prompt_tokens: int, task: Generate, window: int) -> int:
    asked, left = task.sampling.max_tokens, window - num_prompt_tokens
    if task.overflow == "truncate":
        return min(asked, max(left, window // 2))
    least = asked if task.overflow == "refuse" else 1
    if least > left:
        raise ContextExceeded(
            f"This model's maximum context length is {window} tokens; the request needs "
            f"{num_prompt_tokens + least} ({num_prompt_tokens} in the prompt, "
            f"{'' if least == asked else 'at least '}{least} for the completion).",
            field=_field(task) if left < 1 else "max_tokens",
        )
    return min(asked, left)


def encode_score(
    context: Sequence[int],
    continuations: Sequence[Sequence[int]],
    window: int,
    *,
    method: str = "strict",
    head: int = 0,
) -> Encoded:
    """A context cut at its beginning (behind `head`) so that the longest continuation fits behind
    it.

    Its last token needs no room: it is predicted and never read, except by `aios_compat`.
    """
    longest = max(len(item) for item in continuations)
    if not context:
        raise InvalidRequest(
            "The prompt has no tokens and the model has no start token.", field="prompts"
        )
    if min(len(item) for item in continuations) == 0:
        raise InvalidRequest("A continuation has no tokens.", field="continuations")
    room = window - longest + (method == "strict")
    if room <= head:
        problem = (
            f"A continuation has {longest} tokens; at most {longest + room - head - 1} fit the "
            "context window."
        )
        raise InvalidRequest(problem, field="continuations")
    ids, num_cut = _cut(context, room, head)
    return Encoded(
        ids, continuations=tuple(map(tuple, continuations)), method=method, num_truncated=num_cut
    )


def encode_read(prompt_ids: Sequence[int], num_seen: int, task: Read, window: int) -> Encoded:
    """A prompt whose first `num_seen` tokens are seen at once, and the rest of it predicted token
    by token."""
    if not prompt_ids:
        raise InvalidRequest("The prompt is empty: at least one token is expected.", field="prompt")
    if len(prompt_ids) > window:
        raise ContextExceeded(
            (
                f"This model's maximum context length is {window} tokens; the prompt has "
                f"{len(prompt_ids)}."
            ),
            field="prompt",
        )
    rest = tuple(prompt_ids[num_seen:])
    return Encoded(
        tuple(prompt_ids[:num_seen]), continuations=(rest,) if rest else (), num_top=task.num_top
    )


def encode_text(
    ids: Sequence[int], task: Embed | Classify, window: int, *, num_behind: int = 0
) -> Encoded:
    """A text that is read once. Too long, it loses its end, but for the last `num_behind` tokens,
    or is refused."""
    if not ids:
        raise InvalidRequest("The text has no tokens.", field="input")
    num_cut = max(0, len(ids) - window)
    if num_cut and task.overflow == "refuse":
        problem = (
            f"This model's maximum context length is {window} tokens; the text has {len(ids)}."
        )
        raise ContextExceeded(problem, field="input")
    behind = len(ids) - num_behind
    kept = (*ids[: behind - num_cut], *ids[behind:])
    if isinstance(task, Embed):
        return Encoded(kept, num_truncated=num_cut, is_pooled=True, is_normalized=task.normalize)
    if task.top_k is not None and task.top_k < 1:
        raise InvalidRequest(f"top_k: expected at least 1, got {task.top_k}.", field="top_k")
    return EncodedText(kept, num_truncated=num_cut, top_k=task.top_k)


def _cut(ids: Sequence[int], room: int, head: int) -> tuple[tuple[int, ...], int]:
    num_cut = max(0, len(ids) - room)
    return (*ids[:head], *ids[head + num_cut :]), num_cut


def text_task(task: Task) -> TextTask:
    """The task, which must be one for a language model. The front checks that too, but a model's
    kind may change under a name."""
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
    """The ids of a prompt given as ids, checked against the vocabulary; None for a prompt given as
    text."""
    if isinstance(text, str):
        return None
    check_ids(text, vocab_size, field)
    return text


def check_ids(
    ids: Sequence[int], vocab_size: int, field: str, texts: Callable[[int], str] | None = None
) -> None:
    """Raise InvalidRequest that names the first id of no token; of ids that come from a text its
    piece too."""
    for token in ids:
        if 0 <= token < vocab_size:
            continue
        named = str(token) if texts is None else f"{token} for {texts(token)!r}"
        raise InvalidRequest(
            f"{field}: token ids from 0 to {vocab_size - 1} are expected, got {named}.", field=field
        )


def known_ids(ids: Iterable[int], vocab_size: int) -> frozenset[int]:
    """Those of the ids that the network can say at all: a tokenizer may name others."""
    return frozenset(token for token in ids if 0 <= token < vocab_size)
