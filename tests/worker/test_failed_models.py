"""A model that cannot be loaded again fails its own requests with a reason.

It comes back by itself. Neither the worker's other models suffer nor, where another worker has it,
the model itself.
"""

import asyncio
import shutil
from pathlib import Path

import pytest
from redis.asyncio import Redis

from shared.fleet.presence import Fleet, Presence
from shared.messages import Done, Failed, Job, LoadFailure, ModelInfo, WorkerInfo
from shared.settings.settings import ModelEntry, Settings, SettingsError
from tests.fixtures.desk import Desk
from tests.fixtures.polling import DEADLINE_S, until
from tests.fixtures.unloading import at_work, echo, ended, model, residence, unload
from tests.fixtures.worker.broken_models import write_model
from tests.fixtures.worker.services import end_of, long_task, service, task
from worker.engine.runner import Runner
from worker.host import known_models
from worker.host.loading import LoadedModel, load_known_models, load_models
from worker.host.service import WorkerService

GONE = SettingsError("model 'm': There is no model at /srv/models/gone: the path does not exist.")
# A client is not told the directory.
REASON = "There is no model at gone: the path does not exist."


class Files:
    """The files of a model; a load raises `error` for as long as one is set."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.num_loads = 0

    def make(self) -> Runner:
        self.num_loads += 1
        if self.error is not None:
            raise self.error
        return echo()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_models, "LOOK_S", 0.05)
    monkeypatch.setattr(known_models, "FIRST_RETRY_S", 0.05)
    monkeypatch.setattr(known_models, "LONGEST_RETRY_S", 0.2)


async def failure(redis: Redis) -> LoadFailure | None:
    return (await Presence(redis).fleet()).failure("m")


async def failed(redis: Redis, job: Job) -> Failed:
    end = await asyncio.wait_for(end_of(redis, job), DEADLINE_S)
    assert isinstance(end, Failed)
    return end


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (GONE, REASON),
        (MemoryError(), "MemoryError"),
        (AttributeError("a slip of ours"), "AttributeError: a slip of ours"),
    ],
)
async def test_only_its_own_requests_fail_until_it_is_back(
    redis: Redis, error: Exception, reason: str
) -> None:
    """Requests for the failed model end with `model_failed`; those for another model go on.

    Once its files are back, the model is loaded without any order.
    """
    files = Files()
    desk = Desk(redis)
    other = Desk(redis, "other")
    async with at_work(
        redis, lambda: [model("m", files.make), model("other", echo)], lease_s=10
    ) as worker:
        await unload(redis, worker)
        files.error = error
        [busy] = await other.submit(long_task(300))
        for job in await desk.submit(task("abc"), task("abc")):
            end = await failed(redis, job)
            assert end.code == "model_failed"
            assert end.message.endswith(reason)
        load_failure = await failure(redis)
        assert load_failure is not None
        assert load_failure.reason == reason
        assert await desk.counts() == (0, 0)
        assert (await ended(redis, busy)).num_completion_tokens == 300
        [after] = await other.submit(task("abc"))
        await ended(redis, after)

        files.error = None
        await until(lambda: residence(worker) == "loaded", "it comes back by itself")
        await worker.announce()
        assert await failure(redis) is None
        [late] = await desk.submit(task("abc"))
        await ended(redis, late)


async def test_an_answer_of_another_worker_is_waited_for(redis: Redis) -> None:
    """No job is refused while another worker may still load the model."""
    files = Files()
    desk = Desk(redis)
    presence = Presence(redis, ttl_s=60)
    info = model("m", echo).info
    async with at_work(redis, lambda: [model("m", files.make)]) as worker:
        await unload(redis, worker)
        files.error = GONE
        await presence.announce(WorkerInfo("other", "ready", (info,), residences={"m": "unloaded"}))

        [job] = await desk.submit(task("abc"))
        await until(lambda: files.num_loads > 3, "it has tried again")
        assert await desk.counts() == (1, 0)
        assert await failure(redis) is None

        await presence.announce(
            WorkerInfo(
                "other",
                "ready",
                (info,),
                residences={"m": "unloaded"},
                failures={"m": LoadFailure("no")},
            )
        )
        assert (await failed(redis, job)).code == "model_failed"


async def test_a_worker_that_had_it_and_died_is_waited_for(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No job is refused while a worker that had the model and died may still come back.

    It would go on with its answers.
    """
    files = Files()
    desk = Desk(redis)
    presence = Presence(redis, ttl_s=60)
    info = model("m", echo).info
    async with at_work(redis, lambda: [model("m", files.make)]) as worker:
        await presence.announce(WorkerInfo("other", "ready", (info,), residences={"m": "unloaded"}))
        await unload(redis, worker)
        files.error = GONE
        [job] = await desk.submit(task("abc"))
        await until(lambda: files.num_loads > 4, "it has tried again, and seen the other one")

        await presence.leave("other")
        num_loads = files.num_loads
        await until(lambda: files.num_loads > num_loads + 3, "it goes on trying")
        assert await desk.counts() == (1, 0)

        monkeypatch.setattr(known_models, "RESTART_S", 0.0)
        assert (await failed(redis, job)).code == "model_failed"


