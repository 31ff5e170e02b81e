"""The budget of a worker's memory: which model goes to make room for another.

First the policy by itself, then a worker that serves more models than fit.
"""

import asyncio
import math
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from shared.fleet.popularity import Popularity
from shared.fleet.presence import Presence
from shared.messages import Done, Failed, ModelInfo
from shared.queue.leases import QueuePolicy
from shared.queue.queue_stats import WaitingModels
from shared.settings.settings import SettingsError
from shared.telemetry.metrics import WorkerMetrics
from tests.fixtures.desk import Desk
from tests.fixtures.polling import until
from tests.fixtures.slowness import slowness
from tests.fixtures.worker.services import end_of, task
from worker.engine.runner import RunnerOptions
from worker.host.budget import TURN_S, Budget, Evict, Load, Memory, Refuse, Resident, Verdict, Wait
from worker.host.known_models import Demand, turns_of
from worker.host.loading import LoadedModel, UnloadedModel
from worker.host.service import WorkerService
from worker.runners.echo import Echo

GB = 2**30
UNKNOWN = Memory(total_bytes=0, used_bytes=0)


def resident(
    name: str,
    used_s: float,
    *,
    size: int = GB,
    loaded_s: float = 0.0,
    popularity: float = 0.0,
    **more: bool,
) -> Resident:
    return Resident(name, size, loaded_s, used_s, popularity=popularity, **more)


def decide(
    budget: Budget,
    *residents: Resident,
    memory: Memory = UNKNOWN,
    size: int = GB,
) -> Verdict:
    """Decide on a new model at second 100."""
    return budget.room_for("new", size, residents, memory, now_s=100.0)


def test_there_is_room() -> None:
    """A model is loaded where one more is allowed, or its bytes fit."""
    memory = Memory(total_bytes=10 * GB, used_bytes=7 * GB)

    assert decide(Budget(2), resident("a", 1)) == Load()
    assert decide(Budget(), resident("a", 1), memory=memory) == Load()


def test_the_one_that_was_used_longest_ago_goes() -> None:
    """The model whose last use is the oldest is evicted."""
    assert decide(Budget(2), resident("a", 5), resident("b", 3)) == Evict(("b",))


def test_who_has_work_goes_last_and_only_after_its_turn() -> None:
    """A busy model goes after an idle one, and only when it has been loaded for a turn."""
    fresh_s = 100.0 - TURN_S / 2
    old_s = 100.0 - 2 * TURN_S

    idle = resident("a", 9)
    busy = resident("b", 3, is_busy=True)
    assert decide(Budget(2), idle, busy) == Evict(("a",))

    wanted = resident("a", 9, is_wanted=True)
    busy = resident("b", 99, is_busy=True)
    assert decide(Budget(2), wanted, busy) == Evict(("b",))

    fresh_busy = resident("a", 9, loaded_s=fresh_s, is_busy=True)
    fresh_wanted = resident("b", 3, loaded_s=fresh_s, is_wanted=True)
    assert decide(Budget(2), fresh_busy, fresh_wanted) == Wait()

    old_busy = resident("a", 9, loaded_s=old_s, is_busy=True)
    assert decide(Budget(2), old_busy, fresh_wanted) == Evict(("a",))


def test_of_idle_models_the_least_asked_for_goes() -> None:
    """D80: models for which jobs wait go last, and of the others the least popular one first."""
    loved = resident("loved", 1, popularity=9.0)
    known = resident("known", 3, popularity=2.0)
    other = resident("other", 2, popularity=2.0)
    assert decide(Budget(3), loved, known, other) == Evict(("other",))
    assert decide(Budget(2), loved, known, other) == Evict(("other", "known"))

    wanted = resident("wanted", 1, is_wanted=True)
    assert decide(Budget(2), loved, wanted) == Evict(("loved",))
    busy = resident("busy", 1, is_busy=True)
    assert decide(Budget(2), loved, busy) == Evict(("loved",))

    early = resident("early", 1, is_wanted=True, popularity=9.0)
    late = resident("late", 2, is_wanted=True)
    assert decide(Budget(2), early, late) == Evict(("early",)), "they take turns"


