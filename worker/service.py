"""A worker's life: load, announce, take, decode, append, and leave without dropping anything.

Composes queue, intake, engine and outbox; holds no logic of theirs. On SIGTERM everything in hand goes back to the
queue at the next step boundary: what was said is logged, and other workers go on with it.
"""

import asyncio
import logging
import os
import secrets
import socket
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Literal

from redis.exceptions import RedisError

from shared import keys
from shared.broker import Broker
from shared.log import LogReader, LogWriter
from shared.logs import fields
from shared.messages import ModelInfo, WorkerInfo
from shared.presence import Presence
from shared.queue import Claim, Terms, WorkQueue
from shared.subscriptions import Subscriptions
from shared.tracing import NO_TRACING, Tracing
from worker.engine import Engine
from worker.engine_thread import EngineThread
from worker.intake import Intake
from worker.loading import LoadedModel
from worker.machine import resident_bytes
from worker.outbox import Outbox
from worker.progress import Pulse

logger = logging.getLogger("aios.worker")

_ANNOUNCE_EVERY_S = 1.0
_RETRY_AFTER_S = 0.5
_RENEWALS_A_LEASE, _MOST_SILENT_LEASES = 3, 10
_PARTING_S = 0.6
"""For a take under way to end, and for what is told to Redis then, if it listens."""

State = Literal["loading", "ready", "draining"]


