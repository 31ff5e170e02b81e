"""A worker's life: load, announce, take, decode, append, and leave without dropping anything.

Composes queue, intake, engine and outbox; holds no logic of theirs. SIGTERM stops the taking of work; what is in hand
is finished within the drain time, and what is not finished then goes back to the queue for another worker.
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
from shared.messages import ModelInfo, WorkerInfo
from shared.presence import Presence
from shared.queue import Claim, Terms, WorkQueue
from shared.subscriptions import Subscriptions
from worker import progress
from worker.engine import Engine
from worker.engine_thread import EngineThread
from worker.intake import Intake
from worker.loading import LoadedModel
from worker.outbox import Outbox

logger = logging.getLogger("aios.worker")

_ANNOUNCE_EVERY_S = 1.0
_RETRY_AFTER_S = 0.5

State = Literal["loading", "ready", "draining"]


class WorkerService:
    def __init__(self, broker: Broker, terms: Terms, *, drain_timeout_s: float) -> None:
        self.worker_id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._broker = broker
        self._terms = terms
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
        self._work = threading.Event()
        self._idle = asyncio.Event()
        self._is_broken = asyncio.Event()

    async def run(self, load: Callable[[], list[LoadedModel]], stop: asyncio.Event) -> bool:
        """Serve until `stop`; False when a part of it broke, which is our own bug. `load` runs in a thread."""
        announcing = self._start(self._forever(self._announce, _ANNOUNCE_EVERY_S))
        try:
            loaded = await asyncio.to_thread(load)
            await self._serve(loaded, stop)
        finally:
            announcing.cancel()
            await asyncio.gather(announcing, return_exceptions=True)
            await self._once(lambda: self._presence.leave(self.worker_id))
            await self._subscriptions.close()
        return not self._is_broken.is_set()

    async def _serve(self, loaded: Sequence[LoadedModel], stop: asyncio.Event) -> None:
        for model in loaded:
            self._add(model)
        loop = asyncio.get_running_loop()
        broken = self._is_broken
        died = partial(loop.call_soon_threadsafe, broken.set)
        thread = EngineThread(list(self._engines.values()), self._work, on_death=died)
        thread.start()
        upkeep = [self._start(self._outbox.run()), self._start(self._forever(self._renew, self._terms.lease_s / 3))]
        upkeep += [self._start(self._hear(shard)) for shard in self._broker.shards]
        self._state, self._models = "ready", tuple(model.info for model in loaded)
        await self._once(self._announce)
        logger.info("ready: %s", ", ".join(self._intakes))
        taking = [self._start(self._take(intake, stop)) for intake in self._intakes.values()]
        await _first_of(stop, broken)
        self._state = "draining"
        await self._once(self._announce)
        await self._drain(taking)
        thread.stop()
        for task in upkeep:
            task.cancel()
        await asyncio.gather(*upkeep, return_exceptions=True)

    def _start(self, part: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A part that runs as long as the worker; if it raises, the worker hands its jobs over and ends."""

        def check(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                logger.error("a part of the worker broke", exc_info=error)
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
        )

    async def _take(self, intake: Intake, stop: asyncio.Event) -> None:
        while not stop.is_set() and not self._is_broken.is_set():
            await self._once(intake.turn)
        await intake.close()

    async def _hear(self, shard: str) -> None:
        """What others have ended is dropped at once, before its next append is refused."""
        async with self._subscriptions.listen(keys.control(shard, self.worker_id)) as inbox:
            while True:
                self._outbox.ended((await inbox.get()).decode())

    async def _drain(self, taking: Sequence[asyncio.Task[None]]) -> None:
        """Let jobs in hand end; when time is up, or this worker is broken, hand them to other workers."""
        await asyncio.gather(*taking, return_exceptions=True)
        limit_s = 0.0 if self._is_broken.is_set() else self._drain_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                while self._outbox.claims:
                    self._idle.clear()
                    await self._idle.wait()
        except TimeoutError:
            logger.warning("%d jobs go back to the queue", len(self._outbox.claims))
        for model, queue in self._queues.items():
            await self._once(partial(queue.give_back, self._claims(model)))

    async def _renew(self) -> None:
        """Restart the leases while the engine's thread gets on: a step that hangs must not keep its jobs."""
        silence_s = progress.silence_s()
        if silence_s > self._terms.lease_s:
            logger.error("no progress for %.1f s: the leases run out", silence_s)
            return
        for model, queue in self._queues.items():
            for claim in await queue.renew(self._claims(model)):
                self._outbox.close(claim)

    def _claims(self, model: str) -> list[Claim]:
        return [claim for claim in self._outbox.claims if claim.job.model == model]

    def _closed(self, claim: Claim, was_stale: bool) -> None:
        model = claim.job.model
        if was_stale:
            self._engines[model].abort(claim.key)
        self._intakes[model].closed(claim)
        self._idle.set()

    async def _announce(self) -> None:
        await self._presence.announce(WorkerInfo(self.worker_id, self._state, self._models, len(self._outbox.claims)))

    async def _forever(self, turn: Callable[[], Awaitable[None]], every_s: float) -> None:
        while True:
            await self._once(turn)
            await asyncio.sleep(every_s)

    async def _once(self, turn: Callable[[], Awaitable[None]]) -> None:
        """One turn; trouble with Redis is logged and waited out, never fatal."""
        try:
            await turn()
        except RedisError as error:
            logger.warning("redis: %s", error)
            await asyncio.sleep(_RETRY_AFTER_S)


async def _first_of(*events: asyncio.Event) -> None:
    waits = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
