"""The rule that chooses the numbers of workers and threads, and the model sizes that it uses."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from shared.settings.settings import DEFAULT_MODEL, ModelEntry, Settings
from worker.hardware.machine import Machine
from worker.hardware.shapes import Shape, plan_workers, shape_of, shapes_to_measure
from worker.models.model_files import num_parameters, stored_bytes, weight_bytes

MIB = 2**20
GIB = 2**30


def machine(
    cores: int = 8, *, cache: int = 32 * MIB, free: int = 64 * GIB, gpus: int = 0
) -> Machine:
    return Machine(tuple((core,) for core in range(cores)), cores, cache, free, gpus)


@pytest.mark.parametrize(
    ("there", "weights", "expected"),
    [
        # The weights fit a core's share of the cache, 4 MiB.
        (machine(), 2 * MIB, Shape(8, 1)),
        (machine(), 4 * MIB, Shape(8, 1)),
        # The weights are streamed from memory.
        (machine(), 5 * MIB, Shape(8, 1)),
        # Memory holds three workers, and the cores that are left become threads.
        (machine(free=16 * GIB), 2 * GIB, Shape(3, 2)),
        (machine(free=4 * GIB), 2 * GIB, Shape(1, 8)),
        (machine(1), 2 * GIB, Shape(1, 1)),
        # Each worker takes 1 GiB and a little.
        (machine(free=4 * GIB), 2 * MIB, Shape(3, 1)),
        # The size of free memory is not known.
        (machine(free=0), 2 * MIB, Shape(1, 1)),
        (machine(gpus=4), 2 * GIB, Shape(4, 1)),
    ],
)
def test_the_rule(there: Machine, weights: int, expected: Shape) -> None:
    """Cores, cache, free memory and GPUs decide the numbers of workers and threads."""
    assert plan_workers(there, weights, 512 * MIB) == expected


@pytest.mark.parametrize(
    ("there", "asked", "weights", "why"),
    [
        (
            machine(),
            (None, None),
            MIB,
            "workers: one a core; threads: one, for weights that fit a core's share of the cache",
        ),
        (
            machine(),
            (None, None),
            GIB,
            "workers: one a core; threads: the cores shared out among the workers",
        ),
        (
            machine(free=4 * GIB),
            (None, None),
            MIB,
            (
                "workers: as many as free memory holds; threads: one, for weights that fit a "
                "core's share of the cache"
            ),
        ),
        (
            machine(free=0),
            (None, 2),
            MIB,
            "workers: one, as free memory is not known; threads: as set",
        ),
        (machine(), (None, 3), MIB, "workers: as many as cores for their threads; threads: as set"),
        (
            machine(),
            (1, None),
            GIB,
            "workers: as set; threads: the cores shared out among the workers",
        ),
        (
            machine(gpus=2),
            (None, None),
            GIB,
            "workers: one a GPU; threads: one, which launches kernels",
        ),
        (machine(gpus=2), (3, 1), GIB, "workers: as set; threads: as set"),
    ],
)
def test_the_rule_that_decided_is_told(
    there: Machine, asked: tuple[int | None, int | None], weights: int, why: str
) -> None:
    """A shape says in words why it has its numbers."""
    assert plan_workers(there, weights, 512 * MIB, *asked).why == why


@pytest.mark.parametrize(
    ("workers", "threads", "weights", "expected"),
    [
        (3, 5, GIB, Shape(3, 5)),
        (2, None, GIB, Shape(2, 4)),
        (3, None, GIB, Shape(3, 2)),
        (99, None, GIB, Shape(99, 1)),
        (2, None, MIB, Shape(2, 1)),
        (None, 3, GIB, Shape(2, 3)),
        (None, 3, MIB, Shape(2, 3)),
        (None, 99, GIB, Shape(1, 99)),
    ],
)
def test_a_number_that_is_given_is_kept(
    workers: int | None, threads: int | None, weights: int, expected: Shape
) -> None:
    """A number of workers or threads that is set is kept, and the other one fits it."""
    assert plan_workers(machine(), weights, 0, workers, threads) == expected


def test_given_numbers_are_kept_on_gpus_too() -> None:
    """A number that is set is kept on a machine with GPUs, too."""
    assert plan_workers(machine(gpus=2), GIB, 0, 5) == Shape(5, 1)
    assert plan_workers(machine(gpus=2), GIB, 0, None, 4) == Shape(2, 4)


sizes = st.integers(0, 64 * GIB)


@given(st.integers(1, 256), sizes, sizes, sizes, sizes, st.none() | st.integers(1, 300))
def test_auto_never_oversubscribes_cores_or_memory(
    cores: int, cache: int, free: int, weights: int, kv: int, threads: int | None
) -> None:
    """Chosen workers fit the cores and the free memory, unless a number that is set forbids it."""
    shape = plan_workers(machine(cores, cache=cache, free=free), weights, kv, None, threads)

    assert shape.workers >= 1
    assert shape.threads >= 1
    if threads is None or threads <= cores:
        assert shape.workers * shape.threads <= cores
    # One worker is there at least, whatever memory it takes.
    if shape.workers > 1:
        assert shape.workers * (weights + kv) <= free


def test_settings_become_a_shape(tmp_path: Path) -> None:
    """A shape depends on the sizes of all models of the settings, in the dtype of the settings.

    The default model is small, a large file is not, half precision halves it, and echo weighs
    nothing.
    """
    sample = Settings(workers="auto")
    assert shape_of(sample, machine()) == Shape(8, 1)

    save_file({"w": torch.zeros(MIB + MIB // 2)}, tmp_path / "model.safetensors")
    large_model = ModelEntry(id="a", path=str(tmp_path))
    large = Settings(workers=1, models=(large_model,))
    assert shape_of(large, machine()) == Shape(1, 8)

    half_precision = large.model_copy(update={"dtype": "bfloat16"})
    assert shape_of(half_precision, machine()) == Shape(1, 1)

    two_models = Settings(workers=2, models=(large_model, ModelEntry(id="e", path="echo")))
    assert shape_of(two_models, machine()) == Shape(2, 4)

    echo = Settings(workers="auto", model_path="echo")
    assert shape_of(echo, machine(free=2 * GIB)) == Shape(4, 1)


def test_kv_memory_counts_for_every_model() -> None:
    """Each model of a worker has its own memory for keys and values."""
    first = ModelEntry(id="a", path=str(DEFAULT_MODEL))
    second = ModelEntry(id="b", path=str(DEFAULT_MODEL))
    settings = Settings(workers="auto", models=(first, second), kv_memory_mib=1024)

    assert shape_of(settings, machine(free=8 * GIB)) == Shape(3, 2)


def test_a_small_model_has_two_workers_unless_more_are_asked_for() -> None:
    assert shape_of(Settings(), machine(16)) == Shape(2, 1)
    assert shape_of(Settings(workers="auto"), machine(16)) == Shape(16, 1)
    assert shape_of(Settings(workers=3), machine(16)) == Shape(3, 1)
    assert shape_of(Settings(), machine(1)) == Shape(1, 1)
    # Half a gigabyte of keys and values, and of the process: memory holds one.
    assert shape_of(Settings(), machine(16, free=3 * GIB // 2)) == Shape(1, 1)
    assert "2, for a small model; threads: one" in shape_of(Settings(), machine(16)).why
    # Without a cache that is known no model is small.
    named = Settings(model_path=str(DEFAULT_MODEL))
    assert shape_of(named, machine(16, cache=0)).workers == 16


def test_one_worker_is_the_default_on_gpus_alone() -> None:
    """Other GPUs of a machine are used when they are asked for."""
    assert shape_of(Settings(), machine(gpus=4)) == Shape(1, 1)
    assert shape_of(Settings(workers="auto"), machine(gpus=4)) == Shape(4, 1)


def streamed(path: Path, **settings: Any) -> Settings:
    """Return settings with a model of 8 MiB, which is more than a core's share of the cache."""
    save_file({"w": torch.zeros(2 * MIB)}, path / "model.safetensors")
    return Settings(models=(ModelEntry(id="m", path=str(path)),), **settings)


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        (machine(2, cache=MIB), [Shape(1, 2), Shape(2, 1)]),
        (machine(8), [Shape(1, 8), Shape(2, 4), Shape(4, 2), Shape(8, 1)]),
        (machine(6, cache=MIB), [Shape(1, 6), Shape(3, 2), Shape(6, 1)]),
        # More than eight workers are not measured.
        (machine(64), [Shape(1, 64), Shape(2, 32), Shape(4, 16), Shape(8, 8)]),
        # Memory holds three workers, or one.
        (machine(free=7 * GIB // 2), [Shape(1, 8), Shape(3, 2)]),
        (machine(free=GIB), []),
        (machine(free=0), []),
        (machine(1, cache=MIB), []),
        # Weights that fit a core's share of the cache, and GPUs, are the rule's.
        (machine(8, cache=64 * MIB), []),
        (machine(8, gpus=1), []),
    ],
)
def test_shapes_that_are_measured(there: Machine, expected: list[Shape], tmp_path: Path) -> None:
    """All have as many threads as cores, and each half as many workers as the next."""
    assert shapes_to_measure(streamed(tmp_path), there) == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"workers": "auto"}, [Shape(1, 8), Shape(2, 4), Shape(4, 2), Shape(8, 1)]),
        # More workers than a full batch has rows would have nothing to do.
        ({"max_batch_size": 2}, [Shape(1, 8), Shape(2, 4)]),
        ({"max_batch_size": 1}, []),
        ({"workers": 2}, []),
        ({"threads": 2}, []),
        ({"workers": 1, "threads": 1}, []),
    ],
)
def test_numbers_that_are_set_leave_nothing_to_measure(
    settings: dict[str, Any], expected: list[Shape], tmp_path: Path
) -> None:
    assert shapes_to_measure(streamed(tmp_path, **settings), machine()) == expected


