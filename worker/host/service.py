"""A worker's life: load, announce, take, decode, append, and leave without dropping anything.

The service composes the hosts of its models, the threads that compute and the outbox, and holds no
logic of theirs. On SIGTERM everything in hand goes back to the queue at the next step boundary:
its tokens are in the log by then, and other workers go on with it.
"""

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from functools import partial
from typing import Any

import msgspec
from redis.exceptions import RedisError

from shared.artifacts.store import ArtifactStore
from shared.events.log import LogReader, LogWriter
from shared.events.subscriptions import Subscriptions
from shared.fleet.presence import Presence
from shared.messages import LoadFailure, ModelInfo, Residence, WorkerState
from shared.queue import keys
from shared.queue.broker import Broker
from shared.queue.leases import Claim, QueuePolicy
from shared.settings.models import ModelEntry
from shared.settings.settings import SettingsError
from shared.telemetry.logging_setup import fields
from shared.telemetry.metrics import WorkerMetrics
from shared.telemetry.process import LoopLag
from shared.telemetry.tracing import NO_TRACING, Tracing
from worker.engine.engine_thread import EngineThread
from worker.hardware.device import memory_in_use
from worker.hardware.memory_guard import MemoryGuard
from worker.host.budget import Budget, Memory
from worker.host.known_models import KnownModel, KnownModels
from worker.host.ledger import Ledger
from worker.host.loading import LoadedModel, UnloadedModel
from worker.host.metrics_reporter import MetricsReporter
from worker.host.model_host import HostContext
from worker.host.outbox import Outbox

logger = logging.getLogger("aios.worker")

_ANNOUNCE_EVERY_S = 1.0
_RETRY_AFTER_S = 0.5
_RENEWALS_A_LEASE = 3
_MOST_SILENT_LEASES = 10
_PARTING_S = 0.6
"""The time for a take under way to end, and for the last words to Redis, if it listens."""


