"""Messages between fronts and workers: jobs, the events of a job, and presence records.

They are frozen values, encoded as msgpack maps. Unknown fields are ignored and new ones have
defaults, so that fronts and workers of neighbouring versions understand each other.
`tests/shared/test_messages.py` pins the bytes.
"""

from functools import cache, reduce
from importlib import import_module
from operator import or_
from typing import Any, Generic, Literal

import msgspec
from typing_extensions import TypeVar

from shared.tasks import results, specs
from shared.tasks.results import ArtifactRef as ArtifactRef
from shared.tasks.results import ContinuationScore as ContinuationScore
from shared.tasks.results import Detokenized as Detokenized
from shared.tasks.results import Embedded as Embedded
from shared.tasks.results import Generated as Generated
from shared.tasks.results import Label as Label
from shared.tasks.results import Labelled as Labelled
from shared.tasks.results import OtherResult as OtherResult
from shared.tasks.results import Result as Result
from shared.tasks.results import Scored as Scored
from shared.tasks.results import Segment as Segment
from shared.tasks.results import Solution as Solution
from shared.tasks.results import Tokenized as Tokenized
from shared.tasks.specs import Augmentation as Augmentation
from shared.tasks.specs import Chat as Chat
from shared.tasks.specs import Classify as Classify
from shared.tasks.specs import Depth as Depth
from shared.tasks.specs import Detokenize as Detokenize
from shared.tasks.specs import Effort as Effort
from shared.tasks.specs import Embed as Embed
from shared.tasks.specs import Generate as Generate
from shared.tasks.specs import Grid as Grid
from shared.tasks.specs import Halt as Halt
from shared.tasks.specs import ImagePart as ImagePart
from shared.tasks.specs import NoisyLatents as NoisyLatents
from shared.tasks.specs import OtherTask as OtherTask
from shared.tasks.specs import Overflow as Overflow
from shared.tasks.specs import Prompt as Prompt
from shared.tasks.specs import Read as Read
from shared.tasks.specs import Sample as Sample
from shared.tasks.specs import Sampling as Sampling
from shared.tasks.specs import Score as Score
from shared.tasks.specs import Select as Select
from shared.tasks.specs import Solve as Solve
from shared.tasks.specs import SoundPart as SoundPart
from shared.tasks.specs import Task as Task
from shared.tasks.specs import TaskName as TaskName
from shared.tasks.specs import Text as Text
from shared.tasks.specs import TextPart as TextPart
from shared.tasks.specs import Tokenize as Tokenize
from shared.tasks.specs import TooLong as TooLong
from shared.tasks.specs import Turn as Turn
from shared.tasks.specs import name_of as name_of
from shared.telemetry.model_load import ModelLoad as ModelLoad
from shared.telemetry.tracing import NO_TRACE, Trace

Priority = Literal["interactive", "default", "bulk"]
"""A class of requests: better ones are served first."""

PRIORITIES: tuple[Priority, ...] = ("interactive", "default", "bulk")
"""All classes, best first."""


SomeTask = TypeVar("SomeTask", default=Task)
SomeResult = TypeVar("SomeResult", default=Result)


class Job(msgspec.Struct, Generic[SomeTask], frozen=True, omit_defaults=True):
    """The unit that is queued, leased and logged.

    It is a prompt, a scoring context with its continuations, a puzzle, or a text. One that
    `is_streamed` is followed token by token. `trace` is the trace of its request. If its key has a
    budget, tokens are reserved for a prompt of `most_prompt_tokens`, and a longer one is refused.
    """

    id: str
    model: str
    task: SomeTask
    tenant: str = "public"
    priority: Priority = "default"
    request_id: str = ""
    is_streamed: bool = False
    trace: Trace = NO_TRACE
    most_prompt_tokens: int | None = None


class Started(msgspec.Struct, frozen=True, omit_defaults=True, tag="started"):
    """A worker holds the job. There is one such event for each epoch.

    `num_truncated` prompt tokens were cut. `max_tokens` is set where the context window leaves room
    for fewer tokens of answer than the task allows. `trace` belongs to this take of the job.
    """

    epoch: int
    worker: str
    num_prompt_tokens: int
    num_truncated: int = 0
    max_tokens: int | None = None
    trace: Trace = NO_TRACE


UNKNOWN_ID = -1
"""The id of a token of which an engine elsewhere tells the text alone."""


class HaltState(msgspec.Struct, frozen=True, omit_defaults=True):
    """The state at which a network with a q head stopped, and gave a token.

    It had run `segments` ACT segments, 0 for a network without any.
    """

    q_halt: float
    q_continue: float
    segments: int = 0


