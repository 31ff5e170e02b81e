"""Which model goes to make room for another: the policy by itself, and a worker that serves more
models than fit."""

import asyncio
import re
import time
from collections import Counter
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from shared.messages import Done, Failed, ModelInfo
from shared.queue.leases import QueuePolicy
from shared.settings.settings import SettingsError
from shared.telemetry.metrics import WorkerMetrics
from tests.fixtures.desk import Desk
from tests.fixtures.polling import until
from tests.fixtures.slowness import slowness
from tests.fixtures.worker.services import end_of, task
from worker.engine.runner import RunnerOptions
from worker.host.budget import TURN_S, Budget, Evict, Load, Memory, Refuse, Resident, Wait
from worker.host.loading import LoadedModel, UnloadedModel
from worker.host.service import WorkerService
from worker.runners.echo import Echo

GB = 2**30
UNKNOWN = Memory(0, 0)


def resident(
    name: str, used_s: float, *, size: int = GB, loaded_s: float = 0.0, **more: bool
) -> Resident:
    return Resident(name, size, loaded_s, used_s, **more)


def decide(
    budget: Budget,
    *residents: Resident,
    memory: Memory = UNKNOWN,
    size: int = GB,
    now_s: float = 100.0,
):
    return budget.room_for("new", size, residents, memory, now_s)


def test_there_is_room() -> None:
    assert decide(Budget(2), resident("a", 1)) == Load()
    assert decide(Budget(), resident("a", 1), memory=Memory(10 * GB, 7 * GB)) == Load()


def test_the_one_that_was_used_longest_ago_goes() -> None:
    assert decide(Budget(2), resident("a", 5), resident("b", 3)) == Evict(("b",))


def test_who_has_work_goes_last_and_only_after_its_turn() -> None:
    fresh = 100.0 - TURN_S / 2
    old = 100.0 - 2 * TURN_S
    assert decide(Budget(2), resident("a", 9), resident("b", 3, is_busy=True)) == Evict(("a",))
    assert decide(
        Budget(2), resident("a", 9, is_wanted=True), resident("b", 99, is_busy=True)
    ) == Evict(("b",))
    busy = [
        resident("a", 9, loaded_s=fresh, is_busy=True),
        resident("b", 3, loaded_s=fresh, is_wanted=True),
    ]
    assert decide(Budget(2), *busy) == Wait()
    busy = [
        resident("a", 9, loaded_s=old, is_busy=True),
        resident("b", 3, loaded_s=fresh, is_wanted=True),
    ]
    assert decide(Budget(2), *busy) == Evict(("a",))


def test_a_pinned_model_stays() -> None:
    assert decide(Budget(2), resident("a", 1, is_pinned=True), resident("b", 9)) == Evict(("b",))
    verdict = decide(Budget(2), resident("a", 1, is_pinned=True), resident("b", 9, is_pinned=True))
    assert isinstance(verdict, Refuse)
    assert "--max-loaded-models" in verdict.reason
    assert "unpin" in verdict.reason


