"""The models that a worker can serve, in memory or not.

They are loaded when work waits for them, and unloaded to make room for others. One loop looks after
all models that are not in memory, and asks in one call whether jobs wait for any of them. A model
is loaded if no other worker has it, or if those that have it let its work wait for long, and if the
budget has room.

A model that cannot be loaded does not disturb the others. Its worker announces the reason, ends the
jobs that wait for it unless another worker could do them, and tries again at growing intervals.
"""

import asyncio
import contextlib
import logging
import math
import re
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from shared.errors import ModelFailed
from shared.fleet.catalogue import Catalogue, Listing
from shared.fleet.presence import Fleet
from shared.messages import LoadFailure, ModelInfo, Residence
from shared.queue import keys
from shared.queue.leases import WorkQueue
from shared.queue.queue_stats import WaitingModels
from shared.settings.models import ModelEntry
from shared.settings.settings import SettingsError
from shared.telemetry.logging_setup import fields
from worker.hardware.device import give_back_memory
from worker.host.budget import Budget, Evict, Load, Memory, Refuse, Resident, Verdict
from worker.host.job_span import begin
from worker.host.loading import LoadedModel, UnloadedModel
from worker.host.model_host import HostContext, ModelHost, rest_all
from worker.models.reading import reason_of

logger = logging.getLogger("aios.host")

LOOK_S = 0.5
"""The time between two checks for work of models that are not in memory."""
PATIENCE_S = 10.0
"""The time for which work of a model may wait for the workers that have it.

After that one more worker loads the model.
"""
RESTART_S = 30.0
"""The time allowed for a lost worker to return, with its models, when a supervisor restarts it."""
FIRST_RETRY_S = 1.0
LONGEST_RETRY_S = 60.0
"""A model that could not be loaded is tried again after 1, 2, 4 ... seconds, up to this."""
_REFUSED_AT_ONCE = 64
"""The slots of the jobs that are taken from a shard in one call only to be refused."""

_ABSOLUTE_PATH = re.compile(r"(?<![\w.])/(?:[^\s/:,;'\"()]+/)+(?=[^\s/:,;'\"()])")
"""The directories before a file's name, which callers should not see."""
_URL = re.compile(r"https?://[^\s'\"()]*[^\s'\"().:,;]")
"""The address of an engine elsewhere, which they should not see either."""


@dataclass(eq=False)
class KnownModel:
    """One model. `host` is None unless the model is in memory. Only `KnownModels` changes it.

    The model takes `num_bytes` of memory, as far as is known. `order` is the number of the last
    order to unload it, and `obeyed` that of the last one carried out, 0 before any. `load_order` is
    the number of an order to load it that was not carried out yet. A model that `is_put_away` was
    unloaded by an order, and is loaded only for work. `entry` is that of a model of the catalogue,
    None for a model of the worker's own settings.

    `able_others` are the other workers that could serve the model when this was last checked, at
    `able_at_s`.
    """

    info: ModelInfo
    again: Callable[[], LoadedModel]
    queue: WorkQueue
    num_bytes: int = 0
    host: ModelHost | None = None
    residence: Residence = "unloaded"
    order: int = 0
    obeyed: int = 0
    is_evicted: bool = False
    loaded_s: float = 0.0
    used_s: float = 0.0
    waiting_since_s: float | None = None
    num_failures: int = 0
    reason: str = ""
    retry_at_s: float = 0.0
    able_others: set[str] = field(default_factory=set)
    able_at_s: float = 0.0
    entry: ModelEntry | None = None
    is_pinned: bool = False
    is_removed: bool = False
    load_order: int = 0
    is_put_away: bool = False

    @property
    def must_go(self) -> bool:
        """Return whether the model has to be unloaded. It then takes no more jobs."""
        return self.order != self.obeyed or self.is_evicted or self.is_removed

    @property
    def failure(self) -> LoadFailure | None:
        """Return why the model could not be loaded, for callers, or None if it never failed."""
        if not self.num_failures:
            return None
        left_s = math.ceil(self.retry_at_s - time.monotonic())
        reason = self.reason.removeprefix(f"model {self.info.id!r}: ")
        reason = _ABSOLUTE_PATH.sub("", _URL.sub("its URL", reason))
        return LoadFailure(reason, max(1, left_s))

    def note_failure(self, reason: str) -> None:
        """Note why the model could not be loaded. The next try comes after twice the last wait."""
        self.num_failures += 1
        self.reason = reason
        # Bounded, so that the power does not overflow, however often loading fails.
        num_doublings = min(self.num_failures - 1, 32)
        wait_s = min(LONGEST_RETRY_S, FIRST_RETRY_S * 2**num_doublings)
        self.retry_at_s = time.monotonic() + wait_s
        logger.error(
            "model not loaded", extra=fields(model=self.info.id, error=reason, retry_in_s=wait_s)
        )


