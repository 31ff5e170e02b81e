"""A worker's life: load, announce, take, decode, append, and leave without dropping a job.

The service composes the hosts of its models, the threads that compute and the outbox, and has no
logic of theirs. On SIGTERM all jobs in hand go back to the queue at the next step boundary. Their
tokens are in the log by then, and other workers go on with them.
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

from shared.artifacts.store import ArtifactStore, BlockingArtifacts
from shared.events.log import LogReader, LogWriter
from shared.events.subscriptions import Subscriptions
from shared.fleet.popularity import Popularity
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
from worker.engine.engine_thread import LEAST_PRIORITY, EngineThread
from worker.engine.event_loop import call_in_loop
from worker.engine.weights import WeightSize
from worker.hardware.device import memory_in_use
from worker.hardware.memory_guard import MemoryGuard
from worker.host.budget import Budget, Memory
from worker.host.known_models import KnownModel, KnownModels
from worker.host.ledger import Ledger
from worker.host.loading import LoadedModel, UnloadedModel
from worker.host.metrics_reporter import MetricsReporter
from worker.host.model_host import HostContext
from worker.host.outbox import Outbox
from worker.host.tenant_files import TenantFiles

logger = logging.getLogger("aios.worker")

_ANNOUNCE_EVERY_S = 1.0
_RETRY_AFTER_S = 0.5
_RENEWALS_PER_LEASE = 3
_MAX_SILENT_LEASES = 10
_PARTING_S = 0.6
"""The time for a take under way to end, and for the last calls to Redis."""


class WorkerService:
    """One worker.

    `drain_timeout_s` is the longest wait for the engines' current steps at the end. A batch of
    tasks that are done whole waits `batch_wait_s` for more, and the thread of such tasks has the
    niceness `task_niceness` beside a model that decodes. `budget` decides which models make room
    for others. `survey` describes a model of the catalogue; without it none of them is served.
    Files of answers go to `artifacts`. `pool` is a name for people. `on_ready` is called before the
    first job is taken.

    While the worker is idle, it loads the `num_preloaded` models that are asked for most, where
    there is room. Where work waits for several models, those asked for more are loaded as if it had
    waited up to `bonus_s` longer. For both a job counts half after `half_life_s`.

    The function that loads the models reads `known_models`, which are those of the fleet when the
    worker started. It sets `unloaded`, the models that will be loaded when work waits for them, and
    `obstacles`, the reasons for which models cannot be served here. The obstacles are announced.
    """

    def __init__(
        self,
        broker: Broker,
        policy: QueuePolicy,
        *,
        drain_timeout_s: float,
        batch_wait_s: float = 0.0,
        task_niceness: int = LEAST_PRIORITY,
        budget: Budget | None = None,
        num_preloaded: int = 0,
        bonus_s: float = 0.0,
        half_life_s: float = 600.0,
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
        self._artifacts = artifacts or ArtifactStore(broker)
        self.outbox = Outbox(writer, self.ledger, self._artifacts)
        self._drain_timeout_s = drain_timeout_s
        self._batch_wait_s = batch_wait_s
        self._budget = budget or Budget()
        self._num_preloaded = num_preloaded
        self._bonus_s = bonus_s
        self._popularity = Popularity(broker, half_life_s)
        self._survey = survey or _survey_none
        self._state: WorkerState = "loading"
        self.obstacles: dict[str, str] = {}
        self.known_models: dict[str, ModelInfo] = {}
        self.unloaded: list[UnloadedModel] = []
        self._known: KnownModels | None = None
        self._serving: set[asyncio.Task[None]] = set()
        self.orders: dict[str, int] | None = None
        self._announcing = asyncio.Lock()
        self._is_broken = asyncio.Event()
        self._stop = asyncio.Event()
        self._threads = self._make_threads(task_niceness)
        self._lag = LoopLag()
        self._memory_guard = memory_guard or MemoryGuard()
        self._reporter = MetricsReporter(
            self.ledger, self.outbox, self.silence_s, self._memory_guard, pool=pool
        )
        self._num_silent = 0
        self._leave_by: float | None = None

    def tell(self, metrics: WorkerMetrics) -> None:
        """Connect the metrics to the worker's numbers, which are read at each scrape."""
        self._reporter.tell(metrics, self._broker, self._lag, lambda: self._state)
        metrics.memory_watermark.read = lambda: {(): self._budget.watermark}
        metrics.evictions.read = lambda: {(): self.num_evicted}
        metrics.loads.read = lambda: {(): self.num_loads}
        metrics.models_loaded.read = lambda: {(): self._num_loaded()}
        metrics.weight_bytes.read = lambda: {
            (name,): size.num_bytes for name, size in self._weights()
        }
        metrics.weight_saving.read = lambda: {
            (name,): size.saving for name, size in self._weights()
        }

    def hangs(self) -> str | None:
        """Return the reason why the worker makes no progress, None while it does.

        It makes none when a part of it broke, or when it has work and gives no sign of life for as
        long as a lease.
        """
        if self._is_broken.is_set():
            return "a part of the worker broke"
        silence_s = self.silence_s()
        if silence_s > self._policy.lease_s:
            return f"no progress for {silence_s:.1f} s"
        return None

    def silence_s(self) -> float:
        """Return the seconds for which the most silent thread has given no sign of life."""
        return max(thread.heartbeat.silence_s() for thread in self._threads.values())

    def not_ready(self) -> str | None:
        """Return the reason why the worker takes no jobs, None while it does."""
        problem = self.hangs()
        if problem is not None:
            return problem
        if self._state == "ready":
            return None
        return self._state

    async def run(self, load: Callable[[], list[LoadedModel]], stop: asyncio.Event) -> bool:
        """Serve until `stop`. Return False when a part of the worker broke or hangs.

        `load` runs in a thread. A long load or step may still run in its thread when this returns.
        Its results are not used.
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
            await self._try_to_leave(self._presence.leave(self.worker_id))
            await self._subscriptions.close()
        logger.info(
            "worker stopped",
            extra=fields(worker=self.worker_id, is_broken=self._is_broken.is_set()),
        )
        return not self._is_broken.is_set()

    def _make_threads(self, task_niceness: int) -> dict[str, EngineThread]:
        """Return a thread for each mechanism, so that tasks that are done whole delay no token."""
        died = partial(call_in_loop, asyncio.get_running_loop(), self._is_broken.set)
        return {
            "sequence": EngineThread(died, "engine"),
            "task": EngineThread(died, "tasks", task_niceness),
            "remote": EngineThread(died, "remote"),
        }

    @property
    def models(self) -> dict[str, KnownModel]:
        """Return the models that this worker can serve, by id, or none before they are loaded."""
        if self._known is None:
            return {}
        return self._known.by_id

    def _num_loaded(self) -> int:
        # A copy, because models may be added and removed during a scrape.
        return sum(model.host is not None for model in list(self.models.values()))

    def _weights(self) -> list[tuple[str, WeightSize]]:
        """Return the sizes of the weights of the models in memory, as far as they are known."""
        sizes: list[tuple[str, WeightSize]] = []
        for name, model in list(self.models.items()):
            host = model.host
            if host is not None and host.weights.num_weights:
                sizes.append((name, host.weights))
        return sizes

    @property
    def num_evicted(self) -> int:
        """Return how many models had to make room for others."""
        return self._known.num_evicted if self._known else 0

    @property
    def num_loads(self) -> int:
        """Return how many models were loaded since the worker started."""
        return self._known.num_loads if self._known else 0

    async def _load(self, load: Callable[[], list[LoadedModel]]) -> None:
        """Load the models that are served from the start."""
        with contextlib.suppress(RedisError):
            self.known_models = (await self._presence.fleet()).models
        models = await asyncio.to_thread(load)
        context = HostContext(
            self._broker,
            self._policy,
            worker_id=self.worker_id,
            presence=self._presence,
            popularity=self._popularity,
            reader=self.reader,
            ledger=self.ledger,
            outbox=self.outbox,
            reporter=self._reporter,
            tracing=self._tracing,
            threads=self._threads,
            batch_wait_s=self._batch_wait_s,
            announce=partial(self._once, self.announce),
            files_of=partial(
                TenantFiles, BlockingArtifacts(self._artifacts, asyncio.get_running_loop())
            ),
        )
        # After this function the hosts alone refer to the models, so that these can be freed.
        self._known = KnownModels(
            context,
            [*models, *self.unloaded],
            self._budget,
            num_preloaded=self._num_preloaded,
            bonus_s=self._bonus_s,
            survey=self._survey,
            memory=_memory,
            on_loaded=self._serve_model,
        )

    async def _serve(self, stop: asyncio.Event) -> None:
        """Serve until `stop`, or until a part breaks, and then drain."""
        known = self._known
        assert known is not None
        for thread in self._threads.values():
            thread.start()
        renew_every_s = self._policy.lease_s / _RENEWALS_PER_LEASE
        upkeep = [
            self._start(self.outbox.run()),
            self._start(self._forever(self._renew, renew_every_s)),
        ]
        for shard in self._broker.shards:
            upkeep.append(self._start(self._listen(shard)))

        self._state = "ready"
        # Before the first job, because a crash from now on is no failed start.
        self._on_ready()
        await self._once(self.announce)
        logger.info("worker ready", extra=fields(worker=self.worker_id, models=list(self.models)))

        for model in self.models.values():
            if model.host is not None:
                self._serve_model(model)
        # After the loop above, because `on_loaded` serves models that are loaded from now on.
        loading = self._start(self._load_for_work(known))
        await _first_of(stop.wait(), self._is_broken.wait())

        # The outbox and the renewal of leases go on until all jobs are handed over.
        loading.cancel()
        await self._drain()
        for task in upkeep:
            task.cancel()
        await self._try_to_leave(asyncio.gather(*upkeep, return_exceptions=True))

    def _start(self, part: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a part that runs as long as the worker.

        If it raises an error, the worker hands its jobs over and ends.
        """

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

    async def _load_for_work(self, known: KnownModels) -> None:
        """Load models for which work waits, or refuse that work, until cancelled."""
        while True:
            await self._once(known.look)
            await known.changed()

    def _serve_model(self, model: KnownModel) -> None:
        """Start to take jobs of a model that is in memory."""
        task = self._start(self._take(model))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _take(self, model: KnownModel) -> None:
        """Take jobs of a model until it must be unloaded, and then free it.

        At the end of the worker it is not freed.
        """
        host = model.host
        assert host is not None
        assert self._known is not None
        lease_s = self._policy.lease_s
        hearing = self._start(host.intake.hear_urgent(self._subscriptions))
        try:
            while not model.must_go and not self._is_over():
                # A thread that seems to hang gets no jobs: they would only wait, and be suspected.
                seems_to_hang = host.thread.heartbeat.silence_s() > lease_s / 2
                if seems_to_hang or self._memory_guard.is_over:
                    await asyncio.sleep(lease_s / 10)
                else:
                    await self._once(host.intake.turn)
            await host.intake.close()
        finally:
            host.intake.drop()
            hearing.cancel()
            await asyncio.gather(hearing, return_exceptions=True)
        # The model is freed only if nothing else refers to its host. A task that was cancelled
        # refers to it, too: by the traceback of its CancelledError.
        del host, hearing
        await self._known.serve(model, self._is_over)

    def _is_over(self) -> bool:
        return self._stop.is_set() or self._is_broken.is_set()

    async def _listen(self, shard: str) -> None:
        """Drop jobs that were ended elsewhere at once, before their next append is refused."""
        async with self._subscriptions.listen(keys.control(shard, self.worker_id)) as inbox:
            while True:
                self.ledger.ended((await inbox.get()).decode())

    async def _drain(self) -> None:
        """Hand all jobs over when the current steps have ended, or the time is up.

        The tokens of a step that ends later are lost. The job's next worker computes them again.
        """
        self._state = "draining"
        in_hand = len(self.ledger.claims)
        logger.info("worker draining", extra=fields(worker=self.worker_id, num_jobs=in_hand))
        self._leave_by = asyncio.get_running_loop().time() + self._drain_timeout_s + _PARTING_S
        # Each thread by itself: a task that is done whole may take all the time, and the jobs of
        # the other thread must not wait for it.
        parts: list[asyncio.Task[None]] = []
        for thread in self._threads.values():
            thread.stop()
            parts.append(asyncio.create_task(self._drain_thread(thread)))
        parts.append(asyncio.create_task(self._try_to_leave(self.announce())))
        await asyncio.wait(parts, timeout=self._drain_timeout_s)
        await self._hand_over(self.models.values())

        # A take that is under way may still bring jobs, which go back at once.
        taking = list(self._serving)
        if taking:
            await self._try_to_leave(asyncio.wait(taking, timeout=_PARTING_S))
        for task in taking:
            task.cancel()
        await self._hand_over(self.models.values())
        for model in self.models.values():
            if model.host is not None:
                model.host.engine.close()

    async def _drain_thread(self, thread: EngineThread) -> None:
        """Hand over the jobs of a thread when its current step has ended, or the time is up."""
        await asyncio.to_thread(thread.join, self._drain_timeout_s)
        models: list[KnownModel] = []
        for model in self.models.values():
            if model.host is not None and model.host.thread is thread:
                models.append(model)
        await self._hand_over(models)

    async def _hand_over(self, models: Iterable[KnownModel]) -> None:
        """Send all news, and give the jobs of these models back, so that others take them at once.

        Leases and presence lapse anyway if this fails.
        """
        await self._try_to_leave(self.outbox.flush())
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
            await self._try_to_leave(model.queue.give_back(claims))
            for claim in claims:
                self.ledger.close(claim, "handed_back")

    async def _try_to_leave(self, call: Awaitable[object]) -> None:
        """Make a call of the worker's end.

        It may fail or be cut off, because leases and presence lapse anyway.
        """
        try:
            async with asyncio.timeout_at(self._leave_by):
                await call
        except (RedisError, TimeoutError) as error:
            logger.warning("worker left in disorder", extra=fields(error=repr(error)))

    async def _renew(self) -> None:
        """Renew the leases of all jobs in hand.

        A lease ends `lease_s` after the last sign of life of its thread, because a step that hangs
        must not keep its jobs.
        """
        silence_s = self.silence_s()
        if silence_s > self._policy.lease_s:
            self._note_silence(silence_s)
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
                self.ledger.lapse(claim)

    def _note_silence(self, silence_s: float) -> None:
        """Note that leases run out. Give up if this lasts for too long."""
        # Renewals are counted, not seconds, which pass while a process is suspended, too.
        self._num_silent += 1
        logger.error("no progress, leases run out", extra=fields(silence_s=round(silence_s, 1)))
        if self._num_silent >= _MAX_SILENT_LEASES * _RENEWALS_PER_LEASE:
            logger.error("worker hangs and gives up", extra=fields(worker=self.worker_id))
            self._is_broken.set()

    def _closed(self, claim: Claim, was_stale: bool) -> None:
        model = self.models[claim.job.model]
        model.used_s = time.monotonic()
        # A job of a model that is not in memory was only taken to be refused.
        if model.host is not None:
            model.host.closed(claim, was_stale)

    async def announce(self) -> None:
        """Announce the worker's present state, and note the orders that come back."""
        # One at a time, so that no older state is written behind a newer one.
        async with self._announcing:
            await self._announce()

    async def _announce(self) -> None:
        # In a thread, because reading files beside a computing thread takes long.
        await asyncio.to_thread(self._memory_guard.look)
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
        await self._popularity.add(self.ledger.count_new())

    def _obey(self, orders: dict[str, int]) -> None:
        """Note orders to unload models. `orders` are the numbers of the last orders, by model."""
        # Orders from before this worker started are not for it.
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
        """Do one turn. Log an error of Redis and wait for a moment."""
        try:
            await turn()
        except RedisError as error:
            logger.warning("redis trouble", extra=fields(error=str(error)))
            await asyncio.sleep(_RETRY_AFTER_S)


def _survey_none(entry: ModelEntry) -> UnloadedModel:
    """Raise SettingsError, because no model of the catalogue is served."""
    raise SettingsError(f"model {entry.id!r}: this worker serves only its own models")


def _memory() -> Memory:
    total_bytes, used_bytes = memory_in_use()
    return Memory(total_bytes, used_bytes)


async def _first_of(*waits: Awaitable[object]) -> None:
    """Return when one of the awaitables is done, and cancel the others."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
