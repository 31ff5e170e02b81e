"""A model in a worker's memory, with its queue, its engine and its intake."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial

from shared.events.log import LogReader
from shared.fleet.popularity import Popularity
from shared.fleet.presence import Presence
from shared.queue.broker import Broker
from shared.queue.leases import Claim, QueuePolicy, WorkQueue
from shared.telemetry.tracing import Tracing
from worker.engine.engine_thread import EngineThread
from worker.engine.engines import AnyEngine, engine_for
from worker.engine.event_loop import call_in_loop
from worker.engine.task_runner import Files
from worker.hardware.device import give_back_memory
from worker.host.intake import Intake
from worker.host.ledger import Ledger
from worker.host.loading import LoadedModel
from worker.host.metrics_reporter import MetricsReporter
from worker.host.outbox import Outbox

logger = logging.getLogger("aios.host")

_CHECK_EVERY_S = 0.5
"""The longest wait for the end of a job before the ledger is read again."""


@dataclass(frozen=True)
class HostContext:
    """The parts of a worker that all its models share.

    `threads` are those that compute, by mechanism. A batch of tasks that are done whole waits
    `batch_wait_s` for more. `announce` writes the worker's present state into presence. `files_of`
    returns the stored inputs of a tenant.
    """

    broker: Broker
    policy: QueuePolicy
    worker_id: str
    presence: Presence
    popularity: Popularity
    reader: LogReader
    ledger: Ledger
    outbox: Outbox
    reporter: MetricsReporter
    tracing: Tracing
    threads: Mapping[str, EngineThread]
    batch_wait_s: float
    announce: Callable[[], Awaitable[None]]
    files_of: Callable[[str], Files]

    def queue_of(self, model_id: str, fingerprint: str) -> WorkQueue:
        """Return the queue of a model, for this worker."""
        return WorkQueue(
            self.broker, self.policy, model=model_id, worker=self.worker_id, fingerprint=fingerprint
        )


class ModelHost:
    """The host of one model, until the model is unloaded. `thread` steps the model's engine."""

    def __init__(self, model: LoadedModel, queue: WorkQueue, context: HostContext) -> None:
        spec = model.runner.spec
        self.id = model.info.id
        self.weights = spec.weights
        self.thread = context.threads[spec.mechanism]
        self.engine: AnyEngine = engine_for(
            model.runner,
            context.outbox.put,
            self.thread.wake,
            batch_wait_s=context.batch_wait_s,
            files_of=context.files_of,
        )
        self.intake = Intake(
            queue,
            context.reader,
            context.ledger,
            context.outbox,
            self.engine,
            max_batch=spec.max_batch,
            worker_id=context.worker_id,
            shards=context.broker.shards,
            tracing=context.tracing,
        )
        self._ledger = context.ledger
        self._reporter = context.reporter
        self._ended = asyncio.Event()
        # From now on tasks that are done whole must not delay the tokens of this model.
        if spec.mechanism == "sequence":
            context.threads["task"].give_way()
        context.reporter.add(model, self.engine, self.intake)
        self.thread.add(self.engine)

    def closed(self, claim: Claim, was_stale: bool) -> None:
        """Note that a job has ended, or, with `was_stale`, that it is no longer this worker's."""
        self._ended.set()
        if was_stale:
            self.engine.abort(claim.key)
        else:
            self._reporter.closed(claim)
        self.intake.closed(claim)

    async def end_jobs(self) -> None:
        """Take no more jobs, and return when none is in hand."""
        await self.intake.close()
        while self._ledger.claims_of(self.id):
            self._ended.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), _CHECK_EVERY_S)

    async def free(self) -> None:
        """Free the model's memory.

        No job may be in hand, and nothing outside this host may refer to its engine.
        """
        self._reporter.remove(self.id)
        loop = asyncio.get_running_loop()
        removed = asyncio.Event()
        self.thread.remove(self.engine, partial(call_in_loop, loop, removed.set))
        await removed.wait()
        self.engine.close()
        # These are the last references to the engine, and with it to the weights.
        del self.engine, self.intake
        await asyncio.to_thread(give_back_memory)


def rest_all(threads: Mapping[str, EngineThread], done: threading.Event) -> list[threading.Event]:
    """Pause all threads until `done`. Return an event for each, set when the thread has paused."""
    return [thread.rest_until(done) for thread in threads.values()]
