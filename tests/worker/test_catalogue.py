"""The catalogue of models: workers follow its changes while they run."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from redis.asyncio import Redis

from shared.fleet.catalogue import Catalogue
from shared.fleet.presence import Presence
from shared.messages import Done, Failed
from shared.queue.leases import QueuePolicy
from shared.settings.models import ModelEntry
from shared.settings.settings import Settings, SettingsError
from tests.fixtures.desk import Desk
from tests.fixtures.one_shots import write_one_shot
from tests.fixtures.polling import until
from tests.fixtures.worker.broken_models import write_model
from tests.fixtures.worker.services import end_of, loaded, task
from worker.engine.runner import RunnerOptions
from worker.host.budget import Budget
from worker.host.facts import facts_of, modality_of
from worker.host.loading import load_known_models, load_models, survey
from worker.host.service import WorkerService
from worker.runners.echo import Echo

SETTINGS = Settings(
    models=(ModelEntry(id="m", path="echo"),), device="cpu", threads=1, context_window=64
)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.host.known_models.LOOK_S", 0.02)


@asynccontextmanager
async def at_work(redis: Redis, most: int | None = None) -> AsyncIterator[WorkerService]:
    """Run a worker with a model `m` of its own, which serves the models of the catalogue, too."""
    worker = WorkerService(
        Desk(redis).broker,
        QueuePolicy(lease_s=10, result_ttl_s=60),
        drain_timeout_s=1,
        budget=Budget(most),
        survey=partial(survey, settings=SETTINGS),
    )
    stop = asyncio.Event()
    runner = Echo(RunnerOptions("echo", max_batch=4))
    running = asyncio.create_task(worker.run(lambda: loaded(runner), stop))
    await until(lambda: worker.not_ready() is None or running.done(), "the worker is ready")
    try:
        yield worker
    finally:
        stop.set()
        assert await running is True


async def answers(redis: Redis, model: str) -> bool:
    """Return whether a job for the model succeeds."""
    [job] = await Desk(redis, model).submit(task("abc"))
    return isinstance(await end_of(redis, job), Done)


async def test_a_model_is_served_from_when_it_is_added_until_it_is_removed(redis: Redis) -> None:
    """A model that is added is served, loaded for its first job, and forgotten when removed."""
    catalogue = Catalogue(redis)
    async with at_work(redis) as worker:
        assert await catalogue.add(ModelEntry(id="new", path="echo")) is True
        await until(lambda: "new" in worker.models, "the worker knows it")
        assert worker.models["new"].host is None, "no job has come for it"
        info = worker.models["new"].info
        assert info.runner == "echo"
        assert info.context_window == 64
        assert "generate" in info.tasks
        assert await answers(redis, "new")
        assert worker.models["new"].residence == "loaded"

        assert await catalogue.remove("new") is True
        await until(lambda: "new" not in worker.models, "the worker has forgotten it")
        await until(lambda: is_unknown_to_fleet(redis, "new"), "the worker has announced that")
        assert await catalogue.remove("new") is False
        assert await answers(redis, "m"), "its own model is not concerned"


async def is_unknown_to_fleet(redis: Redis, model: str) -> bool:
    fleet = await Presence(redis).fleet()
    return model not in fleet.models and model not in fleet.catalogued


async def test_work_that_came_before_any_worker_is_done_by_the_first(redis: Redis) -> None:
    """A job for a model of the catalogue waits for the first worker."""
    await Catalogue(redis).add(ModelEntry(id="new", path="echo"))
    [job] = await Desk(redis, "new").submit(task("abc"))

    async with at_work(redis):
        assert isinstance(await end_of(redis, job), Done)


async def test_a_changed_entry_is_loaded_anew(redis: Redis) -> None:
    """A model whose entry changes is unloaded, and the next request loads the new entry."""
    catalogue = Catalogue(redis)
    async with at_work(redis) as worker:
        await catalogue.add(ModelEntry(id="new", path="echo", context_window=32))
        assert await answers(redis, "new")
        assert worker.models["new"].info.context_window == 32

        assert await catalogue.add(ModelEntry(id="new", path="echo", context_window=48)) is False
        await until(lambda: worker.models["new"].residence == "unloaded", "it has gone")
        assert await answers(redis, "new")
        assert worker.models["new"].info.context_window == 48


async def test_a_model_is_loaded_and_pinned_by_order(redis: Redis) -> None:
    """A pinned model stays while others come and go, with room for two."""
    catalogue = Catalogue(redis)
    async with at_work(redis, most=2) as worker:
        for name in ("kept", "one", "two"):
            await catalogue.add(ModelEntry(id=name, path="echo"))
        await until(lambda: {"kept", "one", "two"} <= worker.models.keys(), "they are known")

        await catalogue.pin("kept", is_pinned=True)
        await catalogue.order_load("kept")
        await until(
            lambda: worker.models["kept"].residence == "loaded", "it is loaded without work"
        )
        for name in ("one", "two", "m", "one"):
            assert await answers(redis, name)
            assert worker.models["kept"].residence == "loaded"

        await catalogue.pin("kept", is_pinned=False)
        await until(lambda: not worker.models["kept"].is_pinned, "the worker knows")
        await answers(redis, "two")
        await answers(redis, "m")
        assert worker.models["kept"].residence == "unloaded"


async def test_an_order_to_load_makes_room_first(redis: Redis) -> None:
    """A model without work is loaded in the place of another, unless it is unloaded meanwhile."""
    catalogue = Catalogue(redis)
    async with at_work(redis, most=1) as worker:
        await catalogue.add(ModelEntry(id="new", path="echo"))
        await until(lambda: "new" in worker.models, "it is known")
        await catalogue.order_load("new")
        await until(lambda: worker.models["new"].residence == "loaded", "it is loaded")
        assert worker.models["m"].residence == "unloaded"
        await until(lambda: worker.models["new"].load_order == 0, "the order is carried out")


async def test_orders_from_before_a_worker_came_are_not_its_own(redis: Redis) -> None:
    """A worker does not obey an order to load that is older than itself."""
    catalogue = Catalogue(redis)
    await catalogue.add(ModelEntry(id="new", path="echo"))
    await catalogue.order_load("new")
    async with at_work(redis) as worker:
        await until(lambda: "new" in worker.models, "it is known")
        await catalogue.add(ModelEntry(id="other", path="echo"))
        await until(lambda: "other" in worker.models, "the catalogue was read again")
        assert worker.models["new"].residence == "unloaded"


async def test_what_a_worker_cannot_read_it_does_not_serve(redis: Redis, tmp_path: Path) -> None:
    """An entry that a worker cannot read is passed over, and those after it are served.

    Other workers may read it.
    """
    catalogue = Catalogue(redis)
    async with at_work(redis) as worker:
        await catalogue.add(ModelEntry(id="away", path=str(tmp_path / "away")))
        await catalogue.add(ModelEntry(id="m", path="echo", context_window=16))
        await catalogue.add(ModelEntry(id="there", path="echo"))
        await until(lambda: "there" in worker.models, "it is known")
        assert "away" not in worker.models
        assert worker.models["m"].entry is None, "its own settings come first"


async def test_a_damaged_model_may_be_removed_while_its_jobs_are_refused(
    redis: Redis, tmp_path: Path
) -> None:
    """The worker goes on when a damaged model is removed, however far the refusals are."""
    catalogue = Catalogue(redis)
    damaged = write_model("causal", tmp_path / "model")
    (damaged / "model.safetensors").write_bytes(b"no weights")
    async with at_work(redis) as worker:
        for _ in range(3):
            await catalogue.add(ModelEntry(id="bad", path=str(damaged)))
            jobs = await Desk(redis, "bad").submit(*[task("abc")] * 8)
            await until(lambda: "bad" in worker.models, "it is known")
            first = await end_of(redis, jobs[0])
            # The other jobs are being refused meanwhile.
            await catalogue.remove("bad")
            assert isinstance(first, Failed)
            assert first.code == "model_failed"
            await until(lambda: "bad" not in worker.models, "it is forgotten")
        assert await answers(redis, "m")


@pytest.mark.parametrize("kind", ["causal", "hrm-text", "hrm-act"])
def test_facts_from_files_are_those_of_the_loaded_model(kind: str, tmp_path: Path) -> None:
    """The runner, the tasks and the context window are known from files, and there is a size.

    Only its tensors tell the window of a brain.
    """
    path = write_model(kind, tmp_path / "model")
    entry = ModelEntry(id="x", path=str(path))
    settings = Settings(models=(entry,), device="cpu", context_window=4096, kv_memory_mib=1)

    facts = facts_of(entry, settings)

    [model] = load_models(settings)
    assert facts.info.runner == kind
    assert model.info.runner == kind
    assert facts.info.tasks == model.info.tasks
    if kind != "hrm-act":
        assert facts.info.context_window == model.info.context_window
    assert facts.num_bytes > 0


@pytest.mark.parametrize(
    ("task_name", "modality"),
    [
        ("question-answering", "text"),
        ("visual-question-answering", "image"),
        ("object-detection", "image"),
        ("audio-classification", "audio"),
        ("automatic-speech-recognition", "audio"),
        ("time-series-forecasting", "series"),
    ],
)
def test_the_one_task_of_a_network_is_known_from_its_files(
    task_name: str, modality: str, tmp_path: Path
) -> None:
    """The task and the modality before loading are those of the model that was loaded."""
    write_one_shot(task_name, tmp_path / "model")
    entry = ModelEntry(id="x", path=str(tmp_path / "model"))
    settings = Settings(models=(entry,), device="cpu", threads=1)

    assert modality_of(entry, settings) == modality

    [model] = load_models(settings)
    assert model.info.tasks == (task_name,)
    assert facts_of(entry, settings).info.tasks == model.info.tasks


def test_a_worker_of_one_modality_leaves_the_other_models_to_others(tmp_path: Path) -> None:
    """Its own models are those of its modality, and so are those it takes of the catalogue."""
    write_one_shot("image-classification", tmp_path / "model")
    image = ModelEntry(id="image", path=str(tmp_path / "model"))
    text = ModelEntry(id="text", path="echo")
    settings = Settings(models=(text, image), device="cpu", modalities=("image", "video"))

    [model] = load_models(settings)
    assert model.info.id == "image"
    assert not model.info.is_default, "the first model is, wherever it is served"
    assert survey(image, settings).info.id == "image"
    with pytest.raises(SettingsError, match="serves only image, video"):
        survey(text, settings)

    only_sounds = settings.model_copy(update={"modalities": ("audio",)})
    assert load_models(only_sounds) == []


def test_a_name_of_the_hub_is_refused_in_the_catalogue() -> None:
    """Nothing is fetched while a worker serves."""
    for path in ("org/net@v1", "hf://org/net@v1"):
        with pytest.raises(SettingsError, match="`hf download org/net --revision v1` prints"):
            survey(ModelEntry(id="late", path=path), Settings())


def test_damaged_files_of_a_known_model_do_not_keep_its_worker_down(tmp_path: Path) -> None:
    """A model that the fleet has served keeps its modality, and the others are loaded."""
    for name in ("good", "damaged"):
        write_one_shot("image-classification", tmp_path / name)
    entries = tuple(ModelEntry(id=n, path=str(tmp_path / n)) for n in ("good", "damaged"))
    settings = Settings(models=entries, device="cpu", modalities=("image",))
    known = {model.info.id: model.info for model in load_models(settings)}
    (tmp_path / "damaged" / "config.json").write_text("{")

    loaded, unloaded = load_known_models(settings, known)

    assert [model.info.id for model in loaded] == ["good"]
    assert [model.info.id for model in unloaded] == ["damaged"]
    with pytest.raises(SettingsError, match="damaged"):
        load_known_models(settings, {})


def test_a_task_that_an_option_names_is_known_beforehand(tmp_path: Path) -> None:
    """A network whose architecture tells of another task has the one that its entry names."""
    write_one_shot("zero-shot-classification", tmp_path / "model")
    entry = ModelEntry(
        id="x",
        path=str(tmp_path / "model"),
        runner="one-shot",
        options={"task": "zero-shot-classification"},
    )

    assert facts_of(entry, Settings(device="cpu")).info.tasks == ("zero-shot-classification",)