class TokenLogprob(msgspec.Struct, frozen=True, omit_defaults=True):
    """The log-probability (nats) of a token under the model itself, and the likeliest tokens.

    `token` is the text that the token adds. `top` are (token, text, log-probability), likeliest
    first. `logprob` is None for a token of a prompt that nothing predicts: its first one, and all
    that a prefix-LM sees at once. `halt` is None for a network without a q head, and for tokens of
    a prompt.
    """

    logprob: float | None
    token: str = ""
    top: tuple[tuple[int, str, float], ...] = ()
    halt: HaltState | None = None


class Tokens(msgspec.Struct, frozen=True, omit_defaults=True, tag="tokens"):
    """Newly sampled ids of one choice, and the text that became certain with them.

    Either may be empty: an engine elsewhere may tell a text without its tokens. `logprobs` has one
    entry for each id, if the request asks for them. `finish_reason` is set in a choice's last
    event, which may have nothing else.
    """

    ids: tuple[int, ...]
    text: str = ""
    choice: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: str | None = None


class Progress(msgspec.Struct, frozen=True, omit_defaults=True, tag="progress"):
    """Progress of a task that yields nothing before its end: `done` of `total` steps.

    `total` is None where the number is not known, and `note` is for people. A log holds progress
    that grows (`reached`): a worker that takes a job over, and begins again, is silent until it has
    come further than the one before. `preview` is a small picture of what there is so far, a JPEG.
    `segment` is the state of a puzzle after `done` ACT segments.

    A note that is a text so far may be the end of it: then `num_left_out` characters stand before
    it. The first `num_settled` characters of the whole text are final.
    """

    done: int
    total: int | None = None
    note: str = ""
    preview: bytes = b""
    segment: Segment | None = None
    num_left_out: int = 0
    num_settled: int = 0

    @property
    def reached(self) -> tuple[int, int]:
        """The steps that are done, and the length of the text so far."""
        return self.done, self.num_left_out + len(self.note)


class Done(msgspec.Struct, Generic[SomeResult], frozen=True, omit_defaults=True, tag="done"):
    """The job succeeded.

    `finish_reason` is `stop`, `length`, `deadline` (with the tokens that were sampled by then), or
    the name of a task of another kind. The keys and values of `num_cached_tokens` prompt tokens
    were there already. `artifacts` are the bytes that a task made, in the task's own order. `depth`
    is the one at which the job was computed, if it asked for one; it is never an effort. A job that
    `settles` its question makes the jobs that stand behind it needless.
    """

    finish_reason: str
    num_prompt_tokens: int
    num_completion_tokens: int
    num_cached_tokens: int = 0
    result: SomeResult | None = None
    artifacts: tuple[ArtifactRef, ...] = ()
    depth: Depth | None = None
    settles: bool = False

    @property
    def generated(self) -> Generated:
        """The result of `Generate`; an empty one for other tasks."""
        if isinstance(self.result, Generated):
            return self.result
        return _NOT_GENERATED


_NOT_GENERATED = Generated()


class Failed(msgspec.Struct, frozen=True, omit_defaults=True, tag="failed"):
    """The job ended without a result.

    `code` names a class of `shared.errors`, and `field` the input at fault.
    """

    code: str
    message: str
    field: str | None = None


class Cancelled(msgspec.Struct, frozen=True, omit_defaults=True, tag="cancelled"):
    """Somebody called the job off."""

    reason: str = "client"


SKIPPED = Done("skipped", 0, 0)
"""The end of a job that is needless, as another one has settled its question. It has no result.

A job for an augmentation that its ARC task does not have ends in the same way.
"""

Event = Started | Tokens | Progress | Done | Failed | Cancelled
Terminal = Done | Failed | Cancelled

STATE_OF: dict[type[Done] | type[Failed] | type[Cancelled], str] = {
    Done: "done",
    Failed: "failed",
    Cancelled: "cancelled",
}
"""The job state that each terminal event leaves behind."""


ProblemKind = Literal["math", "coding"]
"""A kind of problems, for which a model may declare its text."""


class Prompting(msgspec.Struct, frozen=True, omit_defaults=True):
    """Defaults for asking a model: the texts around problems, and the sampling.

    The texts have {problem} in them. None is the endpoint's own default. A model that was trained
    to decline problems outside its domain does so by the text `refusal`. A problem is taken for one
    of its domain if the model's probability of that text is at most `most_refusal`.
    """

    math: str | None = None
    coding: str | None = None
    refusal: str | None = None
    most_refusal: float = 0.5
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    def is_for(self, kind: ProblemKind) -> bool:
        """Return whether a model takes problems of a kind: it declares its text, or no text at all."""
        declares_none = self.math is None and self.coding is None
        return self.template(kind) is not None or declares_none

    def template(self, kind: ProblemKind) -> str | None:
        return self.math if kind == "math" else self.coding