@dataclass(frozen=True)
class Demand:
    """The work of a model that is not in memory: since when it has waited, and its best class.

    `rank` is the index of that class in PRIORITIES.
    """

    model: str
    waited_s: float
    rank: int = 0


class KnownModels:
    """The models of one worker, by id.

    `survey` describes a model of the catalogue by its files. It raises SettingsError where they
    cannot be read. `memory` returns the memory in use. `on_loaded` is called for each model that
    has been loaded, so that it is served. `num_evicted` counts models that had to make room, and
    `num_loads` those that were loaded since the worker started.

    While the worker has nothing to do, the `num_preloaded` models that are asked for most are
    loaded where there is room. Where work waits for several models, `turns_of` tells which is
    loaded first. For that the popularity of a model is worth up to `bonus_s`.
    """

    def __init__(
        self,
        context: HostContext,
        models: Sequence[LoadedModel | UnloadedModel],
        budget: Budget,
        *,
        num_preloaded: int,
        bonus_s: float,
        survey: Callable[[ModelEntry], UnloadedModel],
        memory: Callable[[], Memory],
        on_loaded: Callable[[KnownModel], None],
    ) -> None:
        self._context = context
        self._budget = budget
        self._num_preloaded = num_preloaded
        self._bonus_s = bonus_s
        self._survey = survey
        self._memory = memory
        self._on_loaded = on_loaded
        self._waiting = WaitingModels(context.broker)
        self._freed = asyncio.Event()
        self._catalogue = Catalogue(context.broker.client(keys.PRESENCE))
        self._listing: Listing | None = None
        self.by_id: dict[str, KnownModel] = {}
        self.num_evicted = 0
        self.num_loads = 0
        for model in models:
            self.by_id[model.info.id] = self._known(model)

    async def serve(self, known: KnownModel, is_over: Callable[[], bool]) -> None:
        """Finish the jobs of a model that must be unloaded, and free it.

        Call this when no more jobs are taken for it. Return at once when the worker is over,
        because its jobs are then handed over.
        """
        if is_over() or known.host is None:
            return
        # An order that comes from here on is not obeyed by this unload.
        order = known.order
        known.residence = "unloading"
        await known.host.end_jobs()
        await self._free(known)
        known.is_put_away = order != known.obeyed
        known.obeyed = order
        await self._context.announce()

    async def changed(self) -> None:
        """Wait until a model was freed, which makes room for another, or for LOOK_S."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._freed.wait(), LOOK_S)
        self._freed.clear()

    async def look(self) -> None:
        """Look after all models that are not in memory, once."""
        await self._read_catalogue()
        await self._forget_removed()
        unloaded = [known for known in self.by_id.values() if known.residence == "unloaded"]
        if not unloaded:
            return
        for known in unloaded:
            if known.order != known.obeyed:
                # After an order to unload, a model that could not be loaded is tried again only for
                # new work.
                known.obeyed = known.order
                known.is_put_away = True
                known.num_failures = 0
                # Orders of both kinds are numbered by the time.
                if known.load_order < known.order:
                    known.load_order = 0
                await self._context.announce()
        waiting = await self._waiting.among([known.info.id for known in unloaded])
        _note_waits(unloaded, waiting)
        await self._sort(unloaded, waiting)
        fleet: Fleet | None = None
        for known in unloaded:
            has_work = known.info.id in waiting
            if not (has_work or known.num_failures or known.load_order):
                continue
            if fleet is None:
                fleet = await self._context.presence.fleet()
            await self._look_at(known, fleet, has_work=has_work)
        if self._num_preloaded and not waiting and not self._context.ledger.claims:
            await self._preload()

    async def _sort(self, unloaded: list[KnownModel], waiting: Mapping[str, int]) -> None:
        """Sort models into the order in which they are loaded.

        `waiting` are the classes of their work, as `WaitingModels.among` returns them.
        """
        now_s = time.monotonic()
        demands: list[Demand] = []
        for known in unloaded:
            name = known.info.id
            if known.waiting_since_s is not None:
                demands.append(Demand(name, now_s - known.waiting_since_s, waiting[name]))
        popularity: dict[str, float] = {}
        if len(demands) > 1 and self._bonus_s > 0:
            popularity = await self._context.popularity.per_minute()
        turns = turns_of(
            demands, popularity, ageing_s=self._context.policy.ageing_s, bonus_s=self._bonus_s
        )
        # Models without work come last. They may have been ordered, or could not be loaded before.
        unloaded.sort(key=lambda known: turns.get(known.info.id, len(turns)))

    async def _preload(self) -> None:
        """Load the first of the models asked for most that is not in memory, where there is room.

        No model makes room for it. Only one is loaded, because work may come meanwhile.
        """
        popularity = await self._context.popularity.per_minute()
        asked_for = [known for known in self.by_id.values() if known.info.id in popularity]
        asked_for.sort(key=lambda known: popularity[known.info.id], reverse=True)
        for known in asked_for[: self._num_preloaded]:
            if known.residence != "unloaded" or known.must_go:
                continue
            if known.num_failures or known.is_put_away:
                continue
            if isinstance(await self._verdict(known), Load):
                logger.info("model loaded ahead", extra=fields(model=known.info.id))
                await self._load(known)
                return

    async def _look_at(self, known: KnownModel, fleet: Fleet, *, has_work: bool) -> None:
        """Load a model that was ordered, that could not be loaded before, or that has work."""
        if known.load_order:
            is_waiting_for_room = await self._load_if_fits(known, may_evict=True)
            if not is_waiting_for_room:
                known.load_order = 0
        elif known.num_failures:
            await self._retry(known, fleet, has_work=has_work)
        elif self._should_load(known, fleet):
            await self._load_if_fits(known, may_evict=True)

    async def _read_catalogue(self) -> None:
        """Apply the changes of the catalogue since the last call."""
        if self._listing is not None and await self._catalogue.version() == self._listing.version:
            return
        before = self._listing or Listing()
        listing = await self._catalogue.listing()
        for name, entry in listing.entries.items():
            if before.entries.get(name) != entry:
                await self._learn(entry)
        for name, known in self.by_id.items():
            known.is_pinned = name in listing.pinned
            if known.entry is not None and name not in listing.entries:
                known.is_removed = True
            # Orders from before this worker first read the catalogue are not for it.
            order = listing.loads.get(name, 0)
            is_new = order != before.loads.get(name, 0) and self._listing is not None
            if is_new and known.residence == "unloaded":
                known.load_order = order
        self._listing = listing
        await self._context.announce()

    async def _learn(self, entry: ModelEntry) -> None:
        """Add or change a model of the catalogue by its present entry."""
        known = self.by_id.get(entry.id)
        if known is not None and known.entry is None:
            logger.warning(
                "catalogue passed over",
                extra=fields(model=entry.id, reason="the settings name it too"),
            )
            return
        try:
            model = await asyncio.to_thread(self._survey, entry)
        except SettingsError as error:
            logger.warning("catalogue passed over", extra=fields(model=entry.id, reason=str(error)))
            return
        if known is None:
            known = self._known(model)
            self.by_id[entry.id] = known
        elif known.host is None:
            known.info = model.info
        else:
            # The model in memory was loaded by its former entry.
            known.is_evicted = True
        known.entry = entry
        known.again = model.again
        known.num_bytes = model.num_bytes
        known.num_failures = 0
        known.is_removed = False

    async def _forget_removed(self) -> None:
        """Forget models that were removed from the catalogue.

        Models that are in memory, or that have jobs in hand, are forgotten later.
        """
        in_hand = self._context.ledger.by_model()
        for name, known in list(self.by_id.items()):
            if known.is_removed and known.residence == "unloaded" and name not in in_hand:
                del self.by_id[name]
                await self._context.presence.forget_model(name)

    def _known(self, model: LoadedModel | UnloadedModel) -> KnownModel:
        """Return a model as a known one, with a host if it is loaded."""
        queue = self._context.queue_of(model.info.id, model.info.fingerprint)
        known = KnownModel(model.info, model.again, queue, num_bytes=model.num_bytes)
        if isinstance(model, LoadedModel):
            self._install(known, model)
        elif model.reason:
            known.note_failure(model.reason)
        return known

    def _install(self, known: KnownModel, model: LoadedModel) -> None:
        """Give a model that was loaded its host."""
        known.info = model.info
        known.again = model.again
        known.queue = self._context.queue_of(model.info.id, model.fingerprint)
        known.host = ModelHost(model, known.queue, self._context)
        known.residence = "loaded"
        known.num_bytes = model.num_bytes or known.num_bytes
        known.loaded_s = time.monotonic()
        known.used_s = known.loaded_s
        known.num_failures = 0
        known.is_put_away = False

    async def _free(self, known: KnownModel) -> None:
        """Free the memory of a model without jobs in hand."""
        host = known.host
        assert host is not None
        known.host = None
        await host.free()
        known.is_evicted = False
        known.residence = "unloaded"
        self._freed.set()
        logger.info("model unloaded", extra=fields(model=known.info.id))

    def _should_load(self, known: KnownModel, fleet: Fleet) -> bool:
        """Return whether to load a model for which work waits.

        That is so if no other worker has it, or if the work has waited for too long.
        """
        since_s = known.waiting_since_s
        if since_s is not None and time.monotonic() - since_s >= PATIENCE_S:
            return True
        for other in fleet.serving(known.info.id):
            if other.id == self._context.worker_id:
                continue
            # A model without a residence is in memory.
            if other.residences.get(known.info.id) in (None, "loading"):
                return False
        return True

    async def _load_if_fits(self, known: KnownModel, *, may_evict: bool) -> bool:
        """Load a model if there is room. Otherwise evict others first, if it `may_evict`.

        Return whether the model waits for room: then it was neither loaded nor did loading fail.
        """
        verdict = await self._verdict(known)
        if isinstance(verdict, Load):
            # Room that was freed during this look is for the first that waits for it. The next
            # look, which comes at once, begins with that one.
            if self._freed.is_set():
                return True
            await self._load(known)
            return False
        if isinstance(verdict, Refuse):
            known.note_failure(verdict.reason)
            return False
        if isinstance(verdict, Evict) and may_evict:
            for model_id in verdict.ids:
                self.by_id[model_id].is_evicted = True
                self.num_evicted += 1
                await self._wake(self.by_id[model_id])
            logger.info(
                "models make room", extra=fields(model=known.info.id, evicted=list(verdict.ids))
            )
        return True

    async def _verdict(self, known: KnownModel) -> Verdict:
        """Return the budget's verdict on a model that is not in memory."""
        residents = await self._residents()
        return self._budget.room_for(
            known.info.id,
            known.num_bytes,
            residents=residents,
            memory=self._memory(),
            now_s=time.monotonic(),
        )

    async def _wake(self, known: KnownModel) -> None:
        """Ring the bells of a model that must be unloaded, so that its intake stops waiting."""
        # Another worker may hear a bell instead. Then this one's wait ends by its timeout.
        for part in self._context.broker.together(self._context.broker.shards):
            await known.queue.ring(part[0])

    async def _residents(self) -> list[Resident]:
        """Return the models in memory, as the budget sees them."""
        waiting = await self._waiting.among(list(self.by_id))
        # Those taken a moment ago count, too, or a model just loaded would seem to be unpopular.
        await self._context.popularity.add(self._context.ledger.count_new())
        popularity = await self._context.popularity.per_minute()
        # Only after these calls, because a model may be freed during it, and must not be counted.
        in_hand = self._context.ledger.by_model()
        residents: list[Resident] = []
        for name, known in self.by_id.items():
            if known.residence == "unloaded":
                continue
            residents.append(
                Resident(
                    name,
                    known.num_bytes,
                    loaded_s=known.loaded_s,
                    used_s=known.used_s,
                    is_pinned=known.is_pinned,
                    is_busy=bool(in_hand.get(name)),
                    is_wanted=name in waiting,
                    is_leaving=known.must_go,
                    popularity=popularity.get(name, 0.0),
                )
            )
        return residents

    async def _load(self, known: KnownModel) -> None:
        """Load a model in a thread, or note why it cannot be loaded."""
        known.residence = "loading"
        known.waiting_since_s = None
        await self._context.announce()
        begun_s = time.monotonic()
        # Other models go on meanwhile, unless loading changes state that they compute with: that
        # of a GPU, or torch's default dtype.
        done = threading.Event()
        paused: list[threading.Event] = []
        is_apart = known.info.device in ("", "cpu") and known.info.dtype in ("", "float32")
        if not is_apart:
            paused = rest_all(self._context.threads, done)
        try:
            model = await asyncio.to_thread(_loaded, known.again, paused)
        except Exception as error:  # no error of one model may end the others
            known.residence = "unloaded"
            known.note_failure(_reason(known.info.id, error))
            await asyncio.to_thread(give_back_memory)
            await self._context.announce()
            return
        finally:
            done.set()
        self._install(known, model)
        self.num_loads += 1
        took_s = round(time.monotonic() - begun_s, 1)
        logger.info("model loaded again", extra=fields(model=known.info.id, took_s=took_s))
        self._on_loaded(known)
        await self._context.announce()

    async def _retry(self, known: KnownModel, fleet: Fleet, *, has_work: bool) -> None:
        """Try again to load a model when it is time.

        Until then refuse the jobs that wait for it, unless another worker could do them.
        """
        # First the jobs that are being refused have to be ended; see `_refuse_waiting`.
        if self._context.ledger.claims_of(known.info.id):
            return
        if known.retry_at_s <= time.monotonic():
            is_waiting_for_room = await self._load_if_fits(known, may_evict=has_work)
            if known.host is not None or is_waiting_for_room:
                return
        if not self._can_others(known, fleet) and has_work:
            await self._refuse_waiting(known)

    def _can_others(self, known: KnownModel, fleet: Fleet) -> bool:
        """Return whether another worker serves the model without a failure, or will again soon."""
        name = known.info.id
        others: set[str] = set()
        able: set[str] = set()
        for other in fleet.serving(name):
            if other.id == self._context.worker_id:
                continue
            others.add(other.id)
            if name not in other.failures:
                able.add(other.id)

        now_s = time.monotonic()
        if able:
            known.able_others = able
            known.able_at_s = now_s
            return True
        # A worker that could serve it and has gone may have crashed. Its supervisor restarts it.
        has_gone = not known.able_others <= others
        return has_gone and now_s - known.able_at_s < RESTART_S

    async def _refuse_waiting(self, known: KnownModel) -> None:
        """Take jobs that wait for a model, and end them with the reason of its failure.

        No more are taken until these ends are logged.
        """
        failure = known.failure
        assert failure is not None
        error = ModelFailed(f"The model {known.info.id!r} cannot be loaded: {failure.reason}")
        context = self._context
        for shard in context.broker.shards:
            taken = await known.queue.take(shard, _REFUSED_AT_ONCE, is_empty=True)
            for claim in taken.claims:
                job_span = begin(
                    context.tracing,
                    claim.job,
                    epoch=claim.epoch,
                    waited_s=claim.waited_s,
                    worker_id=context.worker_id,
                )
                context.ledger.open(claim, job_span)
                context.outbox.add(claim, error.as_event())


