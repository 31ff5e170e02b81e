"""Bundles of interrupted and parallel trainings: which save counts, and that nothing half written
is ever served."""

import logging
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.fixtures.logged import fields_of
from tests.fixtures.worker.act_fixtures import Net, random_weights, write_bundle
from worker.models.act_bundle import load_act_bundle
from worker.models.errors import ModelFormatError

NAME = "actv1_student.safetensors"
HEAD = "inner.lm_head.weight"


def save(file: Path, weights: dict[str, Tensor], *, age_s: int) -> None:
    save_file(weights, file)
    stamp = file.stat().st_mtime_ns - age_s * 10**9
    os.utime(file, ns=(stamp, stamp))


def bundle(directory: Path, *, old: bool = True) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A bundle whose renamed save is an hour old, with `old` weights in it, and newer weights to be
    written."""
    weights = write_bundle(directory)
    (directory / NAME).unlink()
    if old:
        save(directory / NAME, weights, age_s=3600)
    return weights, random_weights(Net(), seed=1)


def loaded_head(directory: Path) -> Tensor:
    return load_act_bundle(directory).model.state_dict()[HEAD]


@pytest.mark.parametrize("old", [True, False], ids=["over an older save", "alone"])
def test_a_finished_save_that_was_not_renamed_counts(
    tmp_path: Path, old: bool, caplog: pytest.LogCaptureFixture
) -> None:
    _, newer = bundle(tmp_path, old=old)
    save(tmp_path / f"{NAME}.tmp", newer, age_s=60)
    before = sorted(file.name for file in tmp_path.iterdir())
    with caplog.at_level(logging.INFO):
        assert torch.equal(loaded_head(tmp_path), newer[HEAD])
    [said] = fields_of(caplog, "finished save never renamed, taken")
    assert said == {"path": str(tmp_path / f"{NAME}.tmp"), "taken_for": NAME}
    assert sorted(file.name for file in tmp_path.iterdir()) == before, (
        "the bundle is not ours to change"
    )


def test_an_older_leftover_does_not_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights, leftover = bundle(tmp_path)
    save(tmp_path / f"{NAME}.tmp", leftover, age_s=7200)
    with caplog.at_level(logging.INFO):
        assert torch.equal(loaded_head(tmp_path), weights[HEAD])
    assert not caplog.records


@pytest.mark.parametrize("kept", [0, 5, 40, -1], ids=lambda kept: f"first {kept} bytes")
def test_a_save_that_was_cut_off_does_not_count(
    tmp_path: Path, kept: int, caplog: pytest.LogCaptureFixture
) -> None:
    weights, newer = bundle(tmp_path)
    unfinished = tmp_path / f"{NAME}.tmp"
    save_file(newer, unfinished)
    unfinished.write_bytes(unfinished.read_bytes()[:kept])
    assert torch.equal(loaded_head(tmp_path), weights[HEAD])
    assert fields_of(caplog, "unfinished save left aside") == [{"path": str(unfinished)}]
    (tmp_path / NAME).unlink()
    with pytest.raises(ModelFormatError, match="has no weights file"):
        load_act_bundle(tmp_path)


def test_a_file_named_by_the_operator_is_that_file(tmp_path: Path) -> None:
    weights, newer = bundle(tmp_path)
    save(tmp_path / f"{NAME}.tmp", newer, age_s=60)
    model = load_act_bundle(tmp_path / NAME).model
    assert torch.equal(model.state_dict()[HEAD], weights[HEAD])


def write_parts(directory: Path, parts: list[dict[str, Tensor]]) -> None:
    (directory / "parallel_checkpoints").mkdir()
    for index, weights in enumerate(parts):
        save_file(weights, directory / "parallel_checkpoints" / f"gpu{index}_final.safetensors")


def test_parallel_checkpoints_are_averaged_in_float32(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Half-precision parts keep what float16 could not hold: the mean of 2048, 2048 and 2050."""
    bundle(tmp_path, old=False)
    parts = [
        {name: item.half() for name, item in random_weights(Net(), seed=seed).items()}
        for seed in range(3)
    ]
    for part, value in zip(parts, (2048.0, 2048.0, 2050.0), strict=True):
        part[HEAD] = torch.full_like(part[HEAD], value)
    write_parts(tmp_path, parts)
    with caplog.at_level(logging.INFO):
        found = load_act_bundle(tmp_path).model.state_dict()
    [said] = fields_of(caplog, "no final weights, parallel checkpoints averaged")
    assert said["num_parts"] == 3
    for name, tensor in found.items():
        mean = torch.stack([part[name].double() for part in parts]).mean(0)
        assert torch.allclose(tensor.double(), mean, atol=1e-6, rtol=1e-6), name


def test_a_final_file_outranks_the_parts(tmp_path: Path) -> None:
    weights, newer = bundle(tmp_path)
    write_parts(tmp_path, [newer])
    assert torch.equal(loaded_head(tmp_path), weights[HEAD])


@pytest.mark.parametrize("fault", ["missing", "shape", "integer"])
def test_parts_of_different_nets_are_refused(tmp_path: Path, fault: str) -> None:
    _, newer = bundle(tmp_path, old=False)
    other = dict(newer)
    if fault == "missing":
        del other[HEAD]
    else:
        other[HEAD] = torch.zeros(2, 2) if fault == "shape" else newer[HEAD].int()
    write_parts(tmp_path, [newer, other])
    with pytest.raises(ModelFormatError, match=rf"gpu1_final\.safetensors does not hold .*{HEAD}"):
        load_act_bundle(tmp_path)
