"""What the engine asks of a model: three verbs and a spec. Capabilities are data; nobody asks which model it is."""

from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Literal, Protocol

from shared.errors import FleetError, InvalidRequest
from shared.messages import Generate, Sampling, Score, Solve, Task, Text
from worker.sequence import Encoded, Sequence, Slice, StepResult


@dataclass(frozen=True)
class RunnerOptions:
    """How to load and run one model. Sizes in tokens, `kv_bytes` in bytes; None means the model's own."""

    path: str
    name: str = "model"
    tokenizer_path: str | None = None
    device: str = "cpu"
    dtype: str = "float32"
    max_batch: int = 16
    context_window: int | None = None
    kv_bytes: int = 512 * 2**20
    page_size: int = 16
    prefix_cache: bool = True
    step_tokens: int = 256
    condition: str = "direct"
    scoring: str = "strict"
    segments: str = "compat"
    attention: Literal["bidirectional", "causal"] | None = None
    use_ema: bool = True
    cuda_graphs: bool = True
    compile_layers: bool = True


_ONE_TOKEN = Generate("1", Sampling(max_tokens=1, seed=0, temperature=0.0))


@dataclass(frozen=True)
class RunnerSpec:
    """Plain facts of a loaded model and what its mechanism allows. `name` is the model's id, `found` is for people.

    `num_pages` 0: it keeps no keys and values. `step_tokens` is what one step should compute at most. `reuse`: any
    `prefix` of a computed sequence may serve another one, or a whole identical `prompt`, or nothing. `chunk_prefill`:
    a prompt may be computed in parts. `tasks` are the tags of the tasks it serves, `trial` is a cheap one that shows
    whether the model works.
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
    tasks: tuple[str, ...] = ("generate", "score")
    trial: Task = _ONE_TOKEN


class Runner(Protocol):
    """`encode` may be called from another thread than `step` and `release`."""

    spec: RunnerSpec
    eos_ids: frozenset[int]

    def encode(self, task: Task) -> Encoded:
        """Token ids of a task; raises InvalidRequest, for a task of another kind too."""

    def step(self, slices: Rows[Slice]) -> list[StepResult | FleetError]:
        """Compute every slice; one result per slice, in order: a FleetError for one that fails alone.

        A step that raised may be repeated with fewer slices: it must not have moved what it would start from.
        """

    def release(self, sequence: Sequence) -> None:
        """Forget what is kept for a sequence that has ended."""

    def decode(self, token_ids: Rows[int]) -> str:
        """Text of response tokens, special tokens left out."""


SMALLEST_WINDOW = 16
"""Tokens of context below which no model is served: prompt marks, some text and an answer must fit."""


def encode_generate(prompt_ids: Rows[int], sampling: Sampling, window: int, *, head: int = 0) -> Encoded:
    """A prompt and `max_tokens` that fit into the context window together (X20).

    A prompt that is too long loses tokens at its beginning, behind the first `head` (the family's own marks), as many
    as leave room for `max_tokens`; no more than half the window is kept free for the response at a prompt's expense.
    `head` must be less than half the smallest window.
    """
    if not prompt_ids:
        raise InvalidRequest("The prompt is empty: at least one token is expected.", field="prompt")
    max_tokens = min(sampling.max_tokens, max(window - len(prompt_ids), window // 2))
    ids, num_cut = _cut(prompt_ids, window - max_tokens, head)
    return Encoded(ids, max_tokens, num_truncated=num_cut)


def encode_score(
    context: Rows[int], continuations: Rows[Rows[int]], window: int, *, method: str = "strict", head: int = 0
) -> Encoded:
    """A context cut at its beginning (behind `head`) so that the longest continuation fits behind it."""
    longest = max(len(item) for item in continuations)
    if not context:
        raise InvalidRequest("The prompt has no tokens and the model has no start token.", field="prompts")
    if min(len(item) for item in continuations) == 0:
        raise InvalidRequest("A continuation has no tokens.", field="continuations")
    if longest + head + 1 >= window:
        problem = f"A continuation has {longest} tokens; the context window is {window}."
        raise InvalidRequest(problem, field="continuations")
    ids, num_cut = _cut(context, window - longest, head)
    return Encoded(ids, continuations=tuple(map(tuple, continuations)), method=method, num_truncated=num_cut)


def _cut(ids: Rows[int], room: int, head: int) -> tuple[tuple[int, ...], int]:
    num_cut = max(0, len(ids) - room)
    return (*ids[:head], *ids[head + num_cut :]), num_cut


def text_task(task: Task) -> Generate | Score:
    """The task, which must be one about text. The front checks that too, but a model's kind may change under a name."""
    if isinstance(task, Solve):
        raise InvalidRequest("This model solves no puzzles.", field="model")
    return task


def as_ids(text: Text, vocab_size: int, field: str) -> tuple[int, ...] | None:
    """The ids of a prompt given as ids, checked against the vocabulary; None for a prompt given as text."""
    if isinstance(text, str):
        return None
    if any(not 0 <= token < vocab_size for token in text):
        raise InvalidRequest(f"Token ids from 0 to {vocab_size - 1} are expected.", field=field)
    return text