NO_PROMPTING = Prompting()


class ModelInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """The record of a model that a worker serves.

    `found` is one line for people that tells what was loaded. `fingerprint` stands for all that
    decides what the model answers; "" is not known. It computes on `device`, in `dtype`.
    `prompting` is declared by its entry or by its directory. `puzzle` is the kind of puzzles that
    it solves, "" for none, or for a model that is not loaded yet.
    """

    id: str
    runner: str
    found: str
    context_window: int
    max_new_tokens: int
    max_batch: int
    tasks: tuple[str, ...] = ("generate", "score", "read")
    is_default: bool = False
    fingerprint: str = ""
    device: str = ""
    dtype: str = ""
    prompting: Prompting = NO_PROMPTING
    puzzle: str = ""


WorkerState = Literal["loading", "ready", "draining"]
Residence = Literal["loaded", "unloading", "unloaded", "loading"]
"""The state of a served model in a worker's memory.

It is `unloading` while jobs in hand end, and `loading` for a job that waits.
"""


class LoadFailure(msgspec.Struct, frozen=True, omit_defaults=True):
    """The reason why a served model could not be loaded again.

    Its worker tries once more in `retry_in_s` seconds.
    """

    reason: str
    retry_in_s: int = 1


class WorkerInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """The presence record of one worker.

    Its process holds `memory_bytes` of the machine's memory (0: unknown), and has allocated
    `device_bytes` on its GPU. `pool` is the operator's name for workers of its kind. A worker that
    `is_full` takes nothing until its memory is below the limit again. `stale_appends` is the number
    of its appends that came too late: the job was another's by then, or had ended. `loads` are the
    numbers of its models.

    `residences` has the `models` that are not simply loaded, and `unloads` the last order to unload
    each model that the worker has obeyed. `obstacles` tells, by model, what to do where the worker
    should serve one and cannot, for lack of a device. `failures` has the `models` that it could not
    load again; their residence is `unloaded`.
    """

    id: str
    state: WorkerState
    models: tuple[ModelInfo, ...]
    in_flight: int = 0
    memory_bytes: int = 0
    pool: str = "default"
    is_full: bool = False
    uptime_s: float = 0.0
    device_bytes: int = 0
    stale_appends: int = 0
    loads: tuple[ModelLoad, ...] = ()
    residences: dict[str, Residence] = {}
    unloads: dict[str, int] = {}
    obstacles: dict[str, str] = {}
    failures: dict[str, LoadFailure] = {}


_encoder = msgspec.msgpack.Encoder()
_worker_decoder = msgspec.msgpack.Decoder(WorkerInfo)
_model_decoder = msgspec.msgpack.Decoder(ModelInfo)
_specs: list[type] = [*specs.BUILT_IN]
_results: list[type] = [*results.BUILT_IN]


def register_task(spec: type, result: type | None) -> None:
    """Let the decoders know a task of the table, and its result."""
    if spec not in _specs:
        _specs.append(spec)
    if result is not None and result not in _results:
        _results.append(result)
    _job_decoder.cache_clear()
    _event_decoder.cache_clear()


def _register_all() -> None:
    """Load the table of tasks, whose rows register themselves here."""
    # The table imports this module, so it is loaded only now, before the first decoder is made.
    import_module("shared.tasks.task_table")


@cache
def _job_decoder() -> msgspec.msgpack.Decoder[Job]:
    _register_all()
    known: Any = reduce(or_, _specs)
    return msgspec.msgpack.Decoder(Job[known])


@cache
def _event_decoder() -> msgspec.msgpack.Decoder[Event]:
    _register_all()
    known: Any = reduce(or_, _results)
    events: Any = Started | Tokens | Progress | Done[known] | Failed | Cancelled
    return msgspec.msgpack.Decoder(events)


def encode(message: Job | Event | WorkerInfo | ModelInfo) -> bytes:
    """Return the wire form of any message."""
    return _encoder.encode(message)


def decode_job(payload: bytes) -> Job:
    return _job_decoder().decode(payload)


def decode_event(payload: bytes) -> Event:
    return _event_decoder().decode(payload)


def decode_worker(payload: bytes) -> WorkerInfo:
    return _worker_decoder.decode(payload)


def decode_model(payload: bytes) -> ModelInfo:
    return _model_decoder.decode(payload)