class WorkerService:
    """`drain_timeout_s` is the longest wait for the engine's current step at the end."""

    def __init__(self, broker: Broker, terms: Terms, *, drain_timeout_s: float, tracing: Tracing = NO_TRACING) -> None:
        self.worker_id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._broker = broker
        self._terms = terms
        self._tracing = tracing
        self._presence = Presence(broker.client(keys.PRESENCE))
        self._subscriptions = Subscriptions(broker.client(keys.PRESENCE))
        self._reader = LogReader(broker)
        self._outbox = Outbox(LogWriter(broker, result_ttl_s=terms.result_ttl_s), self._closed)
        self._drain_timeout_s = drain_timeout_s
        self._state: State = "loading"
        self._models: tuple[ModelInfo, ...] = ()
        self._queues: dict[str, WorkQueue] = {}
        self._intakes: dict[str, Intake] = {}
        self._engines: dict[str, Engine] = {}
        self._work, self._pulse = threading.Event(), Pulse()
        self._num_silent = 0
        self._leave_by: float | None = None
        self._is_broken = asyncio.Event()

    async def run(self, load: Callable[[], list[LoadedModel]], stop: asyncio.Event) -> bool:
        """Serve until `stop`; False when a part of it broke or hangs. `load` runs in a thread.

        A load or a step that takes long may still be running in its thread afterwards; nothing of it is used.
        """
        logger.info("worker starting", extra=fields(worker=self.worker_id))
        announcing = self._start(self._forever(self._announce, _ANNOUNCE_EVERY_S))
        try:
            loading = asyncio.create_task(asyncio.to_thread(load))
            await _first_of(loading, stop.wait())
            if loading.done():
                await self._serve(await loading, stop)
        finally:
            announcing.cancel()
            await asyncio.gather(announcing, return_exceptions=True)
            await self._part(self._presence.leave(self.worker_id))
            await self._subscriptions.close()
        logger.info("worker stopped", extra=fields(worker=self.worker_id, is_broken=self._is_broken.is_set()))
        return not self._is_broken.is_set()

    async def _serve(self, loaded: Sequence[LoadedModel], stop: asyncio.Event) -> None:
        for model in loaded:
            self._add(model)
        loop = asyncio.get_running_loop()
        broken = self._is_broken
        died = partial(loop.call_soon_threadsafe, broken.set)
        thread = EngineThread(list(self._engines.values()), self._work, self._pulse, on_death=died)
        thread.start()
        upkeep = [
            self._start(self._outbox.run()),
            self._start(self._forever(self._renew, self._terms.lease_s / _RENEWALS_A_LEASE)),
        ]
        upkeep += [self._start(self._hear(shard)) for shard in self._broker.shards]
        self._state, self._models = "ready", tuple(model.info for model in loaded)
        await self._once(self._announce)
        logger.info("worker ready", extra=fields(worker=self.worker_id, models=list(self._intakes)))
        taking = [self._start(self._take(intake, stop)) for intake in self._intakes.values()]
        await _first_of(stop.wait(), broken.wait())
        await self._drain(taking, thread)
        for task in upkeep:
            task.cancel()
        await self._part(asyncio.gather(*upkeep, return_exceptions=True))

    def _start(self, part: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A part that runs as long as the worker; if it raises, the worker hands its jobs over and ends."""

        def check(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                logger.error("worker part broke", exc_info=error)
                self._is_broken.set()

        task = asyncio.create_task(part)
        task.add_done_callback(check)
        return task

    def _add(self, model: LoadedModel) -> None:
        engine = Engine(model.runner, self._outbox.put, self._work.set)
        self._engines[model.info.id] = engine
        queue = WorkQueue(
            self._broker, self._terms, model=model.info.id, worker=self.worker_id, fingerprint=model.fingerprint
        )
        self._queues[model.info.id] = queue
        self._intakes[model.info.id] = Intake(
            queue,
            self._reader,
            self._outbox,
            engine,
            model.runner,
            worker_id=self.worker_id,
            shards=self._broker.shards,
            tracing=self._tracing,
        )

    async def _take(self, intake: Intake, stop: asyncio.Event) -> None:
        """Nothing is taken while the engine's thread seems to hang: it would only be held up, and blamed for it."""
        try:
            while not stop.is_set() and not self._is_broken.is_set():
                if self._pulse.silence_s() > self._terms.lease_s / 2:
                    await asyncio.sleep(self._terms.lease_s / 10)
                else:
                    await self._once(intake.turn)
            await intake.close()
        finally:
            intake.drop()

    async def _hear(self, shard: str) -> None:
        """What others have ended is dropped at once, before its next append is refused."""
        async with self._subscriptions.listen(keys.control(shard, self.worker_id)) as inbox:
            while True:
                self._outbox.ended((await inbox.get()).decode())

    async def _drain(self, taking: Sequence[asyncio.Task[None]], thread: EngineThread) -> None:
        """Hand everything over when the current step has ended, or the time is up: what a step says later is lost, and
        said again by whoever has the job then."""
        self._state = "draining"
        in_hand = len(self._outbox.claims)
        logger.info("worker draining", extra=fields(worker=self.worker_id, num_jobs=in_hand))
        self._leave_by = asyncio.get_running_loop().time() + self._drain_timeout_s + _PARTING_S
        thread.stop()
        stepped = asyncio.create_task(asyncio.to_thread(thread.join, self._drain_timeout_s))
        announced = asyncio.create_task(self._part(self._announce()))
        await asyncio.wait([stepped, announced], timeout=self._drain_timeout_s)
        await self._hand_over()
        await self._part(asyncio.wait(taking, timeout=_PARTING_S))
        for task in taking:
            task.cancel()
        await self._hand_over()  # what was being taken meanwhile

    async def _hand_over(self) -> None:
        """Say what there is to say, and let others take what is in hand at once."""
        await self._part(self._outbox.flush())
        for model, queue in self._queues.items():
            claims = self._claims(model)
            if claims:
                ids = [claim.job.id for claim in claims]
                logger.info("jobs handed back", extra=fields(model=model, num_jobs=len(ids), job_ids=ids))
            await self._part(queue.give_back(claims))
            for claim in claims:
                self._outbox.close(claim, "handed_back")

    async def _part(self, last_words: Awaitable[object]) -> None:
        """Something that may fail or be cut off on the way out: leases and presence lapse anyway."""
        try:
            async with asyncio.timeout_at(self._leave_by):
                await last_words
        except (RedisError, TimeoutError) as error:
            logger.warning("worker left in disorder", extra=fields(error=repr(error)))

    async def _renew(self) -> None:
        """A lease ends `lease_s` after the engine's thread last got on: a step that hangs must not keep its jobs."""
        silence_s = self._pulse.silence_s()
        if silence_s > self._terms.lease_s:
            self._bear_silence(silence_s)
            return
        self._num_silent = 0
        for model, queue in self._queues.items():
            for claim in await queue.renew(self._claims(model), silence_s=silence_s):
                self._outbox.close(claim, "lapsed")

    def _bear_silence(self, silence_s: float) -> None:
        """For a while. Turns are counted, not seconds, which a suspended process sleeps through."""
        self._num_silent += 1
        logger.error("no progress, leases run out", extra=fields(silence_s=round(silence_s, 1)))
        if self._num_silent >= _MOST_SILENT_LEASES * _RENEWALS_A_LEASE:
            logger.error("worker hangs and gives up", extra=fields(worker=self.worker_id))
            self._is_broken.set()

    def _claims(self, model: str) -> list[Claim]:
        return [claim for claim in self._outbox.claims if claim.job.model == model]

    def _closed(self, claim: Claim, was_stale: bool) -> None:
        model = claim.job.model
        if was_stale:
            self._engines[model].abort(claim.key)
        self._intakes[model].closed(claim)

    async def _announce(self) -> None:
        in_flight, memory = len(self._outbox.claims), resident_bytes()
        await self._presence.announce(WorkerInfo(self.worker_id, self._state, self._models, in_flight, memory))

    async def _forever(self, turn: Callable[[], Awaitable[None]], every_s: float) -> None:
        while True:
            await self._once(turn)
            await asyncio.sleep(every_s)

    async def _once(self, turn: Callable[[], Awaitable[None]]) -> None:
        """One turn; trouble with Redis is logged and waited out, never fatal."""
        try:
            await turn()
        except RedisError as error:
            logger.warning("redis trouble", extra=fields(error=str(error)))
            await asyncio.sleep(_RETRY_AFTER_S)


async def _first_of(*waits: Awaitable[object]) -> None:
    """Return when one of them is done; the others are dropped."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
