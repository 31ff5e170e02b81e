"""The engine of tasks that are done whole. It gathers tasks into batches and does one in a step.

It knows no Redis, no HTTP and no tensor. `step` is called from one thread; `submit` and `abort` may
be called from any.
"""

import logging
import math
import queue
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from shared.errors import DeadlineExceeded, FleetError, NoMemory, WorkerFailed
from shared.messages import Done, Failed, Progress, encode, name_of
from shared.telemetry.logging_setup import fields
from worker.engine.engine_stats import EngineStats, count_for
from worker.engine.heartbeat import heartbeat
from worker.engine.request import Emission
from worker.engine.runner import OutOfMemory
from worker.engine.scheduler import Load
from worker.engine.take import Take
from worker.engine.task_runner import Files, FilesAtHand, NewFile, TaskOutput, TaskRunner

logger = logging.getLogger("aios.engine")

REPORT_EVERY_S = 0.05
"""The shortest time between two reports of progress to a caller. The last step's comes at once."""
CALM_BATCHES = 64
"""Batches without trouble after which a halved limit is doubled again."""


@dataclass(frozen=True)
class TaskWork:
    """A task for the engine, as its runner has read it.

    Those of the same `group` may share a batch.
    """

    take: Take
    item: Any = None
    group: Hashable = None
    num_prompt_tokens: int = 0
    num_truncated: int = 0
    max_tokens: int | None = None
    answer: Done | None = None

    @property
    def key(self) -> str:
        return self.take.key


@dataclass(eq=False)
class _TaskInHand:
    """A task in hand. It is open until its end has been emitted, or until it was dropped."""

    work: TaskWork
    arrived_s: float
    is_open: bool = True
    reported_s: float = -math.inf
    progress: Progress | None = None