class WorkerService:
    """One worker.

    `drain_timeout_s` is the longest wait for the engines' current steps at the end. A batch of
    tasks that are done whole waits `batch_wait_s` for more. `budget` decides which models make room
    for others. `survey` describes a model of the catalogue; without it none of them is served.
    Files of answers become `artifacts`. `pool` is a name for people. `on_ready` is called before
    the first job is taken.

    The function that loads the models reads `known_models`, those that the fleet had when the
    worker started. It sets `unloaded`, the models that are loaded for work that waits, and
    `obstacles`, the models that cannot be served here, each with the reason. These are announced.
    """

    def __init__(
        self,
        broker: Broker,
        policy: QueuePolicy,
        *,
        drain_timeout_s: float,
        batch_wait_s: float = 0.0,
        budget: Budget | None = None,
        survey: Callable[[ModelEntry], UnloadedModel] | None = None,
        artifacts: ArtifactStore | None = None,
        pool: str = "default",
        memory_guard: MemoryGuard | None = None,
        tracing: Tracing = NO_TRACING,
        on_ready: Callable[[], object] = lambda: None,
    ) -> None:
        self.worker_id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._broker = broker
        self._policy = policy
        self._tracing = tracing
        self._on_ready = on_ready
        self._presence = Presence(broker.client(keys.PRESENCE))
        self._subscriptions = Subscriptions(broker.client(keys.PRESENCE))
        self.reader = LogReader(broker)
        self.ledger = Ledger(self._closed)
        writer = LogWriter(broker, result_ttl_s=policy.result_ttl_s)
        self.outbox = Outbox(writer, self.ledger, artifacts or ArtifactStore(broker))
        self._drain_timeout_s = drain_timeout_s
        self._batch_wait_s = batch_wait_s
        self._budget = budget or Budget()
        self._survey = survey or _knows_none
        self._state: WorkerState = "loading"
        self.obstacles: dict[str, str] = {}
        self.known_models: dict[str, ModelInfo] = {}
        self.unloaded: list[UnloadedModel] = []
        self._known: KnownModels | None = None
        self._serving: set[asyncio.Task[None]] = set()
        self.orders: dict[str, int] | None = None
        self._is_broken = asyncio.Event()
        self._stop = asyncio.Event()
        self._threads = self._make_threads()
        self._lag = LoopLag()
        self._memory_guard = memory_guard or MemoryGuard()
        self._reporter = MetricsReporter(
            self.ledger, self.outbox, self.silence_s, self._memory_guard, pool=pool
        )
        self._num_silent = 0
        self._leave_by: float | None = None

    def tell(self, metrics: WorkerMetrics) -> None:
        """Let the worker's metrics be read."""
        self._reporter.tell(metrics, self._broker, self._lag, lambda: self._state)
        metrics.evictions.read = lambda: {(): self._known.num_evicted if self._known else 0}

    def hangs(self) -> str | None:
        """Return the reason why the worker does not get on, None when it does.

        It does not when a part of it broke, or when it has work and shows no sign of life for as
        long as a lease lasts.
        """
        if self._is_broken.is_set():
            return "a part of the worker broke"
        silence_s = self.silence_s()
        if silence_s > self._policy.lease_s:
            return f"no progress for {silence_s:.1f} s"
        return None

    def silence_s(self) -> float:
        """Return the seconds since the last sign of life of the thread that has been silent
        longest."""
        return max(thread.heartbeat.silence_s() for thread in self._threads.values())

    def not_ready(self) -> str | None:
        """Return the reason why the worker takes no work, None when it does."""
        trouble = self.hangs()
        if trouble is not None:
            return trouble
        if self._state == "ready":
            return None
        return self._state

    async def run(self, load: Callable[[], list[LoadedModel]], stop: asyncio.Event) -> bool:
        """Serve until `stop`. Return False when a part of the worker broke or hangs.

        `load` runs in a thread. A load or a step that takes long may still be running in its thread
        afterwards; nothing of it is used.
        """
        logger.info("worker starting", extra=fields(worker=self.worker_id))
        self._stop = stop
        announcing = self._start(self._forever(self.announce, _ANNOUNCE_EVERY_S))
        lagging = self._start(self._lag.watch())
        try:
            loading = asyncio.create_task(self._load(load))
            await _first_of(loading, stop.wait())
            if loading.done():
                await loading
                await self._serve(stop)
        finally:
            announcing.cancel()
            lagging.cancel()
            await asyncio.gather(announcing, lagging, return_exceptions=True)
            await self._part(self._presence.leave(self.worker_id))
            await self._subscriptions.close()
        logger.info(
            "worker stopped",
            extra=fields(worker=self.worker_id, is_broken=self._is_broken.is_set()),
        )
        return not self._is_broken.is_set()

    def _make_threads(self) -> dict[str, EngineThread]:
        """Return a thread for each mechanism: a task that is done whole and takes long must delay
        no token."""
        died = partial(asyncio.get_running_loop().call_soon_threadsafe, self._is_broken.set)
        return {"sequence": EngineThread(died, "engine"), "task": EngineThread(died, "tasks")}

    @property
    def models(self) -> dict[str, KnownModel]:
        """The models that this worker can serve, by id; none before they are known."""
        return {} if self._known is None else self._known.by_id

    async def _load(self, load: Callable[[], list[LoadedModel]]) -> None:
        """Load the models that are served from the start."""
        with contextlib.suppress(RedisError):
            self.known_models = (await self._presence.fleet()).models
        # The hosts alone hold the models from now on, so that one can be freed.
        models = await asyncio.to_thread(load)
        context = HostContext(
            self._broker,
            self._policy,
            worker_id=self.worker_id,
            presence=self._presence,
            reader=self.reader,
            ledger=self.ledger,
            outbox=self.outbox,
            reporter=self._reporter,
            tracing=self._tracing,
            threads=self._threads,
            batch_wait_s=self._batch_wait_s,
            tell=partial(self._once, self.announce),
        )
        self._known = KnownModels(
            context,
            [*models, *self.unloaded],
            self._budget,
            survey=self._survey,
            memory=_memory,
            on_loaded=self._serve_model,
        )

    async def _serve(self, stop: asyncio.Event) -> None:
        known = self._known
        assert known is not None
        for thread in self._threads.values():
            thread.start()
        renew_every_s = self._policy.lease_s / _RENEWALS_A_LEASE
        upkeep = [
            self._start(self.outbox.run()),
            self._start(self._forever(self._renew, renew_every_s)),
        ]
        for shard in self._broker.shards:
            upkeep.append(self._start(self._hear(shard)))

        self._state = "ready"
        # Before the first job: a crash from now on is not one of its start.
        self._on_ready()
        await self._once(self.announce)
        logger.info("worker ready", extra=fields(worker=self.worker_id, models=list(self.models)))

        for model in self.models.values():
            if model.host is not None:
                self._serve_model(model)
        # After that: models that are loaded from now on are served by `on_loaded`.
        looking = self._start(self._look_after(known))
        await _first_of(stop.wait(), self._is_broken.wait())

        # The outbox and the leases go on until everything is handed over.
        looking.cancel()
        await self._drain()
        for task in upkeep:
            task.cancel()
        await self._part(asyncio.gather(*upkeep, return_exceptions=True))

    def _start(self, part: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a part that runs as long as the worker. If it raises, the worker hands its jobs
        over and ends."""

        def check(task: asyncio.Task[None]) -> None:
            if task.cancelled():
                return
            error = task.exception()
            if error is not None:
                logger.error("worker part broke", exc_info=error)
                self._is_broken.set()

        task = asyncio.create_task(part)
        task.add_done_callback(check)
        return task

    async def _look_after(self, known: KnownModels) -> None:
        """Load models that are not in memory for work that waits, or refuse that work."""
        while True:
            await self._once(known.look)
            await known.changed()

    def _serve_model(self, model: KnownModel) -> None:
        """Take jobs of a model that is in memory, until it is to go or the worker is."""
        task = self._start(self._take(model))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _take(self, model: KnownModel) -> None:
        """Take jobs of a model until it is to go, and then free it."""
        host = model.host
        assert host is not None
        assert self._known is not None
        lease_s = self._policy.lease_s
        try:
            while not model.must_go and not self._is_over():
                # Jobs of a thread that seems to hang would only be held up, and blamed for it.
                seems_to_hang = host.thread.heartbeat.silence_s() > lease_s / 2
                if seems_to_hang or self._memory_guard.is_over:
                    await asyncio.sleep(lease_s / 10)
                else:
                    await self._once(host.intake.turn)
            await host.intake.close()
        finally:
            host.intake.drop()
        del host  # it is to be freed
        await self._known.serve(model, self._is_over)

    def _is_over(self) -> bool:
        return self._stop.is_set() or self._is_broken.is_set()

    async def _hear(self, shard: str) -> None:
        """Drop what others have ended at once, before its next append is refused."""
        async with self._subscriptions.listen(keys.control(shard, self.worker_id)) as inbox:
            while True:
                self.ledger.ended((await inbox.get()).decode())

    async def _drain(self) -> None:
        """Hand everything over when the current steps have ended, or the time is up.

        The tokens of a step that ends later are lost, and computed again by the job's next worker.
        """
        self._state = "draining"
        in_hand = len(self.ledger.claims)
        logger.info("worker draining", extra=fields(worker=self.worker_id, num_jobs=in_hand))
        self._leave_by = asyncio.get_running_loop().time() + self._drain_timeout_s + _PARTING_S
        # Each thread by itself: a task that is done whole may take all the time there is, and what
        # the other thread has in hand does not wait for it.
        parts: list[asyncio.Task[None]] = []
        for thread in self._threads.values():
            thread.stop()
            parts.append(asyncio.create_task(self._drain_thread(thread)))
        parts.append(asyncio.create_task(self._part(self.announce())))
        await asyncio.wait(parts, timeout=self._drain_timeout_s)
        await self._hand_over(self.models.values())

        # A take that is under way may still bring jobs, which go back at once.
        taking = list(self._serving)
        if taking:
            await self._part(asyncio.wait(taking, timeout=_PARTING_S))
        for task in taking:
            task.cancel()
        await self._hand_over(self.models.values())

    async def _drain_thread(self, thread: EngineThread) -> None:
        """Hand over what a thread has in hand once its current step has ended, if it does in
        time."""
        await asyncio.to_thread(thread.join, self._drain_timeout_s)
        models: list[KnownModel] = []
        for model in self.models.values():
            if model.host is not None and model.host.thread is thread:
                models.append(model)
        await self._hand_over(models)

    async def _hand_over(self, models: Iterable[KnownModel]) -> None:
        """Send all news, and let others take at once what is in hand of these models."""
        await self._part(self.outbox.flush())
        in_hand = self.ledger.by_model()
        for model in models:
            claims = in_hand.get(model.info.id, [])
            if not claims:
                continue
            ids = [claim.job.id for claim in claims]
            logger.info(
                "jobs handed back",
                extra=fields(model=model.info.id, num_jobs=len(ids), job_ids=ids),
            )
            await self._part(model.queue.give_back(claims))
            for claim in claims:
                self.ledger.close(claim, "handed_back")

    async def _part(self, last_words: Awaitable[object]) -> None:
        """Do something on the way out that may fail or be cut off: leases and presence lapse
        anyway."""
        try:
            async with asyncio.timeout_at(self._leave_by):
                await last_words
        except (RedisError, TimeoutError) as error:
            logger.warning("worker left in disorder", extra=fields(error=repr(error)))

    async def _renew(self) -> None:
        """Let leases end `lease_s` after their thread last got on: a step that hangs must not keep
        its jobs."""
        silence_s = self.silence_s()
        if silence_s > self._policy.lease_s:
            self._bear_silence(silence_s)
        else:
            self._num_silent = 0
        for name, claims in self.ledger.by_model().items():
            model = self.models[name]
            silence_s = 0.0
            # Each model's leases follow its own thread.
            if model.host is not None:
                silence_s = model.host.thread.heartbeat.silence_s()
            if silence_s > self._policy.lease_s:
                continue
            for claim in await model.queue.renew(claims, silence_s=silence_s):
                self.ledger.close(claim, "lapsed")

    def _bear_silence(self, silence_s: float) -> None:
        """Note that leases run out. Give up if this lasts for too long."""
        # Turns are counted, not seconds, which a suspended process sleeps through.
        self._num_silent += 1
        logger.error("no progress, leases run out", extra=fields(silence_s=round(silence_s, 1)))
        if self._num_silent >= _MOST_SILENT_LEASES * _RENEWALS_A_LEASE:
            logger.error("worker hangs and gives up", extra=fields(worker=self.worker_id))
            self._is_broken.set()

    def _closed(self, claim: Claim, was_stale: bool) -> None:
        model = self.models[claim.job.model]
        model.used_s = time.monotonic()
        if model.host is not None:  # else it was only taken to be refused
            model.host.closed(claim, was_stale)

    async def announce(self) -> None:
        """Announce the worker as it is now, and obey the orders that come back."""
        self._memory_guard.look()
        models: dict[str, KnownModel] = {}
        if self._state != "loading":
            models = self.models

        infos: list[ModelInfo] = []
        residences: dict[str, Residence] = {}
        unloads: dict[str, int] = {}
        failures: dict[str, LoadFailure] = {}
        for name, model in models.items():
            infos.append(model.info)
            if model.residence != "loaded":
                residences[name] = model.residence
            if model.obeyed:
                unloads[name] = model.obeyed
            failure = model.failure
            if failure is not None:
                failures[name] = failure

        worker = msgspec.structs.replace(
            self._reporter.info(self.worker_id, self._state, tuple(infos)),
            residences=residences,
            unloads=unloads,
            obstacles=self.obstacles,
            failures=failures,
        )
        self._obey(await self._presence.announce(worker))

    def _obey(self, orders: dict[str, int]) -> None:
        """Note which models are ordered to go: by model, the number of the last order."""
        # Orders that were given before this worker came are not its own.
        if self.orders is None:
            self.orders = orders
        for name, model in self.models.items():
            if name in orders and orders[name] != self.orders.get(name):
                self.orders[name] = orders[name]
                model.order = orders[name]

    async def _forever(self, turn: Callable[[], Awaitable[None]], every_s: float) -> None:
        while True:
            await self._once(turn)
            await asyncio.sleep(every_s)

    async def _once(self, turn: Callable[[], Awaitable[None]]) -> None:
        """Do one turn. Trouble with Redis is logged and waited out, never fatal."""
        try:
            await turn()
        except RedisError as error:
            logger.warning("redis trouble", extra=fields(error=str(error)))
            await asyncio.sleep(_RETRY_AFTER_S)


def _knows_none(entry: ModelEntry) -> UnloadedModel:
    """Survey no model of the catalogue."""
    raise SettingsError(f"model {entry.id!r}: this worker serves only its own models")


def _memory() -> Memory:
    total_bytes, used_bytes = memory_in_use()
    return Memory(total_bytes, used_bytes)


async def _first_of(*waits: Awaitable[object]) -> None:
    """Return when one of them is done, and drop the others."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