def test_as_many_go_as_give_room_and_no_more() -> None:
    memory = Memory(10 * GB, 8 * GB)
    residents = [resident("a", 3), resident("b", 1), resident("c", 2), resident("d", 4)]
    assert decide(Budget(), *residents, memory=memory, size=2 * GB) == Evict(("b", "c"))
    assert decide(Budget(), *residents, memory=memory, size=GB // 2) == Load()


def test_somebody_who_is_going_already_is_waited_for() -> None:
    assert decide(Budget(1), resident("a", 1, is_leaving=True)) == Wait()
    memory = Memory(10 * GB, 8 * GB)
    going = resident("a", 1, is_leaving=True)
    other = resident("b", 2)
    assert decide(Budget(), going, other, memory=memory, size=GB) == Wait()
    assert decide(Budget(), going, other, memory=memory, size=2 * GB) == Evict(("b",))


def test_what_never_fits_is_told_what_would_help() -> None:
    verdict = decide(Budget(), resident("a", 1), memory=Memory(10 * GB, 4 * GB), size=8 * GB)
    assert isinstance(verdict, Refuse)
    assert "8.0 GB" in verdict.reason
    assert "3.0 GB of 10.0 GB are in use" in verdict.reason
    assert "--memory-watermark" in verdict.reason


_RESIDENTS = st.lists(
    st.builds(
        Resident,
        st.uuids().map(str),
        st.integers(0, 4 * GB),
        st.floats(0, 100),
        st.floats(0, 100),
        *[st.booleans()] * 4,
    ),
    max_size=6,
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
    """Nothing pinned goes, nothing goes in vain, and what may be loaded keeps within the limits."""
    budget = Budget(most)
    memory = Memory(12 * GB, used)
    verdict = budget.room_for("new", size, residents, memory, 100.0)
    by_id = {item.id: item for item in residents}
    fits = used + size <= int(budget.watermark * memory.total_bytes)
    if isinstance(verdict, Load):
        assert fits or size == 0
        assert most is None or len(residents) < most
    if isinstance(verdict, Evict):
        assert verdict.ids
        assert not any(by_id[name].is_pinned or by_id[name].is_leaving for name in verdict.ids)
        left = [item for item in residents if item.id not in verdict.ids and not item.is_leaving]
        again = budget.room_for(
            "new", size, left, Memory(memory.total_bytes, used - _sizes(residents, left)), 100.0
        )
        assert again == Load()


def _sizes(before: list[Resident], after: list[Resident]) -> int:
    return sum(item.num_bytes for item in before) - sum(item.num_bytes for item in after)


class Shelf:
    """Models of one kind that count how often they are loaded, and which are in memory."""

    def __init__(self) -> None:
        self.loads: Counter[str] = Counter()
        self.poisoned: set[str] = set()

    def load(self, name: str) -> LoadedModel:
        self.loads[name] += 1
        if name in self.poisoned:
            raise SettingsError(f"model {name!r}: its weights are damaged; copy them again.")
        info = ModelInfo(name, "echo", "test", 100, 100, 4)
        return LoadedModel(
            info,
            Echo(RunnerOptions("echo", max_batch=4)),
            partial(self.load, name),
            fingerprint="f",
        )

    def unloaded(self, name: str) -> UnloadedModel:
        return UnloadedModel(ModelInfo(name, "echo", "test", 100, 100, 4), partial(self.load, name))


def worker_of(redis: Redis, most: int, *unloaded: UnloadedModel) -> WorkerService:
    terms = QueuePolicy(lease_s=10, result_ttl_s=60)
    worker = WorkerService(Desk(redis).broker, terms, drain_timeout_s=1, budget=Budget(most))
    worker.unloaded = list(unloaded)
    return worker


def num_loaded(worker: WorkerService) -> int:
    return sum(model.host is not None for model in worker.models.values())


async def test_more_models_than_fit_all_answer(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Round robin, so that the oldest has always gone: nothing fails, and no more are in memory
    than may be."""
    monkeypatch.setattr("worker.host.known_models.LOOK_S", 0.02)
    shelf = Shelf()
    names = [f"m{number}" for number in range(12)]
    worker = worker_of(redis, 3, *map(shelf.unloaded, names))
    stop = asyncio.Event()
    running = asyncio.create_task(worker.run(lambda: [shelf.load("always")], stop))
    most = 0
    for name in [*names, *names[:4]]:
        [job] = await Desk(redis, name).submit(task("abc"))
        assert isinstance(await end_of(redis, job), Done)
        most = max(most, num_loaded(worker))
    assert most == 3
    assert shelf.loads["m0"] == 2, "it had gone, and came back"
    metrics = WorkerMetrics()
    worker.tell(metrics)
    [told] = re.findall(
        r"^aios_worker_evictions_total (\d+)", metrics.render().decode(), re.MULTILINE
    )
    assert int(told) == sum(shelf.loads.values()) - 3, (
        "all that were loaded but those that are left"
    )
    stop.set()
    assert await running is True


async def test_a_working_set_that_does_not_fit_takes_turns(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five models are asked all the time and two fit: each gets its turn, and nothing fails."""
    monkeypatch.setattr("worker.host.known_models.LOOK_S", 0.02)
    monkeypatch.setattr("worker.host.budget.TURN_S", 0.1)
    shelf = Shelf()
    names = [f"m{number}" for number in range(5)]
    worker = worker_of(redis, 2, *map(shelf.unloaded, names[1:]))
    stop = asyncio.Event()
    running = asyncio.create_task(worker.run(lambda: [shelf.load(names[0])], stop))
    ends: Counter[str] = Counter()

    async def ask(name: str) -> None:
        while min(ends[one] for one in names) < 5:
            [job] = await Desk(redis, name).submit(task("abc"))
            end = await end_of(redis, job)
            assert isinstance(end, Done), end
            ends[name] += 1

    await asyncio.gather(*[ask(name) for name in names])
    assert num_loaded(worker) <= 2
    stop.set()
    assert await running is True


async def test_a_poisoned_model_harms_nobody_else(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.host.known_models.LOOK_S", 0.02)
    shelf = Shelf()
    shelf.poisoned.add("bad")
    worker = worker_of(redis, 2, shelf.unloaded("bad"), shelf.unloaded("good"))
    stop = asyncio.Event()
    running = asyncio.create_task(worker.run(lambda: [shelf.load("always")], stop))
    [bad] = await Desk(redis, "bad").submit(task("abc"))
    [good] = await Desk(redis, "good").submit(task("abc"))
    end = await end_of(redis, bad)
    assert isinstance(end, Failed)
    assert (end.code, end.message.endswith("its weights are damaged; copy them again.")) == (
        "model_failed",
        True,
    )
    assert isinstance(await end_of(redis, good), Done)
    [always] = await Desk(redis, "always").submit(task("abc"))
    assert isinstance(await end_of(redis, always), Done)
    stop.set()
    assert await running is True


async def test_many_known_models_cost_an_idle_worker_nearly_nothing(redis: Redis) -> None:
    """200 models that nobody asks: less than a hundredth of a core, leases, looks and announcements
    together."""
    shelf = Shelf()
    worker = worker_of(redis, 3, *[shelf.unloaded(f"m{number}") for number in range(200)])
    stop = asyncio.Event()
    running = asyncio.create_task(worker.run(lambda: [shelf.load("always")], stop))
    await until(lambda: worker._state == "ready", "it is ready")
    shares = []
    for _ in range(3):
        began_s = time.monotonic()
        cpu_s = time.process_time()
        await asyncio.sleep(2.0)
        shares.append((time.process_time() - cpu_s) / (time.monotonic() - began_s))
    stop.set()
    assert await running is True
    assert min(shares) < 0.01 * max(1.0, slowness()), shares