class TaskEngine:
    """The engine of one model whose tasks are done whole.

    `emit` is called from the thread that steps, and `wake` whenever there is new work. A batch that
    is not full begins `batch_wait_s` after the arrival of its first task. `files_of` returns the
    stored bytes of a tenant; without it only those of the trial are at hand. `now` is the clock of
    deadlines and arrivals, in seconds.
    """

    def __init__(
        self,
        runner: TaskRunner,
        emit: Callable[[list[Emission]], None],
        wake: Callable[[], None] = lambda: None,
        now: Callable[[], float] = time.monotonic,
        *,
        batch_wait_s: float = 0.0,
        files_of: Callable[[str], Files] | None = None,
    ) -> None:
        self.runner = runner
        self._files_of = files_of or self._trial_files
        self._emit = emit
        self._wake = wake
        self._now = now
        self._batch_wait_s = batch_wait_s
        self.stats = EngineStats()
        self._inbox: queue.SimpleQueue[TaskWork | str] = queue.SimpleQueue()
        self._waiting: list[_TaskInHand] = []
        self._running: list[_TaskInHand] = []
        self._max_batch = runner.spec.max_batch
        self._calm_batches = 0

    def prepare(self, take: Take) -> TaskWork:
        """Read a task that was taken. Raise what `TaskRunner.read` raises."""
        item = self.runner.read(take.task, self._files_of(take.tenant))
        return TaskWork(take, item, self.runner.group_key(item))

    def submit(self, work: TaskWork) -> None:
        """Queue work that `prepare` has returned."""
        self._inbox.put(work)
        self._wake()

    def abort(self, key: str) -> None:
        """Drop the task of this key, whatever its phase.

        Nothing more is emitted for it once the engine has read this.
        """
        self._inbox.put(key)
        self._wake()

    def close(self) -> None:
        """Do nothing: this engine holds nothing but memory."""

    def _trial_files(self, tenant: str) -> Files:
        return FilesAtHand(self.runner.spec.trial_files)

    @property
    def load(self) -> Load:
        """Return the present numbers. May be called from any thread."""
        running = list(self._running)
        steps_done = 0
        steps_total = 0
        for task in running:
            # A task that does not know its total is left out of both sums.
            if task.progress is not None and task.progress.total is not None:
                steps_done += task.progress.done
                steps_total += task.progress.total
        return Load(
            running=len(running),
            waiting=len(self._waiting) + self._inbox.qsize(),
            num_preempted=0,
            steps_done=steps_done,
            steps_total=steps_total,
        )

    @property
    def accepts(self) -> bool:
        """Return False while a batch is computed: a new task would wait.

        Another worker may be free for it.
        """
        return not any(task.is_open for task in self._running)

    @property
    def has_work(self) -> bool:
        """Return whether any task waits."""
        return bool(self._waiting) or not self._inbox.empty()

    @property
    def due_in_s(self) -> float | None:
        """Return the seconds until the next step is due, None for an engine without work."""
        if not self._inbox.empty():
            return 0.0
        return self._next_batch_in_s()

    def _next_batch_in_s(self) -> float | None:
        """Return the seconds for which the admitted tasks wait for more.

        Return None if there are no such tasks.
        """
        if not self._waiting:
            return None
        now_s = self._now()
        first = self._first()
        if len(self._mates_of(first)) >= self._max_batch:
            return 0.0
        batch_begins_s = first.arrived_s + self._batch_wait_s
        # A task whose deadline comes earlier has to be ended in time, too.
        next_deadline_s = min(task.work.take.deadline_s for task in self._waiting)
        return max(0.0, min(batch_begins_s, next_deadline_s) - now_s)

    def step(self) -> None:
        """Admit new tasks, and do one batch if it is time for that."""
        self._admit()
        # Not `due_in_s`: a task that comes from here on is admitted in the next step, and must not
        # end the wait of the admitted ones.
        if self._next_batch_in_s() != 0:
            return
        batch = self._mates_of(self._first())[: self._max_batch]
        self._waiting = [task for task in self._waiting if task not in batch]
        self._running = batch
        try:
            self._run(batch)
        finally:
            self._running = []

    def _admit(self) -> None:
        """Admit new tasks, drop unwanted ones, and end late ones.

        This is called in the middle of a batch, too.
        """
        while not self._inbox.empty():
            arrival = self._inbox.get()
            if isinstance(arrival, TaskWork):
                self._waiting.append(_TaskInHand(arrival, self._now()))
                continue
            # A key alone stands for a task to be dropped.
            for task in (*self._waiting, *self._running):
                if task.work.key == arrival:
                    task.is_open = False

        late = DeadlineExceeded("The deadline passed before there was an answer.").as_event()
        now_s = self._now()
        for task in (*self._waiting, *self._running):
            if task.is_open and task.work.take.deadline_s <= now_s:
                self._end(task, late)
        self._waiting = [task for task in self._waiting if task.is_open]

    def _first(self) -> _TaskInHand:
        """Return the task whose turn it is: the first to arrive of the best class."""
        return min(self._waiting, key=_turn)

    def _mates_of(self, first: _TaskInHand) -> list[_TaskInHand]:
        """Return a task and those that may share its batch, in the order of their turns."""
        mates = [task for task in self._waiting if task.work.group == first.work.group]
        mates.sort(key=_turn)
        return mates

    def _run(self, batch: Sequence[_TaskInHand]) -> None:
        """Do a batch and emit its results.

        If it fails, each half is tried again. So only the task at fault fails, and a batch that
        lacks memory becomes smaller batches.
        """
        # Some tasks may have been dropped, or have ended, while the other half was computed.
        batch = [task for task in batch if task.is_open]
        if not batch:
            return
        failure: FleetError
        try:
            results = self._timed(batch)
        except OutOfMemory as error:
            failure = self._on_out_of_memory(batch, error)
        except Exception as error:
            # A model is foreign code: any error that it raises becomes that task's failure.
            failure = self._on_error(batch, error)
        else:
            self._grow()
            for task, result in zip(batch, results, strict=True):
                self._commit(task, result)
            return

        if len(batch) == 1:
            self._commit(batch[0], failure)
            return
        half = len(batch) // 2
        self._run(batch[:half])
        self._run(batch[half:])

    def _timed(self, batch: Sequence[_TaskInHand]) -> list[TaskOutput | FleetError]:
        """Let the runner do a batch, and count it."""
        count_for(self.stats)
        items = [task.work.item for task in batch]
        begun_s = time.perf_counter()
        try:
            return self.runner.run(items, _Progress(self, batch))
        finally:
            self.stats.note_step(len(batch), time.perf_counter() - begun_s)

    def _on_out_of_memory(self, batch: Sequence[_TaskInHand], error: OutOfMemory) -> NoMemory:
        """Make the next batches smaller. Return the failure of a task that fails alone."""
        name = self.runner.spec.name
        logger.warning(
            "no memory for batch", extra=fields(model=name, batch=len(batch), error=str(error))
        )
        self._max_batch = max(1, len(batch) // 2)
        self._calm_batches = 0
        return NoMemory(f"{name!r} has no memory for this task: a smaller input may fit.")

    def _grow(self) -> None:
        """Double a limit that `_on_out_of_memory` has lowered, after enough batches that worked."""
        self._calm_batches += 1
        if self._calm_batches >= CALM_BATCHES:
            self._calm_batches = 0
            self._max_batch = min(self.runner.spec.max_batch, 2 * self._max_batch)

    def _on_error(self, batch: Sequence[_TaskInHand], error: Exception) -> FleetError:
        """Log an error that a batch has raised. Return it as the failure of a task."""
        # A key is a job's id, a colon and the epoch of the take.
        job_ids = sorted(task.work.key.partition(":")[0] for task in batch)
        logger.exception(
            "step failed",
            extra=fields(model=self.runner.spec.name, batch=len(batch), job_ids=job_ids),
        )
        if isinstance(error, FleetError):
            return error
        return WorkerFailed(f"The model failed: {error}")

    def _commit(self, task: _TaskInHand, result: TaskOutput | FleetError) -> None:
        # First, because the task may have been dropped, or its deadline may have passed, meanwhile.
        self._admit()
        if not task.is_open:
            return
        if isinstance(result, FleetError):
            self.stats.num_failures += 1
            self._end(task, result.as_event())
            return
        work = task.work
        done: Done = Done(name_of(work.take.task), work.num_prompt_tokens, 0, result=result.result)
        try:
            encode(done)
        except Exception as error:
            # Foreign code may leave any object in a result. The outbox, which all jobs share, must
            # not meet it.
            logger.exception("result not sent", extra=fields(model=self.runner.spec.name))
            self.stats.num_failures += 1
            self._end(task, WorkerFailed(f"The result cannot be sent: {error}").as_event())
            return
        self._end(task, done, result.files)

    def _end(
        self, task: _TaskInHand, ended: Done | Failed, files: tuple[NewFile, ...] = ()
    ) -> None:
        task.is_open = False
        self._emit([Emission(task.work.key, ended=ended, files=files)])

    def report(self, task: _TaskInHand, progress: Progress) -> None:
        """Emit a task's progress, unless it has reported less than REPORT_EVERY_S ago.

        The last progress, and one with a preview, are emitted at once.
        """
        heartbeat()
        task.progress = progress
        now_s = time.monotonic()
        is_urgent = progress.done == progress.total or bool(progress.preview)
        if task.is_open and (is_urgent or now_s - task.reported_s >= REPORT_EVERY_S):
            task.reported_s = now_s
            self._emit([Emission(task.work.key, progress=progress)])

    def is_wanted(self, task: _TaskInHand) -> bool:
        """Return False once a task has been dropped, or its deadline has passed."""
        heartbeat()
        self._admit()
        return task.is_open


def _turn(task: _TaskInHand) -> tuple[int, float]:
    """Return the sort key of a task's turn: the better class first, then the earlier arrival."""
    return task.work.take.rank, task.arrived_s


class _Progress:
    """The `BatchProgress` of one batch."""

    def __init__(self, engine: TaskEngine, batch: Sequence[_TaskInHand]) -> None:
        self._engine = engine
        self._batch = batch

    def heartbeat(self) -> None:
        heartbeat()

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
        # Plain numbers: those of numpy, which a foreign runner may count in, cannot be sent.
        if total is not None:
            total = int(total)
        progress = Progress(
            int(done),
            total,
            note,
            preview,
            num_left_out=num_left_out,
            num_settled=num_settled,
        )
        self._engine.report(self._batch[index], progress)

    def is_wanted(self, index: int) -> bool:
        return self._engine.is_wanted(self._batch[index])