def test_checkpoints_of_trainers_take_memory_too(tmp_path: Path) -> None:
    """Their files have other names than weights usually have, and may lie in a folder below."""
    epoch = tmp_path / "fsdp2_epoch_3"
    epoch.mkdir()
    with (epoch / "__0_0.distcp").open("wb") as stream:
        stream.truncate(2 * GIB)
    (tmp_path / ".hidden").write_bytes(bytes(9))
    settings = Settings(models=(ModelEntry(id="m", path=str(tmp_path)),))

    assert stored_bytes(tmp_path) == 2 * GIB
    assert shape_of(settings, machine(free=16 * GIB)) == Shape(3, 2)


def test_sizes_by_the_headers(tmp_path: Path) -> None:
    """Headers give the number of parameters, of one file or of the shards in an index.

    The dtype in the file does not matter, and files that the index does not name do not count.
    """
    tensors = {"a": torch.zeros(3, 5), "b": torch.zeros(7, dtype=torch.bfloat16)}
    save_file(tensors, tmp_path / "model.safetensors")
    assert num_parameters(tmp_path) == 22
    assert weight_bytes(tmp_path, "float32") == 88
    assert weight_bytes(tmp_path, "float16") == 44

    save_file({"c": torch.zeros(100)}, tmp_path / "part-1.safetensors")
    save_file({"d": torch.zeros(())}, tmp_path / "part-2.safetensors", metadata={"format": "pt"})
    index = {"weight_map": {"c": "part-1.safetensors", "d": "part-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert num_parameters(tmp_path) == 101


def test_sizes_without_headers_are_those_of_the_files(tmp_path: Path) -> None:
    """A file without a readable header counts with the bytes that it has."""
    brain = tmp_path / "brain.pt"
    brain.write_bytes(bytes(90))
    assert num_parameters(tmp_path) is None
    assert weight_bytes(tmp_path, "float32") == 90
    assert weight_bytes(brain, "float32") == 90
    assert weight_bytes(tmp_path / "nowhere", "float32") == 0

    (tmp_path / "model.safetensors").write_bytes(b"\x05\0\0\0\0\0\0\0no{so")
    assert num_parameters(tmp_path) is None, "the loader says what is wrong with it"
    assert weight_bytes(tmp_path, "float32") == 13
