"""Where workers compute: shares of cores, GPUs in turn, and what `auto` comes to."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.cli import placement
from scripts.cli.placement import core_shares, place_workers, worker_envs
from shared.settings.settings import Settings
from tests.fixtures.logged import fields_of
from worker.hardware.machine import Machine
from worker.hardware.shapes import Shape

CORES = ((0, 4), (1, 5), (2, 6), (3, 7))


def machine(num_cores: int = 4, gpus: int = 0) -> Machine:
    return Machine(CORES, num_cores, 32 * 2**20, 64 * 2**30, gpus)


@given(st.integers(1, 64), st.data())
def test_shares_are_disjoint_even_and_whole(num_cores: int, data: st.DataObject) -> None:
    workers = data.draw(st.integers(1, num_cores))
    cores = [(core, core + num_cores) for core in range(num_cores)]
    shares = core_shares(cores, workers)
    assert sorted(processor for share in shares for processor in share) == sorted(
        map(int, sum(cores, ()))
    )
    sizes = [len(share) // 2 for share in shares]
    assert max(sizes) - min(sizes) <= 1
    assert all(
        {core, core + num_cores} <= set(share)
        for share in shares
        for core in share
        if core < num_cores
    )


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (Shape(4, 1), ["0,4", "1,5", "2,6", "3,7"]),
        (Shape(2, 2), ["0,4,1,5", "2,6,3,7"]),
        (Shape(1, 4), [None]),
        (Shape(2, 3), [None, None]),  # more threads than cores: the system moves them better
        (Shape(5, 1), [None] * 5),
    ],
)
def test_workers_get_cores_of_their_own_where_there_are_enough(
    shape: Shape, expected: list[str | None]
) -> None:
    places = worker_envs(shape, machine(), {})
    assert [place.get("AIOS_WORKER_CORES") for place in places] == expected


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
        settings, places = place_workers(Settings(workers="auto"))
    assert (settings.workers, settings.threads, len(places)) == (4, 1, 4)
    [said] = fields_of(caplog, "workers placed")
    assert (said["shape"], said["num_cores"]) == ("4 workers of 1 thread", 4)
    assert said["why"].startswith("workers: one a core; threads: ")
    settings, places = place_workers(Settings(workers=2, threads=1, pin_cores=False))
    assert (settings.workers, settings.threads, places) == (2, 1, [{}, {}])
