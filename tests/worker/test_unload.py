"""Unloading of a model in a worker.

Jobs in hand end, memory comes back, and the next job loads the model again.
"""

import asyncio
import gc
import weakref
from pathlib import Path

import pytest
from redis.asyncio import Redis

from shared.fleet.presence import Presence
from shared.messages import Generate, ModelInfo, Sampling, WorkerInfo
from shared.settings.settings import ModelEntry, Settings
from tests.fixtures.desk import Desk
from tests.fixtures.polling import DEADLINE_S, until
from tests.fixtures.tiny_hrm_text import write_tiny
from tests.fixtures.unloading import MAX_BATCH, at_work, echo, ended, model, residence, told, unload
from tests.fixtures.worker.services import Gated, log_fields_of, long_task, task
from worker.engine.runner import Runner, RunnerOptions
from worker.host import known_models, model_host
from worker.host.loading import LoadedModel, load_models


async def test_d22_load_infer_unload_infer_again(redis: Redis, tmp_path: Path) -> None:
    """A model that is loaded again, after all its memory was freed, answers as before."""
    write_tiny(tmp_path)
    settings = Settings(
        models=(ModelEntry(id="m", path=str(tmp_path)),), max_batch_size=2, device="cpu", threads=1
    )
    desk = Desk(redis)
    task = Generate("2x + 3 = 9", Sampling(max_tokens=8, seed=3))
    async with at_work(redis, lambda: load_models(settings), lease_s=10) as worker:
        [first] = await desk.submit(task)
        await ended(redis, first)

        # No variable of the test may keep the runner alive.
        engine = worker.models["m"].host.engine
        parts = {
            "runner": weakref.ref(engine.runner),
            "net": weakref.ref(engine.runner.net),  # type: ignore[attr-defined]
            "keys": weakref.ref(engine.runner.store.keys),  # type: ignore[attr-defined]
            "prefix tree": weakref.ref(engine.scheduler.cache.tree),  # type: ignore[union-attr]
        }
        del engine
        await unload(redis, worker)
        gc.collect()
        for name, part in parts.items():
            assert part() is None, name
        assert residence(worker) == "unloaded"
        fleet = await Presence(redis).fleet()
        assert fleet.residences("m") == ["unloaded"]

        [second] = await desk.submit(task)
        await ended(redis, second)
        assert residence(worker) == "loaded"
        first_text, _ = await log_fields_of(redis, first)
        second_text, _ = await log_fields_of(redis, second)
        assert first_text != ""
        assert second_text == first_text


