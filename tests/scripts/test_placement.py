"""The placement of workers: shares of cores, GPUs in turn, and the numbers of `auto`."""

import logging
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.cli import placement
from scripts.cli.placement import core_shares, place_workers, pools_of, worker_envs
from shared.settings.settings import ModelEntry, Settings, resolve
from shared.tasks.specs import Modality
from tests.fixtures.logged import fields_of
from tests.fixtures.one_shots import write_one_shot
from worker.hardware.device import CORES_ENV, HUGE_PAGES, TUNABLES_ENV
from worker.hardware.machine import Machine
from worker.hardware.shapes import Shape

CORES = ((0, 4), (1, 5), (2, 6), (3, 7))


def machine(num_cores: int = 4, gpus: int = 0) -> Machine:
    cache_bytes = 32 * 2**20
    memory_bytes = 64 * 2**30
    return Machine(CORES, num_cores, cache_bytes, memory_bytes, gpus)


@given(st.integers(1, 64), st.data())
def test_shares_are_disjoint_even_and_whole(num_cores: int, data: st.DataObject) -> None:
    workers = data.draw(st.integers(1, num_cores))
    cores = [(core, core + num_cores) for core in range(num_cores)]

    shares = core_shares(cores, workers)

    shared_out = []
    sizes = []
    for share in shares:
        shared_out += share
        sizes.append(len(share) // 2)
        for processor in share:
            # Both processors of a core are in one share.
            if processor < num_cores:
                assert processor + num_cores in share
    assert sorted(shared_out) == list(range(2 * num_cores))
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (Shape(4, 1), ["0,4", "1,5", "2,6", "3,7"]),
        (Shape(2, 2), ["0,4,1,5", "2,6,3,7"]),
        (Shape(1, 4), [None]),
        # With more threads than cores, the system places them better.
        (Shape(2, 3), [None, None]),
        (Shape(5, 1), [None] * 5),
    ],
)
def test_workers_get_cores_of_their_own_where_there_are_enough(
    shape: Shape, expected: list[str | None]
) -> None:
    envs = worker_envs(shape, machine(), {})
    assert [env.get("AIOS_WORKER_CORES") for env in envs] == expected


def test_nobody_is_pinned_under_a_quota() -> None:
    assert worker_envs(Shape(2, 1), machine(2), {}) == [{}, {}]


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        (
            {},
            [
                {"CUDA_VISIBLE_DEVICES": "0"},
                {"CUDA_VISIBLE_DEVICES": "1"},
                {"CUDA_VISIBLE_DEVICES": "0"},
            ],
        ),
        (
            {"CUDA_VISIBLE_DEVICES": "5, GPU-7"},
            [
                {"CUDA_VISIBLE_DEVICES": "5"},
                {"CUDA_VISIBLE_DEVICES": "GPU-7"},
                {"CUDA_VISIBLE_DEVICES": "5"},
            ],
        ),
        (
            {"HIP_VISIBLE_DEVICES": "2,3"},
            [
                {"HIP_VISIBLE_DEVICES": "2"},
                {"HIP_VISIBLE_DEVICES": "3"},
                {"HIP_VISIBLE_DEVICES": "2"},
            ],
        ),
    ],
)
def test_gpus_are_dealt_out_in_turn(env: dict[str, str], expected: list[dict[str, str]]) -> None:
    assert worker_envs(Shape(3, 1), machine(gpus=2), env) == expected


def test_auto_becomes_numbers_and_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(placement, "survey", lambda device: machine())
    with caplog.at_level(logging.INFO):
        settings, envs = place_workers(Settings(workers="auto"))
    assert settings.workers == 4
    assert settings.threads == 1
    assert len(envs) == 4

    [event] = fields_of(caplog, "workers placed")
    assert event["shape"] == "4 workers of 1 thread"
    assert event["num_cores"] == 4
    assert event["why"].startswith("workers: one a core; threads: ")

    settings, envs = place_workers(Settings(workers=2, threads=1, pin_cores=False))
    assert settings.workers == 2
    assert settings.threads == 1
    assert [CORES_ENV in env for env in envs] == [False, False]


