"""The engine: one model's sequences, stepped together. It knows no Redis, no HTTP and no tensor.

`step` is the main loop's body: admit, plan, run, commit, emit. It is called from one thread;
`submit` and `abort` may be called from any. The emissions of a step go to `emit` as one batch.
"""

import logging
import queue
import time
from collections.abc import Callable
from dataclasses import replace

from shared.errors import DeadlineExceeded, FleetError, InvalidRequest, NoMemory, WorkerFailed
from shared.messages import Generate
from shared.telemetry.logging_setup import fields
from worker.engine.depth import check_depth
from worker.engine.engine_stats import EngineStats, count_for
from worker.engine.request import Emission, Request, SequenceWork
from worker.engine.runner import FileReader, OutOfMemory, Runner
from worker.engine.scheduler import Load, Scheduler
from worker.engine.sequence import (
    Sampled,
    SingleResult,
    Slice,
    Status,
    StepResult,
    TokenSequence,
    Verified,
)
from worker.engine.take import Take
from worker.engine.task_runner import NO_FILES, Files

logger = logging.getLogger("aios.engine")

Emit = Callable[[list[Emission]], None]


class Engine:
    """The engine of one model whose sequences are stepped.

    `emit` is called from the engine's thread with the emissions of each step, and `wake` whenever
    there is new work. `now` is the clock of deadlines, in seconds. `files_of` returns the stored
    bytes of a tenant, for runners that read any.
    """

    def __init__(
        self,
        runner: Runner,
        emit: Emit,
        wake: Callable[[], None] = lambda: None,
        now: Callable[[], float] = time.monotonic,
        *,
        files_of: Callable[[str], Files] | None = None,
    ) -> None:
        self.runner = runner
        self._files_of = files_of or (lambda tenant: NO_FILES)
        self._emit = emit
        self._wake = wake
        self._now = now
        self.stats = EngineStats()
        self.scheduler = Scheduler(runner.spec)
        self._requests: dict[str, Request] = {}
        self._inbox: queue.SimpleQueue[SequenceWork | str] = queue.SimpleQueue()

    def prepare(self, take: Take) -> SequenceWork:
        """Turn a task that was taken into token ids.

        Raise a FleetError for one that the model cannot do.
        """
        if isinstance(self.runner, FileReader):
            encoded = self.runner.encode_with_files(take.task, self._files_of(take.tenant))
        else:
            encoded = self.runner.encode(take.task)
        check_depth(take.task, encoded)
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
        """Queue work that `prepare` has returned."""
        self._inbox.put(work)
        self._wake()

    def abort(self, key: str) -> None:
        """Drop the work of this key, whatever its phase.

        Nothing more is emitted for it after the current step.
        """
        self._inbox.put(key)
        self._wake()

    @property
    def accepts(self) -> bool:
        """Return True: sequences join between steps."""
        return True

    @property
    def has_work(self) -> bool:
        """Return whether any work waits or is being computed."""
        return self.scheduler.has_work or not self._inbox.empty()

    @property
    def due_in_s(self) -> float | None:
        """Return 0 for an engine with work, None for one without."""
        return 0.0 if self.has_work else None

    def close(self) -> None:
        """Do nothing: this engine holds nothing but memory."""

    @property
    def load(self) -> Load:
        """Return the present numbers. May be called from any thread."""
        return self.scheduler.load

    def step(self) -> None:
        """Admit new work, run one step of the sequences that the scheduler chooses, and emit."""
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
            # A key alone stands for work to be dropped.
            if isinstance(arrival, str):
                self._drop(arrival)
            else:
                emissions += self._join(arrival)
        return emissions

    def _expire(self) -> list[Emission]:
        """End the requests whose deadline has passed.

        An answer ends with the tokens that it has, any other request with DeadlineExceeded.
        """
        emissions: list[Emission] = []
        now = self._now()
        # A copy, because the loop drops requests.
        for key, request in list(self._requests.items()):
            if request.work.deadline_s > now:
                continue
            if request.has_output:
                emissions += self._stopped(request)
            else:
                error = DeadlineExceeded("The deadline passed before there was an answer.")
                emissions.append(Emission(key, ended=error.as_event()))
            self._drop(key)
        return emissions

    def _stopped(self, request: Request) -> list[Emission]:
        """Stop a request at its deadline. Return the ends of its choices."""
        try:
            return request.stop("deadline")
        except FleetError as error:
            return [Emission(request.work.key, ended=error.as_event())]

    def _join(self, work: SequenceWork) -> list[Emission]:
        """Add a job's sequences to the scheduler.

        Return the job's end if it is too large, or if replayed tokens had already ended it.
        """
        try:
            request = Request(work, self.runner)
            for sequence in request.sequences:
                if not self.scheduler.can_hold(sequence):
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
        """Run a step as `_run` does, count it, and let the scheduler learn from its time."""
        count_for(self.stats)
        begun_s = time.perf_counter()
        results = self._run(slices)
        seconds = time.perf_counter() - begun_s
        self.stats.note_step(len(slices), seconds)
        self.scheduler.note_step(slices, seconds)
        return results

    def _run(self, slices: list[Slice]) -> list[tuple[Slice, StepResult | FleetError]]:
        """Let the runner compute a step. Return each slice that was computed, and its result.

        If the step fails, it is tried again without drafts, and then each half of it. So only the
        slice at fault fails, and a step that lacks memory becomes smaller steps.
        """
        failure: FleetError
        try:
            return list(zip(slices, self.runner.step(slices), strict=True))
        except OutOfMemory as error:
            failure = self._on_out_of_memory(slices, error)
        except Exception as error:
            # A model is foreign code: any error that it raises becomes that job's failure.
            failure = self._on_error(slices, error)

        if any(part.max_drafts for part in slices):
            self.scheduler.pause_drafts()
            return self._run([replace(part, max_drafts=0) for part in slices])
        if len(slices) > 1:
            half = len(slices) // 2
            return self._run(slices[:half]) + self._run(slices[half:])
        if isinstance(failure, NoMemory):
            smaller = self.scheduler.halve(slices[0])
            if smaller is not None:
                return self._run([smaller])
        return [(slices[0], failure)]

    def _on_error(self, slices: list[Slice], error: Exception) -> FleetError:
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

    def _on_out_of_memory(self, slices: list[Slice], error: OutOfMemory) -> NoMemory:
        """Make the next steps smaller. Return the failure of a job that cannot be made smaller."""
        count = sum(self.scheduler.num_tokens(part) for part in slices)
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
        """Note the result of a slice. Return its emissions."""
        request = self._requests.get(part.sequence.key)
        if request is None:  # another choice of the same request failed in this step
            return []
        if isinstance(result, FleetError):
            return [self._failed(request, result)]

        if not part.sequence.output_ids and not part.has_more_layers:
            self.stats.num_prompt_tokens += self.scheduler.num_tokens(part)
        # Before the request notes the result: a new token, or a score, changes which tokens the
        # slice stands for.
        singles: tuple[SingleResult, ...]
        if isinstance(result, Verified):
            self.stats.num_drafted += result.num_drafts
            self.stats.num_accepted += result.num_accepted
            self.scheduler.commit(
                part, num_drafts=result.num_drafts, num_accepted=result.num_accepted
            )
            singles = result.tokens
        else:
            self.scheduler.commit(part)
            singles = (result,)

        emissions: list[Emission] = []
        for single in singles:
            if isinstance(single, Sampled):
                self.stats.num_tokens += 1
            try:
                emissions += request.on_result(part.sequence, single)
            except FleetError as error:  # its tokens cannot be decoded
                return [*emissions, self._failed(request, error)]
            # What was verified behind the end of a choice is dropped.
            if part.sequence not in request.open_sequences:
                break

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
        """Forget a request. Other sequences may use its pages afterwards only if `keep`."""
        request = self._requests.pop(key, None)
        if request is None:
            return
        for sequence in request.sequences:
            self._leave(sequence, keep=keep)

    def _leave(self, sequence: TokenSequence, *, keep: bool = True) -> None:
        """Take a sequence out of the scheduler and the runner, unless that was done before."""
        if sequence.status is not Status.FINISHED:
            self.scheduler.finish(sequence, keep=keep)
            self.runner.release(sequence)
