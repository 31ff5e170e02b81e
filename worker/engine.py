"""The engine: one model's sequences, stepped together. Knows neither Redis nor HTTP, and no tensor.

`step` is the whole story: admit, plan, run, commit, emit. It is called from one thread; `submit` and `abort` may be
called from any. What a step says goes to `emit` as one batch.
"""

import logging
import queue
from collections.abc import Callable
from dataclasses import dataclass

from shared.errors import FleetError, InvalidRequest, WorkerFailed
from shared.messages import Done, Failed, Sampling
from worker.kv.pages import PageTable
from worker.runners.base import Runner
from worker.scheduler import Scheduler
from worker.sequence import Encoded, Scores, Sequence, Solved, Status, StepResult
from worker.text import TextStream

logger = logging.getLogger("aios.engine")


@dataclass(frozen=True)
class Work:
    """A job for the engine. `key` is the take it belongs to: two takes of one job are two works.

    `replayed_ids` are tokens that the log already holds: they are never sampled again.
    """

    key: str
    encoded: Encoded
    sampling: Sampling | None
    replayed_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Emission:
    """What one step says of one work: new ids, the text that became certain, and its end if it ended."""

    key: str
    ids: tuple[int, ...] = ()
    text: str = ""
    ended: Done | Failed | None = None


Emit = Callable[[list[Emission]], None]


@dataclass
class _Live:
    """A sequence with its text."""

    sequence: Sequence
    text: TextStream


class Engine:
    """`emit` is called from the engine's thread with the emissions of each step, `wake` whenever there is new work."""

    def __init__(self, runner: Runner, emit: Emit, wake: Callable[[], None] = lambda: None) -> None:
        spec = runner.spec
        pages = PageTable(spec.num_pages, spec.page_size) if spec.num_pages else None
        self._runner = runner
        self._emit = emit
        self._wake = wake
        self._scheduler = Scheduler(spec.max_batch, pages)
        self._live: dict[str, _Live] = {}
        self._inbox: queue.SimpleQueue[Work | str] = queue.SimpleQueue()

    def submit(self, work: Work) -> None:
        self._inbox.put(work)
        self._wake()

    def abort(self, key: str) -> None:
        """Drop a work, whatever its phase; nothing more is emitted for it after the current step."""
        self._inbox.put(key)
        self._wake()

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work or not self._inbox.empty()

    def step(self) -> None:
        """Admit what has come, run one step for everything that has a place, and say what came of it."""
        emissions = self._admit()
        batch = self._scheduler.plan()
        if batch:
            for sequence, result in zip(batch, self._run(batch), strict=True):
                emissions += self._commit(sequence, result)
        if emissions:
            self._emit(emissions)

    def _admit(self) -> list[Emission]:
        emissions: list[Emission] = []
        while not self._inbox.empty():
            item = self._inbox.get()
            if isinstance(item, str):
                self._drop(item)
            else:
                emissions += self._join(item)
        return emissions

    def _join(self, work: Work) -> list[Emission]:
        """Take a job in. Replayed tokens rebuild its text; if they had already ended it, only the end is missing."""
        sequence = Sequence(work.key, work.encoded, work.sampling, output_ids=list(work.replayed_ids))
        text = TextStream(self._runner.decode, work.sampling.stop if work.sampling else ())
        for token in work.replayed_ids:
            if token not in self._runner.eos_ids:
                text.push(token)
        reason = self._finish_reason(sequence, text) if work.replayed_ids else None
        if not self._scheduler.can_hold(sequence):
            return [Emission(work.key, ended=InvalidRequest("The request is too large for the model.").as_event())]
        self._live[work.key] = _Live(sequence, text)
        self._scheduler.add(sequence)
        return [self._end(sequence, (), text.flush(), reason)] if reason else []

    def _run(self, batch: list[Sequence]) -> list[StepResult | FleetError]:
        """One step of the runner. If it fails, every sequence is tried alone, so that only the culprit fails."""
        try:
            return list(self._runner.step(batch))
        except Exception as error:  # the seam to foreign code: whatever a model raises becomes that job's failure
            logger.exception("step failed", extra={"batch": len(batch)})
            if len(batch) == 1:
                return [error if isinstance(error, FleetError) else WorkerFailed(f"The model failed: {error}")]
        return [result for sequence in batch for result in self._run([sequence])]

    def _commit(self, sequence: Sequence, result: StepResult | FleetError) -> list[Emission]:
        if result is None:
            return []
        if isinstance(result, FleetError):
            self._drop(sequence.key)
            return [Emission(sequence.key, ended=result.as_event())]
        if isinstance(result, Scores | Solved):
            self._drop(sequence.key)
            return [Emission(sequence.key, ended=_done(sequence, result))]
        return [self._commit_token(sequence, result)]

    def _commit_token(self, sequence: Sequence, token: int) -> Emission:
        live = self._live[sequence.key]
        sequence.output_ids.append(token)
        text = "" if token in self._runner.eos_ids else live.text.push(token)
        reason = self._finish_reason(sequence, live.text)
        if reason is None:
            return Emission(sequence.key, (token,), text)
        return self._end(sequence, (token,), text + live.text.flush(), reason)

    def _finish_reason(self, sequence: Sequence, text: TextStream) -> str | None:
        if sequence.output_ids[-1] in self._runner.eos_ids or text.is_stopped:
            return "stop"
        return "length" if len(sequence.output_ids) >= sequence.encoded.max_tokens else None

    def _end(self, sequence: Sequence, ids: tuple[int, ...], text: str, reason: str) -> Emission:
        done = Done(reason, len(sequence.encoded.prompt_ids), len(sequence.output_ids))
        self._drop(sequence.key)
        return Emission(sequence.key, ids, text, done)

    def _drop(self, key: str) -> None:
        live = self._live.pop(key, None)
        if live is not None and live.sequence.status is not Status.FINISHED:
            self._scheduler.finish(live.sequence)
            self._runner.release(live.sequence)


def _done(sequence: Sequence, result: Scores | Solved) -> Done:
    """The end of a sequence that says everything at once."""
    num_prompt_tokens = len(sequence.encoded.prompt_ids)
    if isinstance(result, Scores):
        return Done("score", num_prompt_tokens, 0, result.scores)
    return Done("solve", num_prompt_tokens, 0, solution=result.solution)