def _reason(model_id: str, error: Exception) -> str:
    """Return a sentence on why loading failed."""
    if isinstance(error, SettingsError):
        return str(error)
    # The error may be our own bug, so it is logged with its traceback.
    logger.error("model loader broke", exc_info=error, extra=fields(model=model_id))
    return f"model {model_id!r}: {reason_of(error)}"


def _loaded(load: Callable[[], LoadedModel], paused: Sequence[threading.Event]) -> LoadedModel:
    """Load a model once all these threads have paused."""
    for event in paused:
        event.wait()
    model = load()
    give_back_memory()
    return model


def _note_waits(unloaded: Sequence[KnownModel], waiting: Collection[str]) -> None:
    """Note since when each of these models has had work. `waiting` are the ids of those with it."""
    now_s = time.monotonic()
    for known in unloaded:
        if known.info.id not in waiting:
            known.waiting_since_s = None
        elif known.waiting_since_s is None:
            known.waiting_since_s = now_s


def turns_of(
    demands: Sequence[Demand],
    popularity: Mapping[str, float],
    *,
    ageing_s: float,
    bonus_s: float,
) -> dict[str, int]:
    """Return the turn of each model with work to be loaded, 0 for the first.

    Room goes to the model that has waited longest, or others would have all the turns. As between
    jobs, a class is worth `ageing_s` of waiting. The model asked for most counts as if it had waited
    `bonus_s` longer, others by their shares of its `popularity`. So none goes before one that has
    waited longer by more than its class and the bonus are worth.
    """
    most = max((popularity.get(demand.model, 0.0) for demand in demands), default=0.0)

    def priority(demand: Demand) -> float:
        seconds = demand.waited_s - ageing_s * demand.rank
        if most > 0:
            seconds += bonus_s * popularity.get(demand.model, 0.0) / most
        return seconds

    ordered = sorted(demands, key=priority, reverse=True)
    return {demand.model: turn for turn, demand in enumerate(ordered)}
