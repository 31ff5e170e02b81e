"""Bundles of interrupted and parallel trainings: the save that counts.

Nothing half written is ever served.
"""

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
    """Write a bundle whose renamed save is an hour old, or without `old` none.

    Return its weights, and newer ones that are still to be written.
    """
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
    """A whole save that is newer than the renamed one is loaded. The bundle is left unchanged."""
    _, newer = bundle(tmp_path, old=old)
    save(tmp_path / f"{NAME}.tmp", newer, age_s=60)
    files_before = sorted(tmp_path.iterdir())

    with caplog.at_level(logging.INFO):
        assert torch.equal(loaded_head(tmp_path), newer[HEAD])

    [fields] = fields_of(caplog, "finished save never renamed, taken")
    assert fields == {"path": str(tmp_path / f"{NAME}.tmp"), "taken_for": NAME}
    assert sorted(tmp_path.iterdir()) == files_before


def test_an_older_leftover_does_not_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A save that is older than the renamed one is passed over in silence."""
    weights, leftover = bundle(tmp_path)
    save(tmp_path / f"{NAME}.tmp", leftover, age_s=7200)

    with caplog.at_level(logging.INFO):
        assert torch.equal(loaded_head(tmp_path), weights[HEAD])

    assert not caplog.records


@pytest.mark.parametrize("kept", [0, 5, 40, -1], ids=lambda kept: f"first {kept} bytes")
def test_a_save_that_was_cut_off_does_not_count(
    tmp_path: Path, kept: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A save that was cut off is never loaded, even where there is no other one."""
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
    """The path of a weights file loads that file, even where a newer save lies beside it."""
    weights, newer = bundle(tmp_path)
    save(tmp_path / f"{NAME}.tmp", newer, age_s=60)

    model = load_act_bundle(tmp_path / NAME).model

    assert torch.equal(model.state_dict()[HEAD], weights[HEAD])


def write_parts(directory: Path, parts: list[dict[str, Tensor]]) -> None:
    (directory / "parallel_checkpoints").mkdir()
    for index, weights in enumerate(parts):
        save_file(weights, directory / "parallel_checkpoints" / f"gpu{index}_final.safetensors")


def half_precision_part(seed: int, head: float) -> dict[str, Tensor]:
    """Return random float16 weights whose output weights are all `head`."""
    part: dict[str, Tensor] = {}
    for name, tensor in random_weights(Net(), seed=seed).items():
        part[name] = tensor.half()
    part[HEAD] = torch.full_like(part[HEAD], head)
    return part


def test_parallel_checkpoints_are_averaged_in_float32(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The mean of half-precision parts is more exact than float16: 2048, 2048 and 2050."""
    bundle(tmp_path, old=False)
    parts = [
        half_precision_part(seed=0, head=2048.0),
        half_precision_part(seed=1, head=2048.0),
        half_precision_part(seed=2, head=2050.0),
    ]
    write_parts(tmp_path, parts)

    with caplog.at_level(logging.INFO):
        weights = load_act_bundle(tmp_path).model.state_dict()

    [fields] = fields_of(caplog, "no final weights, parallel checkpoints averaged")
    assert fields["num_parts"] == 3
    for name, tensor in weights.items():
        mean = torch.stack([part[name].double() for part in parts]).mean(0)
        assert torch.allclose(tensor.double(), mean, atol=1e-6, rtol=1e-6), name


def test_a_final_file_outranks_the_parts(tmp_path: Path) -> None:
    """Parallel checkpoints are not read where there is a final save."""
    weights, newer = bundle(tmp_path)
    write_parts(tmp_path, [newer])

    assert torch.equal(loaded_head(tmp_path), weights[HEAD])


@pytest.mark.parametrize("fault", ["missing", "shape", "integer"])
def test_parts_of_different_nets_are_refused(tmp_path: Path, fault: str) -> None:
    """Parts that differ in a tensor's presence, shape or kind are refused by name."""
    _, newer = bundle(tmp_path, old=False)
    other = dict(newer)
    if fault == "missing":
        del other[HEAD]
    elif fault == "shape":
        other[HEAD] = torch.zeros(2, 2)
    else:
        other[HEAD] = newer[HEAD].int()
    write_parts(tmp_path, [newer, other])

    with pytest.raises(ModelFormatError, match=rf"gpu1_final\.safetensors does not hold .*{HEAD}"):
        load_act_bundle(tmp_path)
