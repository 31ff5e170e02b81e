"""What fronts and workers say to each other: jobs, the events of a job, and presence records.

Frozen values, encoded as msgpack maps. Unknown fields are ignored and new ones have defaults, so that fronts and
workers of neighbouring versions understand each other; `tests/shared/test_messages.py` pins the bytes.
"""

from typing import Literal

import msgspec

Text = str | tuple[int, ...]
"""A prompt as text, or as token ids that are used as they are."""

Grid = tuple[str | tuple[int, ...], ...]
"""The rows of a puzzle, top to bottom: each a string with a character a cell, or a tuple with a number a cell."""

Halt = Literal["max", "q_halt"]
"""When a puzzle's row stops: after its last permitted ACT segment, or where its own q head says so."""


Priority = Literal["interactive", "default", "bulk"]
"""A class of requests: better ones are served first."""

PRIORITIES: tuple[Priority, ...] = ("interactive", "default", "bulk")
"""Best first."""

Overflow = Literal["truncate", "clamp", "refuse"]
"""What gives way when a prompt and `max_tokens` exceed the context window: the prompt's beginning, `max_tokens`, or the
whole request. A prompt that leaves no room for any answer is refused by `clamp` as well."""


class Sampling(msgspec.Struct, frozen=True, omit_defaults=True):
    """How to choose tokens. `temperature` 0 is greedy; `top_k` 0, `top_p` 1.0 and `min_p` 0 do not cut.

    `n` choices are drawn for the prompt. Before `min_tokens` nothing ends a response: no end token, no stop. `logprobs`
    counts the likeliest tokens to report beside each chosen one; None reports nothing.
    """

    max_tokens: int
    seed: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    n: int = 1
    min_p: float = 0.0
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_ids: tuple[int, ...] = ()
    logit_bias: tuple[tuple[int, float], ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logprobs: int | None = None


class Generate(msgspec.Struct, frozen=True, omit_defaults=True, tag="generate"):
    """Continue one prompt. `condition` None is the model's default.

    Of the prompt at most the last `max_prompt_tokens` are used; what is still too long is a matter of `overflow`.
    """

    prompt: Text
    sampling: Sampling
    condition: str | None = None
    overflow: Overflow = "truncate"
    max_prompt_tokens: int | None = None


class Score(msgspec.Struct, frozen=True, omit_defaults=True, tag="score"):
    """Log-likelihood of each continuation given one context. `method` None is the model's default.

    `rolling`: of a whole text of any length, the only continuation of an empty context.
    """

    context: Text
    continuations: tuple[Text, ...]
    condition: str | None = None
    method: Literal["strict", "aios_compat"] | None = None
    rolling: bool = False


class Solve(msgspec.Struct, frozen=True, omit_defaults=True, tag="solve"):
    """Solve one puzzle, given as a grid or as the cells of a Sudoku in one string.

    `identifier` names what the puzzle's family is to the network, by number or name; None is the blank one. `max_steps`
    is the most ACT segments; None is what the network was trained to, as None for `halt` is the model's default.
    """

    puzzle: str | Grid
    identifier: int | str | None = None
    halt: Halt | None = None
    max_steps: int | None = None


Task = Generate | Score | Solve


class Job(msgspec.Struct, frozen=True, omit_defaults=True):
    """The unit that is queued, leased and logged: a prompt, a scoring context with its continuations, or a puzzle.

    `is_streamed`: somebody follows it token by token.
    """

    id: str
    model: str
    task: Task
    tenant: str = "public"
    priority: Priority = "default"
    request_id: str = ""
    is_streamed: bool = False


class Started(msgspec.Struct, frozen=True, omit_defaults=True, tag="started"):
    """A worker holds the job; once per epoch. `num_truncated` prompt tokens were cut, and the context window leaves
    room for `max_tokens` of answer, where that is fewer than the task allows.
    """

    epoch: int
    worker: str
    num_prompt_tokens: int
    num_truncated: int = 0
    max_tokens: int | None = None


class TokenLogprob(msgspec.Struct, frozen=True, omit_defaults=True):
    """A chosen token's log-probability (nats) under the model itself, and the likeliest tokens with theirs.

    `token` is the text the token adds; `top` are (token, text, log-probability), likeliest first.
    """

    logprob: float
    token: str = ""
    top: tuple[tuple[int, str, float], ...] = ()


class Tokens(msgspec.Struct, frozen=True, omit_defaults=True, tag="tokens"):
    """Newly sampled ids of one choice and the text that became certain with them; either may be empty.

    `logprobs` are one for each id, if the request asks for them. `finish_reason` is set in a choice's last event, which
    may have nothing else.
    """

    ids: tuple[int, ...]
    text: str = ""
    choice: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: str | None = None


class ContinuationScore(msgspec.Struct, frozen=True):
    """Sum of the continuation's token log-probabilities (nats), its length, and whether greedy would have said it."""

    log_likelihood: float
    num_tokens: int
    is_greedy: bool


class Solution(msgspec.Struct, frozen=True):
    """A puzzle's answer after `steps` ACT segments, and what the q head makes of it.

    `confidence` is sigmoid(q_halt), the network's own probability that the grid is right; `is_halted` tells whether it
    wanted to stop there (q_halt > q_continue).
    """

    grid: Grid
    confidence: float
    steps: int
    is_halted: bool


class Done(msgspec.Struct, frozen=True, omit_defaults=True, tag="done"):
    """The job succeeded. `finish_reason` is `stop`, `length`, `deadline` (with what was said by then), `score` or
    `solve`; of several choices `finish_reasons` has each. The keys and values of `num_cached_tokens` prompt tokens were
    there already. `q_values` are (q_halt, q_continue) of the state that gave each choice its last token, of a model
    with a q head.
    """

    finish_reason: str
    num_prompt_tokens: int
    num_completion_tokens: int
    scores: tuple[ContinuationScore, ...] = ()
    finish_reasons: tuple[str, ...] = ()
    num_cached_tokens: int = 0
    q_values: tuple[tuple[float, float] | None, ...] = ()
    solution: Solution | None = None


class Failed(msgspec.Struct, frozen=True, omit_defaults=True, tag="failed"):
    """The job ended without a result. `code` names a class of `shared.errors`; `field` the input at fault."""

    code: str
    message: str
    field: str | None = None


class Cancelled(msgspec.Struct, frozen=True, omit_defaults=True, tag="cancelled"):
    """Somebody called the job off."""

    reason: str = "client"


Event = Started | Tokens | Done | Failed | Cancelled
Terminal = Done | Failed | Cancelled

STATE_OF: dict[type[Done] | type[Failed] | type[Cancelled], str] = {
    Done: "done",
    Failed: "failed",
    Cancelled: "cancelled",
}
"""The job state that each terminal event leaves behind."""


class ModelInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a worker says of a model it serves. `found` is one line for people: what was loaded. `fingerprint` stands
    for all that decides what it answers; "" is not known."""

    id: str
    runner: str
    found: str
    context_window: int
    max_new_tokens: int
    max_batch: int
    tasks: tuple[str, ...] = ("generate", "score")
    is_default: bool = False
    fingerprint: str = ""


class WorkerInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """One worker's presence record."""

    id: str
    state: Literal["loading", "ready", "draining"]
    models: tuple[ModelInfo, ...]
    in_flight: int = 0


_encoder = msgspec.msgpack.Encoder()
_job_decoder = msgspec.msgpack.Decoder(Job)
_event_decoder: msgspec.msgpack.Decoder[Event] = msgspec.msgpack.Decoder(Event)
_worker_decoder = msgspec.msgpack.Decoder(WorkerInfo)
_model_decoder = msgspec.msgpack.Decoder(ModelInfo)


def encode(message: Job | Event | WorkerInfo | ModelInfo) -> bytes:
    """The wire form of any message."""
    return _encoder.encode(message)


def decode_job(payload: bytes) -> Job:
    return _job_decoder.decode(payload)


def decode_event(payload: bytes) -> Event:
    return _event_decoder.decode(payload)


def decode_worker(payload: bytes) -> WorkerInfo:
    return _worker_decoder.decode(payload)


def decode_model(payload: bytes) -> ModelInfo:
    return _model_decoder.decode(payload)