async def test_an_order_to_unload_ends_the_trying(redis: Redis) -> None:
    """After an order to unload, the failure is forgotten and only a request loads the model."""
    files = Files()
    async with at_work(redis, lambda: [model("m", files.make)]) as worker:
        await unload(redis, worker)
        files.error = GONE
        [job] = await Desk(redis).submit(task("abc"))
        await failed(redis, job)

        await unload(redis, worker)
        assert await failure(redis) is None
        num_loads = files.num_loads
        files.error = None

        [again] = await Desk(redis).submit(task("abc"))
        await ended(redis, again)
        assert files.num_loads == num_loads + 1


async def test_it_is_tried_later_and_later(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time to the next try doubles with each failure, up to a longest one."""
    monkeypatch.setattr(known_models, "FIRST_RETRY_S", 1.0)
    monkeypatch.setattr(known_models, "LONGEST_RETRY_S", 60.0)
    async with at_work(redis, lambda: [model("m", echo)]) as worker:
        known = worker.models["m"]
        waits = []
        for _ in range(8):
            known.note_failure("why")
            assert known.failure is not None
            waits.append(known.failure.retry_in_s)
        known.num_failures = 0

    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]


def model_info(runner: str) -> ModelInfo:
    return ModelInfo("m", runner, found="test", context_window=100, max_new_tokens=100, max_batch=4)


def test_a_fleet_with_a_failed_model_knows_the_first_to_try_again() -> None:
    """A fleet's failure is that of the worker which tries again first.

    A model has not failed while a worker has no failure of it.
    """
    info = model_info("echo")

    def worker(name: str, retry_in_s: int | None) -> WorkerInfo:
        failures = {}
        if retry_in_s is not None:
            failures["m"] = LoadFailure(name, retry_in_s)
        return WorkerInfo(name, "ready", (info,), failures=failures)

    both = Fleet((worker("a", 9), worker("b", 3)), {"m": info})
    assert both.failure("m") == LoadFailure("b", 3)
    assert Fleet((worker("a", 9), worker("b", None)), {"m": info}).failure("m") is None
    assert Fleet((), {"m": info}).failure("m") is None


def settings_of(**paths: object) -> Settings:
    """Return settings with a model for each name and path."""
    entries = tuple(ModelEntry(id=name, path=str(path)) for name, path in paths.items())
    return Settings(models=entries, max_batch_size=2, device="cpu", threads=1)


async def test_a_worker_that_is_started_again_lets_a_known_model_wait(
    redis: Redis, tmp_path: Path
) -> None:
    """A worker starts without a model that it served before its restart, and loads it later.

    The model's files went while it was loaded; then the worker died of something else.
    """
    path = write_model("causal", tmp_path / "model")
    settings = settings_of(m=path, other="echo")
    away = tmp_path / "away"

    def start(worker: WorkerService) -> list[LoadedModel]:
        models, worker.unloaded = load_known_models(settings, worker.known_models)
        return models

    async def run_until(stop: asyncio.Event, worker: WorkerService) -> "asyncio.Task[bool]":
        running = asyncio.create_task(worker.run(lambda: start(worker), stop))
        await until(lambda: worker.not_ready() is None or running.done(), "the worker is ready")
        return running

    stop = asyncio.Event()
    first = service(redis, lease_s=10)
    running = await run_until(stop, first)
    stop.set()
    assert await running is True

    shutil.move(path, away)
    # At a first start the operator must hear of it.
    with pytest.raises(SettingsError, match="model 'm'"):
        load_models(settings)

    stop = asyncio.Event()
    second = service(redis, lease_s=10)
    running = await run_until(stop, second)
    try:
        [job] = await Desk(redis, "other").submit(task("abc"))
        assert isinstance(await asyncio.wait_for(end_of(redis, job), DEADLINE_S), Done)
        [refused] = await Desk(redis).submit(task("abc"))
        assert (await failed(redis, refused)).code == "model_failed"

        shutil.move(away, path)
        await until(lambda: residence(second) == "loaded", "it comes back by itself")
        [job] = await Desk(redis).submit(task("abc"))
        assert isinstance(await asyncio.wait_for(end_of(redis, job), DEADLINE_S), Done)
    finally:
        stop.set()
        assert await running is True


def test_where_no_model_is_left_the_start_fails(tmp_path: Path) -> None:
    """A start without a single model fails, even if the model was served before."""
    settings = settings_of(m=tmp_path / "none")
    with pytest.raises(SettingsError, match="does not exist"):
        load_known_models(settings, {"m": model_info("causal")})