def test_malloc_asks_for_huge_pages_unless_it_is_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(TUNABLES_ENV, raising=False)
    settings = Settings(workers=2, threads=1)
    _, envs = place_workers(settings)
    assert [env[TUNABLES_ENV] for env in envs] == [HUGE_PAGES, HUGE_PAGES]

    monkeypatch.setenv(TUNABLES_ENV, "glibc.malloc.hugetlb=0")
    _, envs = place_workers(settings)
    assert not any(TUNABLES_ENV in env for env in envs)


PARROT = ModelEntry(id="parrot", path="echo")


@pytest.fixture
def models(tmp_path: Path) -> tuple[ModelEntry, ...]:
    """Return models of text, images and sounds."""
    entries = [PARROT]
    for task in ("image-classification", "audio-classification"):
        write_one_shot(task, tmp_path / task)
        entries.append(ModelEntry(id=task, path=str(tmp_path / task)))
    return tuple(entries)


def ids_of(settings: Settings) -> dict[str, list[str]]:
    """Return the ids of each pool's models, in the order of the pools."""
    return {pool.name: [entry.id for entry in pool.settings.models] for pool in pools_of(settings)}


def test_models_have_the_workers_of_their_modality(models: tuple[ModelEntry, ...]) -> None:
    """D76: there are pools where a number is set, and each model is in one of them."""
    assert ids_of(Settings(models=models)) == {}
    assert ids_of(Settings(models=models, workers=3)) == {}
    assert list(ids_of(Settings(models=models, image_workers=1))) == ["text", "image"]
    assert ids_of(Settings(models=models, image_workers=1)) == {
        "text": ["parrot", "audio-classification"],
        "image": ["image-classification"],
    }
    assert ids_of(Settings(models=models, image_workers=1, audio_workers=2)) == {
        "text": ["parrot"],
        "image": ["image-classification"],
        "audio": ["audio-classification"],
    }


def test_a_pool_without_models_is_there_only_if_it_is_asked_for(
    models: tuple[ModelEntry, ...],
) -> None:
    """It serves what the catalogue gets later. Pools with models come first."""
    only_image = Settings(models=models[1:2], image_workers=1)
    assert ids_of(only_image) == {"image": ["image-classification"]}
    with_text = only_image.model_copy(update={"workers": 1, "audio_workers": 1})
    assert next(iter(ids_of(with_text))) == "image"
    assert ids_of(with_text) == {"image": ["image-classification"], "text": [], "audio": []}

    every: list[str] = []
    for pool in pools_of(with_text):
        every += pool.modalities
    assert sorted(every) == sorted(get_args(Modality))


def test_each_pool_has_its_number_of_workers_and_says_what_they_serve(
    models: tuple[ModelEntry, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The workers resolve to settings that are the fleet's but for their placement."""
    monkeypatch.setattr(placement, "survey", lambda device: machine())
    settings = Settings(models=models, workers=1, image_workers=2, device="cpu")

    placed, envs = place_workers(settings)

    assert placed.workers == 3
    resolved = [resolve({}, {**placed.to_env(), **env}, None).settings for env in envs]
    assert [worker.pool for worker in resolved] == ["text", "image", "image"]
    assert [worker.modalities for worker in resolved] == [
        ("text", "audio", "series"),
        ("image", "video", "3d"),
        ("image", "video", "3d"),
    ]
    assert not any(CORES_ENV in env for env in envs)
    for worker in resolved:
        assert worker.models == models
        assert worker.threads == 1, "the models are small"


def test_pools_share_the_gpus_in_turn(
    models: tuple[ModelEntry, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "survey", lambda device: machine(gpus=2))
    _, envs = place_workers(Settings(models=models, image_workers=2, pool="big"))
    assert [env["CUDA_VISIBLE_DEVICES"] for env in envs] == ["0", "1", "0"]
    assert [env["AIOS_POOL"] for env in envs] == ["big-text", "big-image", "big-image"]
