"""The interface between the engine and a model.

A `Runner` is a loaded model. Its `RunnerSpec` holds its facts, and its `RunnerOptions` say how it
is loaded. Capabilities are data of the spec: no code depends on which model it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar, runtime_checkable

from shared.accelerators import ACCELERATORS
from shared.errors import FleetError
from shared.messages import Generate, Sampling, Task, TaskName
from shared.tasks.runner_options import Options, PagedOptions
from shared.tasks.runner_table import TEXT_TASKS
from worker.engine.sequence import Encoded, Slice, StepResult, TokenSequence
from worker.engine.task_runner import Files
from worker.engine.weights import UNKNOWN_SIZE, WeightSize

SomeOptions = TypeVar("SomeOptions", bound=Options)


@dataclass(frozen=True)
class RunnerOptions:
    """Options to load and run one model.

    Sizes are in tokens, `kv_bytes` in bytes. A `tokenizer_path` or `context_window` of None stands
    for the model's own. On a GPU `kv_fraction` takes precedence over `kv_bytes`: it is a share of
    the memory that the weights leave free. `max_device_bytes` is the most that this process may
    allocate there; None sets no limit. `quantize` is a row of `shared/accelerators.py`. `own` are
    the options that the runner declares (`shared/tasks/runner_options.py`); all others are for
    every runner.
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
        """Return the options that the runner declares, of type `kind`.

        Return their defaults if none are given.
        """
        if self.own is None:
            return kind()
        problem = f"{type(self.own).__name__} for a runner with {kind.__name__}"
        assert isinstance(self.own, kind), problem
        return self.own

    @property
    def rounds_kv(self) -> bool:
        """Return whether keys and values are stored in fewer bits than `dtype` has."""
        if not isinstance(self.own, PagedOptions):
            return False
        return self.own.kv_dtype not in ("auto", self.dtype)

    @property
    def is_lossy(self) -> bool:
        """Return whether activations, or keys and values, are rounded to fewer bits.

        There a difference in the last bit may change what is rounded, and grow until another token
        is chosen.
        """
        return ACCELERATORS[self.quantize].rounds_activations or self.rounds_kv

    @property
    def precision(self) -> str:
        """Return a description of the weights' and activations' precision, for people."""
        precision = ACCELERATORS[self.quantize].precision
        if not precision:
            return self.dtype
        return f"{self.dtype} with {precision}"


_ONE_TOKEN = Generate("1", Sampling(max_tokens=1, seed=0, temperature=0.0))


@dataclass(frozen=True)
class RunnerSpec:
    """Plain facts of a loaded model, and what its mechanism allows.

    `name` is the model's id, `found` a description for people. `step_tokens` is the most that one
    step should compute. A model with `num_pages` 0 keeps no keys and values. `reuse` says which
    part of a computed sequence may serve another one: any `prefix`, only a whole identical
    `prompt`, or `none`. A prompt may be computed in parts. With `num_layers`, the number of the
    model's layers at its own depth, all its tokens are computed together, and a part is some of the
    layers. `tasks` are the names of the tasks that the model serves, and `trial` is a cheap one
    that shows whether it works. Up to `max_drafts` tokens of a sequence may be drafted and verified
    in one step, each for the share `draft_cost` of a forward. `weights` is the size of the network.
    `puzzle` is the kind of puzzles that it solves, "" for none.
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
    num_layers: int = 0
    tasks: tuple[TaskName, ...] = TEXT_TASKS
    trial: Task = _ONE_TOKEN
    mechanism: Literal["sequence"] = "sequence"
    max_drafts: int = 0
    draft_cost: float = 1.0
    weights: WeightSize = UNKNOWN_SIZE
    puzzle: str = ""


class OutOfMemory(Exception):
    """Error of a step for which the device has no memory. A smaller step may fit."""


@runtime_checkable
class FileReader(Protocol):
    """A runner whose tasks may name files, such as pictures beside a text."""

    def encode_with_files(self, task: Task, files: Files) -> Encoded:
        """Return what `Runner.encode` does, for a task with or without files.

        Raise what that raises, and what `files` raises.
        """


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
        """Free the state that is kept for a sequence that has ended."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of response tokens, special tokens left out."""
