"""Tables name code by strings: it is there, and what an accelerator needs is checked before it
touches a network."""

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


def nothing_is_there() -> bool:
    return False


def doubled(model: nn.Module, options: RunnerOptions) -> int:
    assert options.quantize == "double"
    assert isinstance(model, nn.Linear)
    model.weight.data.mul_(2)
    return 1


def test_what_the_tables_name_can_be_called() -> None:
    targets = [info.target for info in RUNNERS.values()] + [
        row.prepare for row in ACCELERATORS.values()
    ]
    targets += [row.is_there for row in ACCELERATORS.values() if row.is_there is not None]
    for target in targets:
        assert callable(import_target(target)), target


def test_a_new_accelerator_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    here = "tests.worker.test_accelerators"
    monkeypatch.setitem(
        ACCELERATORS, "double", Accelerator(f"{here}:doubled", precision="doubled layers")
    )
    options = RunnerOptions("net", quantize="double")
    net = nn.Linear(2, 1, bias=False)
    before = net.weight.detach().clone()
    assert prepare(net, options) == 1
    assert torch.equal(net.weight, 2 * before)
    assert options.precision == "float32 with doubled layers"


def test_what_it_needs_is_checked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    here = "tests.worker.test_accelerators"
    row = Accelerator(
        f"{here}:doubled", devices=("cpu",), needs="a miracle", is_there=f"{here}:nothing_is_there"
    )
    monkeypatch.setitem(ACCELERATORS, "double", row)
    options = RunnerOptions("net", quantize="double")
    with pytest.raises(ModelFormatError, match="double weights need a miracle; they are missing"):
        prepare(nn.Linear(2, 1), options)
    with pytest.raises(
        ModelFormatError, match="double weights are for the CPU; this model is on meta"
    ):
        prepare(nn.Linear(2, 1, device="meta"), options)


def test_what_becomes_of_weights_counts_for_their_size() -> None:
    assert (
        kind_of_weights(ModelEntry(id="m", path="x", quantize="int8", dtype="bfloat16")) == "int8"
    )
    assert (
        kind_of_weights(ModelEntry(id="m", path="x", quantize="none", dtype="bfloat16"))
        == "bfloat16"
    )
    assert kind_of_weights(ModelEntry(id="m", path="x")) == "float32"


def test_the_choices_of_the_setting_are_the_rows() -> None:
    field = Settings.model_fields["quantize"]
    assert field.annotation is not None
    assert set(field.annotation.__args__) == set(ACCELERATORS)  # type: ignore[attr-defined]
