"""One model of a worker: takes jobs while it is loaded, gives its memory back when told to, loads again for new work.

Only the host moves its model between `loaded`, `unloading`, `unloaded` and `loading`. An unloaded model hears no bell,
which is for workers that have it: its host looks now and then whether jobs wait, and leaves them to workers that have
the model, or are about to, unless these let them wait for long.

A model that cannot be loaded again concerns nobody else: its host says why, ends the jobs that wait for it where no
other worker could answer them, and tries again later and later.
"""

import asyncio
import contextlib
import logging
import math
import re
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from shared.broker import Broker
from shared.errors import ModelFailed
from shared.log import LogReader
from shared.logs import fields
from shared.messages import LoadFailure, ModelInfo, Residence, WorkerInfo
from shared.presence import Presence
from shared.queue import Claim, Terms, WorkQueue
from shared.settings import SettingsError
from shared.tracing import Tracing
from worker.attempt import begin
from worker.device import give_back_memory
from worker.engine_thread import EngineThread
from worker.engines import AnyEngine, engine_for
from worker.intake import Intake
from worker.ledger import Ledger
from worker.loading import FailedModel, LoadedModel
from worker.meter import Meter
from worker.models.reading import reason_of
from worker.outbox import Outbox

logger = logging.getLogger("aios.host")

_LOOK_S = 0.5
"""Between two looks for work of a model that is not loaded, or for the end of the last job of one that is to go."""
_PATIENCE_S = 10.0
"""For so long others that have the model may let work wait before one more worker loads it."""
_RESTART_S = 30.0
"""How long a worker that has gone is waited for: a supervisor starts it again, and it loads its models."""
_FIRST_RETRY_S = 1.0
_LONGEST_RETRY_S = 60.0
"""A model that could not be loaded is tried again after 1, 2, 4 ... seconds."""
_REFUSED_AT_ONCE = 64
"""Places of jobs that are taken from a shard at once only to be ended."""

_ABSOLUTE_PATH = re.compile(r"(?<![\w.])/(?:[^\s/:,;'\"()]+/)+(?=[^\s/:,;'\"()])")
"""Directories before a name: callers are told of the file, not where it lies on the machine."""


@dataclass(frozen=True)
class HostContext:
    """What all hosts of a worker share. `threads` are those that compute, by mechanism.

    A batch of tasks that are done whole waits `batch_wait_s` for more. `tell` announces the worker as it is now.
    """

    broker: Broker
    terms: Terms
    worker_id: str
    presence: Presence
    reader: LogReader
    ledger: Ledger
    outbox: Outbox
    meter: Meter
    tracing: Tracing
    threads: Mapping[str, EngineThread]
    batch_wait_s: float
    tell: Callable[[], Awaitable[None]]