async def test_memory_is_free_when_it_is_given_back(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing refers to a model any more when its memory is returned to the system.

    That is before the worker tells that the model is unloaded.
    """
    runners: list[weakref.ref[Runner]] = []
    are_alive: list[bool] = []
    give_back = model_host.give_back_memory

    def give_back_and_look() -> None:
        give_back()
        are_alive.append(runners[-1]() is not None)

    monkeypatch.setattr(model_host, "give_back_memory", give_back_and_look)
    async with at_work(redis, lambda: [model("m", echo)]) as worker:
        for _ in range(2):
            [job] = await Desk(redis).submit(task("abc"))
            await ended(redis, job)
            runners.append(weakref.ref(worker.models["m"].host.engine.runner))
            await unload(redis, worker)
    assert are_alive == [False, False]


async def test_jobs_in_hand_end_and_queued_ones_wait_for_the_model(redis: Redis) -> None:
    """A worker that is to unload ends the jobs in hand, and then loads again for the queued ones.

    It obeys the order only after the jobs in hand have ended.
    """
    gated = Gated(RunnerOptions("echo", max_batch=MAX_BATCH))
    desk = Desk(redis)
    made: list[Runner] = []

    def make() -> Runner:
        runner = echo() if made else gated
        made.append(runner)
        return runner

    async with at_work(redis, lambda: [model("m", make)], lease_s=30) as worker:
        jobs = await desk.submit(*[long_task(9)] * (MAX_BATCH + 2))
        await until(lambda: gated.num_steps == 1, "a step is under way")
        order = await Presence(redis).order_unload("m")
        await until(lambda: residence(worker) == "unloading", "the order is heard")
        assert await desk.counts() == (2, MAX_BATCH)
        assert not await told(redis, worker, "m", order)

        gated.gate.set()
        for job in jobs:
            await ended(redis, job)
            assert await log_fields_of(redis, job) == ("abc" * 3, [1])
        await until(lambda: told(redis, worker, "m", order), "the worker obeyed")
        assert len(made) == 2
        assert worker.models["m"].host.intake.free_slots == MAX_BATCH


async def test_another_model_goes_on_while_one_is_loaded_again(redis: Redis) -> None:
    """On a CPU, jobs of another model are answered while a job waits for its model to load.

    The job that waits stays in the queue.
    """
    loading = asyncio.Event()
    may_load = asyncio.Event()
    loop = asyncio.get_running_loop()
    made = []

    def make() -> Runner:
        made.append(1)
        if len(made) > 1:
            loop.call_soon_threadsafe(loading.set)
            asyncio.run_coroutine_threadsafe(may_load.wait(), loop).result(20)
        return echo()

    async with at_work(redis, lambda: [model("m", make), model("other", echo)]) as worker:
        await unload(redis, worker)
        assert residence(worker, "other") == "loaded"
        [waiting] = await Desk(redis).submit(task("abc"))
        await asyncio.wait_for(loading.wait(), DEADLINE_S)
        fleet = await Presence(redis).fleet()
        assert fleet.residences("m") == ["loading"]

        [job] = await Desk(redis, "other").submit(long_task(50))
        done = await ended(redis, job)
        assert done.num_completion_tokens == 50
        assert await Desk(redis).counts() == (1, 0)

        may_load.set()
        await ended(redis, waiting)
    _, epochs = await log_fields_of(redis, waiting)
    assert epochs == [1]


async def test_a_model_on_a_gpu_is_loaded_while_the_others_stand_still(redis: Redis) -> None:
    """On a GPU, the other models make no step while one is loaded.

    Their jobs keep their leases meanwhile, and go on after it.
    """
    lease_s = 3
    gated = Gated(RunnerOptions("echo", max_batch=MAX_BATCH))
    steps_while_loading: list[int] = []

    def make() -> Runner:
        before = gated.num_steps
        # A load takes a while.
        asyncio.run_coroutine_threadsafe(asyncio.sleep(1.5 * lease_s), loop).result(20)
        steps_while_loading.append(gated.num_steps - before)
        return echo()

    def on_gpu() -> LoadedModel:
        return LoadedModel(
            ModelInfo("m", "echo", "test", 100, 100, 4, device="cuda:0"), make(), on_gpu
        )

    loop = asyncio.get_running_loop()
    gated.gate.set()
    async with at_work(
        redis, lambda: [on_gpu(), model("other", lambda: gated)], lease_s=lease_s
    ) as worker:
        await unload(redis, worker)
        [busy] = await Desk(redis, "other").submit(long_task(3000))
        await until(lambda: gated.num_steps > 0, "the other one is at work")

        [job] = await Desk(redis).submit(task("abc"))
        await ended(redis, job)
        done = await ended(redis, busy)
        assert done.num_completion_tokens == 3000

    _, epochs = await log_fields_of(redis, busy)
    assert epochs == [1]
    # The load at the start, and the second one.
    assert steps_while_loading == [0, 0]


async def test_work_is_left_to_others_that_have_the_model(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker loads a model again only if the others have unloaded it or let its job wait.

    Waiting means longer than `_PATIENCE_S`.
    """
    presence = Presence(redis, ttl_s=60)
    info = model("m", echo).info
    async with at_work(redis, lambda: [model("m", echo)]) as worker:
        await unload(redis, worker)
        await presence.announce(WorkerInfo("other", "ready", (info,)))
        [first] = await Desk(redis).submit(task("abc"))
        await until(lambda: worker.models["m"].waiting_since_s is not None, "it is seen")

        await presence.announce(WorkerInfo("other", "ready", (info,), residences={"m": "loading"}))
        assert residence(worker) == "unloaded"

        await presence.announce(WorkerInfo("other", "ready", (info,), residences={"m": "unloaded"}))
        await ended(redis, first)

        await unload(redis, worker)
        await presence.announce(WorkerInfo("other", "ready", (info,)))
        monkeypatch.setattr(known_models, "PATIENCE_S", 0.0)
        [second] = await Desk(redis).submit(task("abc"))
        await ended(redis, second)


async def test_an_order_of_before_does_not_concern_a_worker(redis: Redis) -> None:
    """A worker obeys no order that is older than itself, and stays unloaded when Redis is
    emptied."""
    order = await Presence(redis).order_unload("m")
    async with at_work(redis, lambda: [model("m", echo)]) as worker:
        [job] = await Desk(redis).submit(task("abc"))
        await ended(redis, job)
        assert residence(worker) == "loaded"
        assert worker.orders == {"m": order}

        await unload(redis, worker)
        # The second order is obeyed at once: the model is unloaded already.
        await unload(redis, worker)

        await redis.flushall()
        await worker.announce()
        assert residence(worker) == "unloaded"


async def test_a_worker_leaves_while_it_unloads_or_is_unloaded(redis: Redis) -> None:
    """A worker leaves with its model unloaded, or in the middle of unloading, and loses no job."""
    gated = Gated(RunnerOptions("echo", max_batch=MAX_BATCH))
    async with at_work(redis, lambda: [model("m", echo)]) as worker:
        await unload(redis, worker)

    [job] = await Desk(redis).submit(long_task(5))
    async with at_work(redis, lambda: [model("m", lambda: gated)], lease_s=30) as worker:
        await until(lambda: gated.num_steps == 1, "a step is under way")
        await Presence(redis).order_unload("m")
        await until(lambda: residence(worker) == "unloading", "the order is heard")

    gated.gate.set()
    async with at_work(redis, lambda: [model("m", echo)]):
        await ended(redis, job)
    text, _ = await log_fields_of(redis, job)
    assert text == "abcab"
