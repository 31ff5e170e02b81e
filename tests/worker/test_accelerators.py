"""The tables of runners and accelerators name code by strings, and all of it is there.

An accelerator's needs are checked before it touches a network.
"""

import pytest
import torch
from torch import nn

from shared.accelerators import ACCELERATORS, Accelerator
from shared.plugins import import_target
from shared.settings.settings import ModelEntry, Settings
from shared.tasks.runner_table import RUNNERS
from worker.engine.runner import RunnerOptions
from worker.hardware.shapes import kind_of_weights
from worker.models.errors import ModelFormatError
from worker.runners.accelerators import prepare

HERE = "tests.worker.test_accelerators"


def nothing_is_there() -> bool:
    return False


def doubled(model: nn.Module, options: RunnerOptions) -> int:
    assert options.quantize == "double"
    assert isinstance(model, nn.Linear)
    model.weight.data.mul_(2)
    return 1


def test_what_the_tables_name_can_be_called() -> None:
    """Every name in the tables is that of a callable."""
    targets: list[str] = []
    for info in RUNNERS.values():
        targets.append(info.target)
    for row in ACCELERATORS.values():
        targets.append(row.prepare)
        if row.is_there is not None:
            targets.append(row.is_there)

    for target in targets:
        assert callable(import_target(target)), target


def test_a_new_accelerator_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of the table is all that a new accelerator needs."""
    row = Accelerator(f"{HERE}:doubled", precision="doubled layers")
    monkeypatch.setitem(ACCELERATORS, "double", row)
    options = RunnerOptions("net", quantize="double")
    net = nn.Linear(2, 1, bias=False)
    before = net.weight.detach().clone()

    assert prepare(net, options) == 1

    assert torch.equal(net.weight, 2 * before)
    assert options.precision == "float32 with doubled layers"


def test_what_it_needs_is_checked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """An accelerator is refused on another device, and where something that it needs is missing."""
    row = Accelerator(
        f"{HERE}:doubled", devices=("cpu",), needs="a miracle", is_there=f"{HERE}:nothing_is_there"
    )
    monkeypatch.setitem(ACCELERATORS, "double", row)
    options = RunnerOptions("net", quantize="double")

    missing = "double weights need a miracle; they are missing"
    with pytest.raises(ModelFormatError, match=missing):
        prepare(nn.Linear(2, 1), options)

    other_device = "double weights are for the CPU; this model is on meta"
    with pytest.raises(ModelFormatError, match=other_device):
        prepare(nn.Linear(2, 1, device="meta"), options)


def test_what_becomes_of_weights_counts_for_their_size() -> None:
    """The size of weights is that of their quantization, else that of their dtype."""
    quantized = ModelEntry(id="m", path="x", quantize="int8", dtype="bfloat16")
    half = ModelEntry(id="m", path="x", quantize="none", dtype="bfloat16")
    plain = ModelEntry(id="m", path="x")

    assert kind_of_weights(quantized) == "int8"
    assert kind_of_weights(half) == "bfloat16"
    assert kind_of_weights(plain) == "float32"


def test_the_choices_of_the_setting_are_the_rows() -> None:
    """The setting `quantize` allows the table's names, and no other."""
    field = Settings.model_fields["quantize"]
    assert field.annotation is not None
    assert set(field.annotation.__args__) == set(ACCELERATORS)  # type: ignore[attr-defined]