class ModelHost:
    """`obeyed` is the last order to unload that has been carried out, 0 before any. `thread` computes for the model."""

    def __init__(self, model: LoadedModel | FailedModel, context: HostContext) -> None:
        self._context = context
        self._again = model.again
        self._order = 0
        self.obeyed = 0
        self._ended = asyncio.Event()
        self._waiting_since_s: float | None = None
        self._num_failures = 0
        self._able_others: set[str] = set()
        self._able_at_s = 0.0
        self._reason = ""
        self._retry_at_s = 0.0
        self.thread = context.threads["sequence"]
        if isinstance(model, LoadedModel):
            self._place(model)
        else:
            self._leave_empty(model)

    @property
    def failure(self) -> LoadFailure | None:
        """Why the model could not be loaded, for callers; None while there is nothing wrong."""
        if not self._num_failures:
            return None
        left_s = math.ceil(self._retry_at_s - time.monotonic())
        reason = self._reason.removeprefix(f"model {self.info.id!r}: ")
        return LoadFailure(_ABSOLUTE_PATH.sub("", reason), max(1, left_s))

    @property
    def engine(self) -> AnyEngine:
        """Of a model that is loaded."""
        assert self._engine is not None
        return self._engine

    @property
    def intake(self) -> Intake:
        """Of a model that is loaded."""
        assert self._intake is not None
        return self._intake

    @property
    def claims(self) -> list[Claim]:
        """The model's jobs in hand."""
        return self._context.ledger.claims_of(self.info.id)

    def unload(self, order: int) -> None:
        """Take nothing more, end what is in hand, and free the model's memory; jobs that come later load it again."""
        self._order = order

    def closed(self, claim: Claim, was_stale: bool) -> None:
        """A job in hand has ended, or is another's."""
        self._ended.set()
        if self._intake is None:  # it was only taken to be refused
            return
        if was_stale:
            self.engine.abort(claim.key)
        else:
            self._context.meter.closed(claim)
        self._intake.closed(claim)

    async def turn(self) -> None:
        """Whatever is next: take, give back or load. Returns after a short while where there is nothing to do."""
        if self._order != self.obeyed:
            await self._obey()
        elif self._num_failures:
            await self._bear_failure()
        elif self._intake is None:
            await self._look()
        else:
            await self._intake.turn()

    async def close(self) -> None:
        """Pass the last bell on."""
        if self._intake is not None:
            await self._intake.close()

    def drop(self) -> None:
        """There is no time for that."""
        if self._intake is not None:
            self._intake.drop()

    def _place(self, model: LoadedModel) -> None:
        context = self._context
        self.info: ModelInfo = model.info
        self.queue = WorkQueue(
            context.broker, context.terms, model=model.info.id, worker=context.worker_id, fingerprint=model.fingerprint
        )
        spec = model.runner.spec
        self.thread = context.threads[spec.mechanism]
        self._engine: AnyEngine | None = engine_for(
            model.runner, context.outbox.put, self.thread.wake, batch_wait_s=context.batch_wait_s
        )
        self._intake: Intake | None = Intake(
            self.queue,
            context.reader,
            context.ledger,
            context.outbox,
            self._engine,
            max_batch=spec.max_batch,
            worker_id=context.worker_id,
            shards=context.broker.shards,
            tracing=context.tracing,
        )
        context.meter.add(model, self._engine, self._intake)
        self.thread.add(self._engine)
        self.residence: Residence = "loaded"

    def _leave_empty(self, model: FailedModel) -> None:
        context = self._context
        self.info = model.info
        self.queue = WorkQueue(
            context.broker,
            context.terms,
            model=model.info.id,
            worker=context.worker_id,
            fingerprint=model.info.fingerprint,
        )
        self._engine = None
        self._intake = None
        self.residence = "unloaded"
        self._note_failure(model.reason)

    async def _obey(self) -> None:
        """Once more until nothing is in hand; the order is the one that was given last.

        A model that could not be loaded is tried again for the next work, not before.
        """
        order = self._order
        if self._intake is not None:
            self.residence = "unloading"
            await self._intake.close()
        if await self._has_claims():
            return
        if self._intake is not None:
            await self._free()
        self._num_failures = 0
        self.obeyed = order
        await self._context.tell()

    async def _has_claims(self) -> bool:
        """Whether jobs are in hand still; if so, after waiting a short while for one to end."""
        self._ended.clear()
        if not self.claims:
            return False
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), _LOOK_S)
        return True

    async def _free(self) -> None:
        self._context.meter.remove(self.info.id)
        gone, loop = asyncio.Event(), asyncio.get_running_loop()
        self.thread.remove(self.engine, partial(loop.call_soon_threadsafe, gone.set))
        await gone.wait()
        self._engine = self._intake = None
        await asyncio.to_thread(give_back_memory)
        self.residence = "unloaded"
        logger.info("model unloaded", extra=fields(model=self.info.id))

    async def _look(self) -> None:
        if not await self.queue.has_work(self._context.broker.shards):
            self._waiting_since_s = None
        elif await self._is_ours():
            await self._load()
            return
        await asyncio.sleep(_LOOK_S)

    async def _is_ours(self) -> bool:
        """Whether to load for the work that waits: nobody else has the model, or those who have it are too slow."""
        now_s = time.monotonic()
        self._waiting_since_s = now_s if self._waiting_since_s is None else self._waiting_since_s
        if now_s - self._waiting_since_s >= _PATIENCE_S:
            return True
        residences = [other.residences.get(self.info.id) for other in await self._others()]
        return not any(residence in (None, "loading") for residence in residences)

    async def _others(self) -> list[WorkerInfo]:
        """The other workers that serve the model."""
        fleet = await self._context.presence.fleet()
        return [other for other in fleet.serving(self.info.id) if other.id != self._context.worker_id]

    async def _load(self) -> None:
        """Other models go on meanwhile, unless loading touches what they compute with: a GPU, or torch's default dtype.
        Where loading fails they go on, too."""
        self.residence, self._waiting_since_s = "loading", None
        await self._context.tell()
        begun_s, done = time.monotonic(), threading.Event()
        is_apart = self.info.device in ("", "cpu") and self.info.dtype in ("", "float32")
        stands = []
        if not is_apart:
            stands = [thread.rest_until(done) for thread in self._context.threads.values()]
        try:
            model = await asyncio.to_thread(_loaded, self._again, stands)
        except Exception as error:  # whatever is wrong with one model must not end the others
            self.residence = "unloaded"
            self._note_failure(_told(self.info.id, error))
            await asyncio.to_thread(give_back_memory)
            await self._context.tell()
            return
        finally:
            done.set()
        self._num_failures = 0
        self._place(model)
        took_s = round(time.monotonic() - begun_s, 1)
        logger.info("model loaded again", extra=fields(model=self.info.id, took_s=took_s))
        await self._context.tell()

    def _note_failure(self, reason: str) -> None:
        self._num_failures += 1
        self._reason = reason
        wait_s = min(_LONGEST_RETRY_S, _FIRST_RETRY_S * 2 ** min(self._num_failures - 1, 32))
        self._retry_at_s = time.monotonic() + wait_s
        said = fields(model=self.info.id, error=reason, retry_in_s=wait_s)
        logger.error("model not loaded", extra=said)

    async def _bear_failure(self) -> None:
        """Try again when it is time; until then nobody waits for this worker in vain."""
        if await self._has_claims():
            return
        if self._retry_at_s <= time.monotonic():
            await self._load()
            if self._num_failures == 0:
                return
        can_others = await self._can_others()
        if await self.queue.has_work(self._context.broker.shards) and not can_others:
            await self._refuse_waiting()
            return
        left_s = self._retry_at_s - time.monotonic()
        await asyncio.sleep(min(max(0.0, left_s), _LOOK_S))

    async def _can_others(self) -> bool:
        """Return whether another worker has the model, or has not failed to load it.

        One that could and has gone may have died: it is started again, and goes on with what it had.
        """
        others = await self._others()
        now_s = time.monotonic()
        able = {other.id for other in others if self.info.id not in other.failures}
        if able:
            self._able_others = able
            self._able_at_s = now_s
            return True
        has_gone = not self._able_others <= {other.id for other in others}
        return has_gone and now_s - self._able_at_s < _RESTART_S

    async def _refuse_waiting(self) -> None:
        """Take what waits and end it with the reason; nothing else is taken until that is logged."""
        failure = self.failure
        assert failure is not None
        error = ModelFailed(f"The model {self.info.id!r} cannot be loaded: {failure.reason}")
        context = self._context
        for shard in context.broker.shards:
            taken = await self.queue.take(shard, _REFUSED_AT_ONCE, is_empty=True)
            for claim in taken.claims:
                attempt = begin(context.tracing, claim.job, claim.epoch, claim.waited_s, context.worker_id)
                context.ledger.open(claim, attempt)
                context.outbox.add(claim, error.as_event())


def _told(model_id: str, error: Exception) -> str:
    """A sentence on why loading failed. What is no fault of the files is logged whole, for it may be ours."""
    if isinstance(error, SettingsError):
        return str(error)
    logger.error("model loader broke", exc_info=error, extra=fields(model=model_id))
    return f"model {model_id!r}: {reason_of(error)}"


def _loaded(again: Callable[[], LoadedModel], stands: Sequence[threading.Event]) -> LoadedModel:
    for event in stands:
        event.wait()
    model = again()
    give_back_memory()
    return model
