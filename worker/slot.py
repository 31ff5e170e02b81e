"""One model of a worker: takes jobs while it is loaded, gives its memory back when told to, loads again for new work.

Only the slot moves its model between `loaded`, `unloading`, `unloaded` and `loading`. An unloaded model hears no bell,
which is for workers that have it: its slot looks now and then whether jobs wait, and leaves them to workers that have
the model, or are about to, unless these let them wait for long.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from shared.broker import Broker
from shared.log import LogReader
from shared.logs import fields
from shared.messages import ModelInfo, Residence
from shared.presence import Presence
from shared.queue import Claim, Terms, WorkQueue
from shared.tracing import Tracing
from worker.device import give_back_memory
from worker.engine import Engine
from worker.engine_thread import EngineThread
from worker.intake import Intake
from worker.loading import LoadedModel
from worker.meter import Meter
from worker.outbox import Outbox

logger = logging.getLogger("aios.slot")

_LOOK_S = 0.5
"""Between two looks for work of a model that is not loaded, or for the end of the last job of one that is to go."""
_PATIENCE_S = 10.0
"""For so long others that have the model may let work wait before one more worker loads it."""


@dataclass(frozen=True)
class Bench:
    """What all slots of a worker share. `work` wakes `thread`; `tell` announces the worker as it is now."""

    broker: Broker
    terms: Terms
    worker_id: str
    presence: Presence
    reader: LogReader
    outbox: Outbox
    meter: Meter
    tracing: Tracing
    thread: EngineThread
    work: threading.Event
    tell: Callable[[], Awaitable[None]]


class Slot:
    """`obeyed` is the last order to unload that has been carried out, 0 before any."""

    def __init__(self, model: LoadedModel, bench: Bench) -> None:
        self._bench = bench
        self._again = model.again
        self._order = 0
        self.obeyed = 0
        self._ended = asyncio.Event()
        self._waiting_since_s: float | None = None
        self._place(model)

    @property
    def engine(self) -> Engine:
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
        return [claim for claim in self._bench.outbox.claims if claim.job.model == self.info.id]

    def unload(self, order: int) -> None:
        """Take nothing more, end what is in hand, and free the model's memory; jobs that come later load it again."""
        self._order = order

    def closed(self, claim: Claim, was_stale: bool) -> None:
        """A job in hand has ended, or is another's."""
        if was_stale:
            self.engine.abort(claim.key)
        else:
            self._bench.meter.closed(claim)
        self.intake.closed(claim)
        self._ended.set()

    async def turn(self) -> None:
        """Whatever is next: take, give back or load. Returns after a short while where there is nothing to do."""
        if self._order != self.obeyed:
            await self._obey()
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
        bench = self._bench
        self.info: ModelInfo = model.info
        self.queue = WorkQueue(
            bench.broker, bench.terms, model=model.info.id, worker=bench.worker_id, fingerprint=model.fingerprint
        )
        self._engine: Engine | None = Engine(model.runner, bench.outbox.put, bench.work.set)
        self._intake: Intake | None = Intake(
            self.queue,
            bench.reader,
            bench.outbox,
            self._engine,
            model.runner,
            worker_id=bench.worker_id,
            shards=bench.broker.shards,
            tracing=bench.tracing,
        )
        bench.meter.add(model, self._engine, self._intake)
        bench.thread.add(self._engine)
        self.residence: Residence = "loaded"

    async def _obey(self) -> None:
        """Once more until nothing is in hand; the order is the one that was given last."""
        order = self._order
        if self._intake is not None:
            self.residence = "unloading"
            await self._intake.close()
            self._ended.clear()
            if self.claims:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._ended.wait(), _LOOK_S)
                return
            await self._free()
        self.obeyed = order
        await self._bench.tell()

    async def _free(self) -> None:
        self._bench.meter.remove(self.info.id)
        gone, loop = asyncio.Event(), asyncio.get_running_loop()
        self._bench.thread.remove(self.engine, partial(loop.call_soon_threadsafe, gone.set))
        await gone.wait()
        self._engine = self._intake = None
        await asyncio.to_thread(give_back_memory)
        self.residence = "unloaded"
        logger.info("model unloaded", extra=fields(model=self.info.id))

    async def _look(self) -> None:
        if not await self.queue.has_work(self._bench.broker.shards):
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
        others = (await self._bench.presence.fleet()).serving(self.info.id)
        residences = [other.residences.get(self.info.id) for other in others if other.id != self._bench.worker_id]
        return not any(residence in (None, "loading") for residence in residences)

    async def _load(self) -> None:
        """Other models go on meanwhile, unless loading touches what they compute with: a GPU, or torch's default dtype.
        Raises what loading raises, which ends the worker as it does at its start."""
        self.residence, self._waiting_since_s = "loading", None
        await self._bench.tell()
        begun_s, done = time.monotonic(), threading.Event()
        is_apart = self.info.device in ("", "cpu") and self.info.dtype in ("", "float32")
        stands = None if is_apart else self._bench.thread.rest_until(done)
        try:
            self._place(await asyncio.to_thread(_loaded, self._again, stands))
        finally:
            done.set()
        took_s = round(time.monotonic() - begun_s, 1)
        logger.info("model loaded again", extra=fields(model=self.info.id, took_s=took_s))
        await self._bench.tell()


def _loaded(again: Callable[[], LoadedModel], stands: threading.Event | None) -> LoadedModel:
    if stands is not None:
        stands.wait()
    model = again()
    give_back_memory()
    return model
