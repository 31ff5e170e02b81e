"""The interface of runners whose tasks are done whole: the second mechanism.

Tasks and results are plain data (`shared.messages`), so that a runner may run in another process.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from shared.errors import ArtifactNotFound, FleetError
from shared.messages import Result, Task, TaskName
from worker.engine.weights import UNKNOWN_SIZE, WeightSize


@dataclass(frozen=True)
class TaskRunnerSpec:
    """Plain facts of a loaded model whose tasks are done whole.

    `name` is the model's id, and `found` describes it for people. Up to `max_batch` tasks are done
    at once. `tasks` names the kinds of tasks that it serves, and `trial` is a cheap task that shows
    whether the model works. `trial_files` are the bytes of its inputs, by the ids of their
    artifacts. A model without a `context_window` reads no tokens. `weights` is the size of its
    networks. `puzzle` is the kind of puzzles that it solves, "" for none.
    """

    runner: str
    name: str
    found: str
    max_batch: int
    tasks: tuple[TaskName, ...]
    trial: Task
    trial_files: Mapping[str, bytes] = field(default_factory=dict)
    context_window: int = 0
    weights: WeightSize = UNKNOWN_SIZE
    puzzle: str = ""
    mechanism: Literal["task"] = "task"


@dataclass(frozen=True)
class NewFile:
    """A file that a task has produced. It becomes an artifact of the job's tenant."""

    data: bytes
    media_type: str
    name: str = ""


@dataclass(frozen=True)
class TaskOutput:
    """A result and its files, which the answer lists in this order."""

    result: Result
    files: tuple[NewFile, ...] = ()


class Files(Protocol):
    """The bytes that a task takes, which its caller has stored."""

    def read(self, artifact_id: str, *, max_bytes: int) -> bytes:
        """Return all bytes of an input.

        Raise ArtifactNotFound, PayloadTooLarge for more than `max_bytes`, and errors of the
        storage, which may pass.
        """


@dataclass(frozen=True)
class FilesAtHand:
    """Bytes by the id of their artifact, in memory."""

    data: Mapping[str, bytes]

    def read(self, artifact_id: str, *, max_bytes: int) -> bytes:
        if artifact_id not in self.data:
            raise ArtifactNotFound(f"There is no artifact {artifact_id!r} here.")
        return self.data[artifact_id]


NO_FILES = FilesAtHand({})


class BatchProgress(Protocol):
    """The calls of a runner that does a batch. An `index` is a task's position in the batch.

    A runner must make one of these calls every few seconds, well within a lease. Otherwise its jobs
    go to other workers.
    """

    def heartbeat(self) -> None:
        """Note that the runner has made progress."""

    def report(
        self,
        index: int,
        done: int,
        total: int | None = None,
        note: str = "",
        *,
        preview: bytes = b"",
        num_left_out: int = 0,
        num_settled: int = 0,
    ) -> None:
        """Report to the task's caller that `done` of `total` steps are done.

        `note` is for people, and so is `preview`, a JPEG of a few kilobytes. The last two numbers
        are those of `Progress`, for a note that is a text so far.
        """

    def is_wanted(self, index: int) -> bool:
        """Return False once the task's caller has left, or its deadline has passed.

        Then nobody gets its result.
        """


class Unwatched:
    """A batch that nobody watches."""

    def heartbeat(self) -> None:
        return

    def report(
        self,
        index: int,
        done: int,
        total: int | None = None,
        note: str = "",
        *,
        preview: bytes = b"",
        num_left_out: int = 0,
        num_settled: int = 0,
    ) -> None:
        return

    def is_wanted(self, index: int) -> bool:
        return True


class TaskRunner(Protocol):
    """A loaded model whose tasks are done whole.

    `read` and `group_key` may be called from another thread than `run`.
    """

    spec: TaskRunnerSpec

    def read(self, task: Task, files: Files) -> Any:
        """Return a task as `run` takes it, such as the numbers of a decoded picture.

        Raise InvalidRequest for a task that this model does not serve, or that is malformed, and
        what `files` raises.
        """

    def group_key(self, item: Any) -> Hashable:
        """Return a key that items must have in common to be done in one batch."""

    def run(self, items: Sequence[Any], progress: BatchProgress) -> list[TaskOutput | FleetError]:
        """Do the tasks of all items and return one output for each, in order.

        The output of a task that fails alone is a FleetError. Raise OutOfMemory where fewer tasks
        could help. After any error the engine does the batch again in two halves.
        """