def test_a_pinned_model_stays() -> None:
    """A pinned model is never evicted. Where all are pinned, the refusal says what helps."""
    pinned = resident("a", 1, is_pinned=True)
    assert decide(Budget(2), pinned, resident("b", 9)) == Evict(("b",))

    verdict = decide(Budget(2), pinned, resident("b", 9, is_pinned=True))
    assert isinstance(verdict, Refuse)
    assert "--max-loaded-models" in verdict.reason
    assert "unpin" in verdict.reason


def test_as_many_go_as_give_room_and_no_more() -> None:
    """The models used longest ago go, as few as make room for the new one."""
    memory = Memory(total_bytes=10 * GB, used_bytes=8 * GB)
    residents = [resident("a", 3), resident("b", 1), resident("c", 2), resident("d", 4)]

    assert decide(Budget(), *residents, memory=memory, size=2 * GB) == Evict(("b", "c"))
    assert decide(Budget(), *residents, memory=memory, size=GB // 2) == Load()


def test_somebody_who_is_going_already_is_waited_for() -> None:
    """Nobody else is evicted where a model that leaves already makes enough room."""
    memory = Memory(total_bytes=10 * GB, used_bytes=8 * GB)
    leaving = resident("a", 1, is_leaving=True)
    other = resident("b", 2)

    assert decide(Budget(1), leaving) == Wait()
    assert decide(Budget(), leaving, other, memory=memory, size=GB) == Wait()
    assert decide(Budget(), leaving, other, memory=memory, size=2 * GB) == Evict(("b",))


def test_what_never_fits_is_told_what_would_help() -> None:
    """A model that never fits is refused with the numbers and the setting to change."""
    memory = Memory(total_bytes=10 * GB, used_bytes=4 * GB)

    verdict = decide(Budget(), resident("a", 1), memory=memory, size=8 * GB)

    assert isinstance(verdict, Refuse)
    assert "8.0 GB" in verdict.reason
    assert "3.0 GB of 10.0 GB are in use" in verdict.reason
    assert "--memory-watermark" in verdict.reason


_RESIDENTS = st.lists(
    st.builds(
        Resident,
        id=st.uuids().map(str),
        num_bytes=st.integers(0, 4 * GB),
        loaded_s=st.floats(0, 100),
        used_s=st.floats(0, 100),
        is_pinned=st.booleans(),
        is_busy=st.booleans(),
        is_wanted=st.booleans(),
        is_leaving=st.booleans(),
        popularity=st.floats(0, 100),
    ),
    max_size=6,
    unique_by=lambda resident: resident.id,
)


@given(
    residents=_RESIDENTS,
    most=st.none() | st.integers(1, 4),
    size=st.integers(0, 8 * GB),
    used=st.integers(0, 12 * GB),
)
def test_the_policy_keeps_its_promises(
    residents: list[Resident], most: int | None, size: int, used: int
) -> None:
    """Nothing pinned goes, nothing goes in vain, and a load keeps within the limits."""
    budget = Budget(most)
    memory = Memory(total_bytes=12 * GB, used_bytes=used)

    verdict = budget.room_for("new", size, residents, memory, now_s=100.0)

    if isinstance(verdict, Load):
        fits = used + size <= int(budget.watermark * memory.total_bytes)
        assert fits or size == 0
        assert most is None or len(residents) < most
    if isinstance(verdict, Evict):
        assert verdict.ids
        check_eviction(budget, verdict.ids, residents, memory, size)


def check_eviction(
    budget: Budget,
    evicted_ids: tuple[str, ...],
    residents: list[Resident],
    memory: Memory,
    size: int,
) -> None:
    """Check that there is room once those that are evicted, and those that leave, are gone."""
    left: list[Resident] = []
    freed_bytes = 0
    num_evicted = 0
    for model in residents:
        if model.id in evicted_ids:
            assert not model.is_pinned
            assert not model.is_leaving
            num_evicted += 1
        if model.id in evicted_ids or model.is_leaving:
            freed_bytes += model.num_bytes
        else:
            left.append(model)
    assert num_evicted == len(evicted_ids)

    memory = Memory(memory.total_bytes, memory.used_bytes - freed_bytes)
    assert budget.room_for("new", size, left, memory, now_s=100.0) == Load()


class Shelf:
    """Models of one kind, with a count of how often each is loaded.

    A `poisoned` one cannot be loaded. `on_load` is called with the id of each before it is loaded.
    """

    def __init__(self) -> None:
        self.loads: Counter[str] = Counter()
        self.poisoned: set[str] = set()
        self.on_load: Callable[[str], None] = lambda name: None

    def load(self, name: str) -> LoadedModel:
        self.on_load(name)
        self.loads[name] += 1
        if name in self.poisoned:
            raise SettingsError(f"model {name!r}: its weights are damaged; copy them again.")
        echo = Echo(RunnerOptions("echo", max_batch=4))
        return LoadedModel(info_of(name), echo, partial(self.load, name), fingerprint="f")

    def unloaded(self, name: str) -> UnloadedModel:
        return UnloadedModel(info_of(name), partial(self.load, name))


def info_of(name: str) -> ModelInfo:
    return ModelInfo(name, "echo", "test", context_window=100, max_new_tokens=100, max_batch=4)


@asynccontextmanager
async def serving(
    redis: Redis,
    shelf: Shelf,
    loaded: str,
    unloaded: list[str],
    *,
    max_models: int,
    num_preloaded: int = 0,
    bonus_s: float = 0.0,
) -> AsyncIterator[WorkerService]:
    """Run a worker that starts with one model loaded and loads the others for work that waits."""
    terms = QueuePolicy(lease_s=10, result_ttl_s=60)
    budget = Budget(max_models)
    worker = WorkerService(
        Desk(redis).broker,
        terms,
        drain_timeout_s=1,
        budget=budget,
        num_preloaded=num_preloaded,
        bonus_s=bonus_s,
    )
    worker.unloaded = [shelf.unloaded(name) for name in unloaded]
    stop = asyncio.Event()
    running = asyncio.create_task(worker.run(lambda: [shelf.load(loaded)], stop))

    yield worker

    stop.set()
    assert await running is True


def num_loaded(worker: WorkerService) -> int:
    return sum(model.host is not None for model in worker.models.values())


def number_of(worker: WorkerService, metric: str) -> float:
    """Return the value of a metric without labels."""
    metrics = WorkerMetrics()
    worker.tell(metrics)
    text = metrics.render().decode()
    [value] = re.findall(rf"^{metric} (\S+)", text, re.MULTILINE)
    return float(value)


def num_evictions(worker: WorkerService) -> int:
    return int(number_of(worker, "aios_worker_evictions_total"))


async def test_more_models_than_fit_all_answer(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing fails, and no more models are in memory than may be.

    The models are used round robin, so that the oldest has always gone.
    """
    monkeypatch.setattr("worker.host.known_models.LOOK_S", 0.02)
    shelf = Shelf()
    names = [f"m{number}" for number in range(12)]

    async with serving(redis, shelf, "always", names, max_models=3) as worker:
        most = 0
        for name in [*names, *names[:4]]:
            [job] = await Desk(redis, name).submit(task("abc"))
            assert isinstance(await end_of(redis, job), Done)
            most = max(most, num_loaded(worker))

        assert most == 3
        assert shelf.loads["m0"] == 2, "it had gone, and came back"
        # All that were loaded have gone again, but for the three that are left.
        assert num_evictions(worker) == shelf.loads.total() - 3
        assert number_of(worker, "aios_worker_loads_total") == shelf.loads.total() - 1
        assert number_of(worker, "aios_worker_models_loaded") == 3
        assert number_of(worker, "aios_worker_memory_watermark") == 0.85


async def test_a_working_set_that_does_not_fit_takes_turns(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five models have work all the time and two fit: each gets its turn, and nothing fails.

    No model is loaded while work has waited longer for one that is not in memory.
    """
    monkeypatch.setattr("worker.host.known_models.LOOK_S", 0.02)
    monkeypatch.setattr("worker.host.budget.TURN_S", 0.1)
    shelf = Shelf()
    names = ["m0", "m1", "m2", "m3", "m4"]
    ends: Counter[str] = Counter()
    turns: dict[str, int] = {}
    overtaken: list[tuple[str, str]] = []

    def turns_of_look(*args: Any, **kwargs: Any) -> dict[str, int]:
        """Note the turns of each look."""
        turns.clear()
        turns.update(turns_of(*args, **kwargs))
        return turns

    def check_turn(name: str) -> None:
        for other, turn in turns.items():
            if turn < turns[name] and worker.models[other].residence == "unloaded":
                overtaken.append((name, other))

    async def keep_busy(name: str) -> None:
        """Submit one job after another until every model has answered five."""
        while min(ends[one] for one in names) < 5:
            [job] = await Desk(redis, name).submit(task("abc"))
            end = await end_of(redis, job)
            assert isinstance(end, Done), end
            ends[name] += 1

    monkeypatch.setattr("worker.host.known_models.turns_of", turns_of_look)
    async with serving(redis, shelf, names[0], names[1:], max_models=2) as worker:
        shelf.on_load = check_turn
        await asyncio.gather(*[keep_busy(name) for name in names])
        assert num_loaded(worker) <= 2
        assert overtaken == []


async def test_room_is_for_the_first_that_waits_for_it(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room that is freed during a look goes to the model for which it was made, not to a later one.

    Here each look lasts until the models that have to go have gone.
    """
    loaded: list[str] = []
    shelf = Shelf()
    shelf.on_load = loaded.append
    per_minute = Popularity.per_minute

    def have_gone() -> bool:
        return not any(model.must_go for model in worker.models.values())

    async def per_minute_after_evictions(self: Popularity) -> dict[str, float]:
        await until(have_gone, "the models have gone")
        return await per_minute(self)

    monkeypatch.setattr(Popularity, "per_minute", per_minute_after_evictions)
    [first] = await Desk(redis, "m1").submit(task("abc"))
    [second] = await Desk(redis, "m2").submit(task("abc"))
    async with serving(redis, shelf, "m0", ["m1", "m2"], max_models=1) as worker:
        assert isinstance(await end_of(redis, first), Done)
        assert isinstance(await end_of(redis, second), Done)
    assert loaded == ["m0", "m1", "m2"]


async def test_a_poisoned_model_harms_nobody_else(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that cannot be loaded fails its own job with the reason, and no other job."""
    monkeypatch.setattr("worker.host.known_models.LOOK_S", 0.02)
    shelf = Shelf()
    shelf.poisoned.add("bad")

    async with serving(redis, shelf, "always", ["bad", "good"], max_models=2):
        [bad] = await Desk(redis, "bad").submit(task("abc"))
        [good] = await Desk(redis, "good").submit(task("abc"))

        end = await end_of(redis, bad)
        assert isinstance(end, Failed)
        assert end.code == "model_failed"
        assert end.message.endswith("its weights are damaged; copy them again.")
        assert isinstance(await end_of(redis, good), Done)

        [always] = await Desk(redis, "always").submit(task("abc"))
        assert isinstance(await end_of(redis, always), Done)


async def test_the_models_asked_for_most_are_there_before_they_are_asked_for(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D79: a worker that starts again loads them, as many as are set, and while there is room."""
    monkeypatch.setattr("worker.host.known_models.LOOK_S", 0.02)
    names = [f"m{number}" for number in range(4)]
    async with serving(redis, Shelf(), "always", names, max_models=5):
        for name, times in {"m1": 2, "m2": 4, "m3": 3, "always": 5}.items():
            jobs = await Desk(redis, name).submit(*[task("abc")] * times)
            for job in jobs:
                assert isinstance(await end_of(redis, job), Done)
        await until(lambda: is_counted(redis, 14), "all jobs were counted")

    shelf = Shelf()
    async with serving(redis, shelf, "always", names, max_models=5, num_preloaded=3) as worker:
        await until(lambda: num_loaded(worker) == 3, "the three are in memory")
        await asyncio.sleep(0.2)
        assert shelf.loads == {"always": 1, "m2": 1, "m3": 1}
        assert num_evictions(worker) == 0

    shelf = Shelf()
    shelf.poisoned.add("m2")
    async with serving(redis, shelf, "m0", names[1:], max_models=2, num_preloaded=4) as worker:
        await until(lambda: num_loaded(worker) == 2, "there is no more room")
        await asyncio.sleep(0.2)
        # A model that cannot be loaded may be tried again, but none makes room for another.
        assert shelf.loads["m2"] >= 1
        assert (shelf.loads["m0"], shelf.loads["m1"], shelf.loads["m3"]) == (1, 0, 1)
        assert num_evictions(worker) == 0


DEMANDS = st.dictionaries(
    st.sampled_from("abcdef"), st.tuples(st.floats(0, 60), st.integers(0, 2)), min_size=1
)
RATES = st.dictionaries(st.sampled_from("abcdefg"), st.floats(0, 1000))


@given(DEMANDS, RATES, st.floats(0.1, 20), st.floats(0, 10))
def test_class_and_popularity_are_worth_some_seconds_of_waiting_and_no_more(
    given_demands: dict[str, tuple[float, int]],
    rates: dict[str, float],
    ageing_s: float,
    bonus_s: float,
) -> None:
    """D75: of two models the one whose work has waited longer is loaded first, if longer by more
    than classes and bonus. Of two alike it is the one of the better class, or asked for more."""
    demands = [Demand(name, waited_s, rank) for name, (waited_s, rank) in given_demands.items()]
    turns = turns_of(demands, rates, ageing_s=ageing_s, bonus_s=bonus_s)
    assert sorted(turns.values()) == list(range(len(demands)))
    most = max((rates.get(demand.model, 0.0) for demand in demands), default=0.0)
    for one in demands:
        for other in demands:
            one_is_first = turns[one.model] < turns[other.model]
            headstart_s = one.waited_s - other.waited_s
            if headstart_s > bonus_s + ageing_s * max(0, one.rank - other.rank) + 1e-9:
                assert one_is_first
            if headstart_s >= bonus_s + 1e-9 and one.rank <= other.rank:
                assert one_is_first
            is_asked_for_more = (
                rates.get(one.model, 0.0) - rates.get(other.model, 0.0) > 1e-6 * most
            )
            if headstart_s == 0 and bonus_s > 0.1 and is_asked_for_more:
                assert one_is_first or one.rank > other.rank
            if headstart_s == 0 and one.rank < other.rank and ageing_s > bonus_s + 1e-9:
                assert one_is_first


@given(DEMANDS, RATES)
def test_without_a_bonus_popularity_does_not_count(
    given_demands: dict[str, tuple[float, int]], rates: dict[str, float]
) -> None:
    demands = [Demand(name, waited_s, rank) for name, (waited_s, rank) in given_demands.items()]
    assert turns_of(demands, rates, ageing_s=10, bonus_s=0) == turns_of(
        demands, {}, ageing_s=10, bonus_s=5
    )


@pytest.mark.parametrize(("bonus_s", "expected"), [(2.0, ["m2", "m1"]), (0.0, ["m1", "m2"])])
async def test_of_two_models_with_work_the_one_asked_for_more_is_loaded_first(
    redis: Redis, monkeypatch: pytest.MonkeyPatch, bonus_s: float, expected: list[str]
) -> None:
    """D75: both jobs wait since before the worker came. All of them are answered."""
    monkeypatch.setattr("worker.host.known_models.LOOK_S", 0.02)
    await Popularity(Desk(redis).broker, 600.0).add({"m1": 1, "m2": 9})
    jobs = []
    for name in ("m1", "m2"):
        jobs += await Desk(redis, name).submit(task("abc"))
    shelf = Shelf()
    async with serving(redis, shelf, "always", ["m1", "m2"], max_models=3, bonus_s=bonus_s):
        for job in jobs:
            assert isinstance(await end_of(redis, job), Done)
    assert list(shelf.loads) == ["always", *expected]


async def test_of_two_models_with_work_the_one_of_the_better_class_is_loaded_first(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D75: however much the other is asked for. The classes are those of all shards."""
    monkeypatch.setattr("worker.host.known_models.LOOK_S", 0.02)
    await Popularity(Desk(redis).broker, 600.0).add({"m1": 9})
    [bulk] = await Desk(redis, "m1").submit(task("abc"), priority="bulk")
    [other] = await Desk(redis, "m2").submit(task("abc"), priority="bulk")
    [urgent] = await Desk(redis, "m2").submit(task("abc"), priority="interactive")
    assert await WaitingModels(Desk(redis).broker).among(["m0", "m1", "m2"]) == {"m1": 2, "m2": 0}
    shelf = Shelf()
    async with serving(redis, shelf, "always", ["m1", "m2"], max_models=3, bonus_s=2.0):
        for job in (bulk, other, urgent):
            assert isinstance(await end_of(redis, job), Done)
    assert list(shelf.loads) == ["always", "m2", "m1"]


async def test_a_model_that_nobody_asked_for_before_gets_its_turn_beside_a_popular_one(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D75: both cannot be in memory at once, and the popular one always has work."""
    monkeypatch.setattr("worker.host.known_models.LOOK_S", 0.02)
    monkeypatch.setattr("worker.host.budget.TURN_S", 0.05)
    await Popularity(Desk(redis).broker, 600.0).add({"popular": 1000})
    shelf = Shelf()
    num_answered = 0
    is_over = False

    async def keep_busy() -> None:
        nonlocal num_answered
        while not is_over:
            [job] = await Desk(redis, "popular").submit(task("abc"))
            assert isinstance(await end_of(redis, job), Done)
            num_answered += 1

    async with serving(redis, shelf, "popular", ["rare"], max_models=1, bonus_s=0.3):
        loads = asyncio.gather(keep_busy(), keep_busy())
        await until(lambda: num_answered > 0, "the popular one is busy")
        for _ in range(2):
            [job] = await Desk(redis, "rare").submit(task("abc"))
            assert isinstance(await end_of(redis, job), Done)
            # Up to two answers may have been on their way while the rare one was in memory.
            enough = num_answered + 3
            await until(lambda enough=enough: num_answered >= enough, "the popular one goes on")
        is_over = True
        await loads
    assert shelf.loads["rare"] == 2


async def is_counted(redis: Redis, num_jobs: int) -> bool:
    """Return whether so many jobs were added to the popularity of models."""
    rates = await Popularity(Desk(redis).broker, 600.0).per_minute()
    return sum(rates.values()) > 0.95 * num_jobs * 60 * math.log(2) / 600


async def test_a_model_that_was_put_away_is_loaded_only_for_work(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An order to unload a model is not undone by loading it ahead."""
    monkeypatch.setattr("worker.host.known_models.LOOK_S", 0.02)
    shelf = Shelf()
    async with serving(redis, shelf, "always", ["m0"], max_models=2, num_preloaded=2) as worker:
        [job] = await Desk(redis, "m0").submit(task("abc"))
        assert isinstance(await end_of(redis, job), Done)
        await until(lambda: is_counted(redis, 1), "it is popular")
        await Presence(redis).order_unload("m0")
        await until(lambda: worker.models["m0"].residence == "unloaded", "it has gone")
        await asyncio.sleep(0.3)
        assert shelf.loads["m0"] == 1

        [job] = await Desk(redis, "m0").submit(task("abc"))
        assert isinstance(await end_of(redis, job), Done)
        assert shelf.loads["m0"] == 2


async def test_many_known_models_cost_an_idle_worker_nearly_nothing(redis: Redis) -> None:
    """200 models without work take less than a hundredth of a core.

    That includes their leases, the looks at their queues and the announcements.
    """
    shelf = Shelf()
    names = [f"m{number}" for number in range(200)]

    async with serving(redis, shelf, "always", names, max_models=3) as worker:
        await until(lambda: worker.not_ready() is None, "it is ready")
        # The quietest look counts: other work on the machine only adds to the others.
        shares: list[float] = []
        for _ in range(10):
            start_s = time.monotonic()
            start_cpu_s = time.process_time()
            await asyncio.sleep(2.0)
            cpu_s = time.process_time() - start_cpu_s
            shares.append(cpu_s / (time.monotonic() - start_s) / slowness())
            if min(shares) < 0.01:
                break
    assert min(shares) < 0.01, shares
