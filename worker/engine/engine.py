"""The engine: one model's sequences, stepped together. Knows neither Redis nor HTTP, and no tensor.

`step` is the whole story: admit, plan, run, commit, emit. It is called from one thread; `submit`
and `abort` may be called from any. The news of a step go to `emit` as one batch.
"""

import logging
import queue
import time
from collections.abc import Callable

from shared.errors import DeadlineExceeded, FleetError, InvalidRequest, NoMemory, WorkerFailed
from shared.messages import Generate
from shared.telemetry.logging_setup import fields
from worker.engine.engine_stats import EngineStats, count_for
from worker.engine.request import Emission, Request, SequenceWork
from worker.engine.runner import OutOfMemory, Runner
from worker.engine.scheduler import Load, Scheduler
from worker.engine.sequence import Sampled, Slice, Status, StepResult, TokenSequence
from worker.engine.take import Take

logger = logging.getLogger("aios.engine")

Emit = Callable[[list[Emission]], None]


class Engine:
    """The engine of one model whose sequences are stepped.

    `emit` is called from the engine's thread with the emissions of each step, and `wake` whenever
    there is new work. `now` is the clock of deadlines, in seconds.
    """

    def __init__(
        self,
        runner: Runner,
        emit: Emit,
        wake: Callable[[], None] = lambda: None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.runner = runner
        self._emit = emit
        self._wake = wake
        self._now = now
        self.stats = EngineStats()
        self.scheduler = Scheduler(runner.spec)
        self._requests: dict[str, Request] = {}
        self._inbox: queue.SimpleQueue[SequenceWork | str] = queue.SimpleQueue()

    def prepare(self, take: Take) -> SequenceWork:
        """Turn a task that was taken into token ids. Raise a FleetError for one that the model
        cannot do."""
        encoded = self.runner.encode(take.task)
        sampling = take.task.sampling if isinstance(take.task, Generate) else None
        return SequenceWork(
            take.key,
            encoded,
            sampling=sampling,
            replayed_ids=take.replayed_ids,
            tenant=take.tenant,
            deadline_s=take.deadline_s,
            priority=take.priority,
        )

    def submit(self, work: SequenceWork) -> None:
        self._inbox.put(work)
        self._wake()

    def abort(self, key: str) -> None:
        """Drop a work, whatever its phase; nothing more is emitted for it after the current
        step."""
        self._inbox.put(key)
        self._wake()

    @property
    def accepts(self) -> bool:
        """Return True: sequences join between steps."""
        return True

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or not self._inbox.empty()

    @property
    def due_in_s(self) -> float | None:
        return 0.0 if self.has_work else None

    @property
    def load(self) -> Load:
        """Return the numbers of now. Any thread may ask."""
        return self.scheduler.load

    def step(self) -> None:
        """Admit what has come, run one step for all sequences that the scheduler chooses, and emit
        the news of them."""
        emissions = self._admit() + self._expire()
        slices = self.scheduler.plan()
        if slices:
            for part, result in self._timed(slices):
                emissions += self._commit(part, result)
        if emissions:
            self._emit(emissions)

    def _admit(self) -> list[Emission]:
        emissions: list[Emission] = []
        while not self._inbox.empty():
            arrival = self._inbox.get()
            # A key alone is one to be dropped.
            if isinstance(arrival, str):
                self._drop(arrival)
            else:
                emissions += self._join(arrival)
        return emissions

    def _expire(self) -> list[Emission]:
        """End what has passed its deadline: an answer with the tokens it has, anything else without
        a result."""
        emissions: list[Emission] = []
        now = self._now()
        # A copy, because what has ended is dropped on the way.
        for key, request in list(self._requests.items()):
            if request.work.deadline_s > now:
                continue
            if request.has_spoken:
                emissions += self._stopped(request)
            else:
                error = DeadlineExceeded("The deadline passed before there was an answer.")
                emissions.append(Emission(key, ended=error.as_event()))
            self._drop(key)
        return emissions

    def _stopped(self, request: Request) -> list[Emission]:
        try:
            return request.stop("deadline")
        except FleetError as error:
            return [Emission(request.work.key, ended=error.as_event())]

    def _join(self, work: SequenceWork) -> list[Emission]:
        """Take a job in. Return its end where it is too large, or where replayed tokens had already
        ended it."""
        try:
            request = Request(work, self.runner)
            if not all(map(self.scheduler.can_hold, request.sequences)):
                raise InvalidRequest("The request is too large for the model.")
            emissions = request.catch_up()
        except FleetError as error:
            return [Emission(work.key, ended=error.as_event())]

        for sequence in request.sequences:
            if sequence in request.open_sequences:
                self.scheduler.add(sequence)
            else:
                self._leave(sequence)
        if request.open_sequences:
            self._requests[work.key] = request
        return emissions

    def _timed(self, slices: list[Slice]) -> list[tuple[Slice, StepResult | FleetError]]:
        count_for(self.stats)
        begun_s = time.perf_counter()
        results = self._run(slices)
        self.stats.note_step(len(slices), time.perf_counter() - begun_s)
        return results

    def _run(self, slices: list[Slice]) -> list[tuple[Slice, StepResult | FleetError]]:
        """Let the runner do a step. Return what was computed, and what came of it.

        If the step fails, each half is tried again: only the culprit fails, and a step with too
        little memory becomes smaller ones.
        """
        failure: FleetError
        try:
            return list(zip(slices, self.runner.step(slices), strict=True))
        except OutOfMemory as error:
            failure = self._lack(slices, error)
        except Exception as error:
            # The seam to foreign code: whatever a model raises becomes that job's failure.
            failure = self._failure(slices, error)

        if len(slices) > 1:
            half = len(slices) // 2
            return self._run(slices[:half]) + self._run(slices[half:])
        if isinstance(failure, NoMemory):
            smaller = self.scheduler.halve(slices[0])
            if smaller is not None:
                return self._run([smaller])
        return [(slices[0], failure)]

    def _failure(self, slices: list[Slice], error: Exception) -> FleetError:
        """Log an error that a step has raised. Return it as the failure of a job."""
        # A key is a job's id, a colon and the epoch of the take.
        job_ids = sorted({part.sequence.key.partition(":")[0] for part in slices})
        logger.exception(
            "step failed",
            extra=fields(model=self.runner.spec.name, batch=len(slices), job_ids=job_ids),
        )
        if isinstance(error, FleetError):
            return error
        return WorkerFailed(f"The model failed: {error}")

    def _lack(self, slices: list[Slice], error: OutOfMemory) -> NoMemory:
        """Let the next steps be smaller. Return the failure of a job that cannot be."""
        count = sum(map(self.scheduler.cost, slices))
        spec = self.runner.spec
        logger.warning(
            "no memory for step", extra=fields(model=spec.name, num_tokens=count, error=str(error))
        )
        self.scheduler.shrink(count)
        problem = (
            f"{spec.name!r} has no memory for the {count} tokens that this request needs at once"
        )
        return NoMemory(
            f"{problem}: fewer tokens may fit, or smaller weights (bfloat16 on a GPU, int8 "
            "on a CPU)."
        )

    def _commit(self, part: Slice, result: StepResult | FleetError) -> list[Emission]:
        """Note what came of a slice. Return the news of it."""
        request = self._requests.get(part.sequence.key)
        if request is None:  # another choice of the same request failed in this step
            return []
        if isinstance(result, FleetError):
            return [self._failed(request, result)]

        if not part.sequence.output_ids:
            self.stats.num_prompt_tokens += self.scheduler.cost(part)
        # Before the result is noted: a new token, or a score, changes what the slice stands for.
        self.scheduler.commit(part)
        if isinstance(result, Sampled):
            self.stats.num_tokens += 1
        try:
            emissions = request.on_result(part.sequence, result)
        except FleetError as error:  # its tokens cannot be decoded
            return [self._failed(request, error)]

        if part.sequence not in request.open_sequences:
            self._leave(part.sequence)
        if not request.open_sequences:
            del self._requests[request.work.key]
        return emissions

    def _failed(self, request: Request, error: FleetError) -> Emission:
        self.stats.num_failures += 1
        self._drop(request.work.key, keep=False)
        return Emission(request.work.key, ended=error.as_event())

    def _drop(self, key: str, *, keep: bool = True) -> None:
        """Forget a request. What it computed stays known to others only if `keep`."""
        request = self._requests.pop(key, None)
        if request is None:
            return
        for sequence in request.sequences:
            self._leave(sequence, keep=keep)

    def _leave(self, sequence: TokenSequence, *, keep: bool = True) -> None:
        if sequence.status is not Status.FINISHED:
            self.scheduler.finish(sequence, keep=keep)
            self.runner.release(sequence)
