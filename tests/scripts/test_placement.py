"""The placement of workers: shares of cores, GPUs in turn, and the numbers of `auto`."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.cli import placement
from scripts.cli.placement import core_shares, place_workers, worker_envs
from shared.settings.settings import Settings
from tests.fixtures.logged import fields_of
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
