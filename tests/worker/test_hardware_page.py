"""The table of docs/hardware.md, by device: dtypes, sizes and refusals are those of the code (D107)."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from shared.accelerators import ACCELERATORS
from shared.settings.settings import ModelEntry, Settings, SettingsError
from worker.engine.runner import RunnerOptions
from worker.hardware import device
from worker.host.loading import runner_options

PAGE = Path(__file__).parents[2] / "docs" / "hardware.md"
DEVICES = ("cpu", "mps", "cuda")

each_device = pytest.mark.parametrize("name", DEVICES)


def column(name: str) -> dict[str, str]:
    """Return the cells of a device in the table, by the titles of their rows."""
    _, _, table = PAGE.read_text(encoding="utf-8").partition("| | `cpu` | `mps` | `cuda` |\n|---|")
    cells = {}
    for line in table.partition("\n\n")[0].splitlines()[1:]:
        title, *values = [cell.strip() for cell in line.strip("|").split(" | ")]
        cells[title] = dict(zip(DEVICES, values, strict=True))[name]
    return cells


def codes(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


@pytest.fixture(autouse=True)
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch report the device of the test, and bfloat16 on it."""
    callspec: Any = request.node.callspec
    name = callspec.params["name"]
    monkeypatch.setattr(device, "select_device", lambda prefer: torch.device(name))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)


def placed(**values: Any) -> RunnerOptions:
    settings = Settings(models=(ModelEntry(id="a", path="x"),), **values)
    return runner_options(settings.models[0], settings, "hrm-text")


@each_device
def test_sizes_and_dtypes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = column(name)
    options = placed()

    assert options.dtype == codes(cells["`--dtype auto`"])[0]
    assert str(options.page_size) == codes(cells["`--page-size`, tokens"])[0]
    assert str(options.step_tokens) == codes(cells["`--step-tokens`"])[0]
    assert placed(dtype="float32").page_size == 16
    assert placed(flash_attention=False).page_size == 16

    memory = cells["memory for keys and values of a model"]
    if options.kv_fraction is None:
        assert memory == f"{options.kv_bytes // 2**20} MiB"
    else:
        assert memory.startswith(f"{options.kv_fraction} of what the weights leave free")

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert placed().dtype == codes(cells["`--dtype auto`"])[-1].split()[0]


@each_device
def test_what_is_refused(name: str) -> None:
    cells = column(name)
    if cells["`--kv-memory-fraction`"] == "refused":
        with pytest.raises(SettingsError, match="expected on cuda only"):
            placed(kv_memory_fraction=0.5)
    else:
        assert placed(kv_memory_fraction=0.5).kv_fraction == 0.5

    is_for_device = name in ACCELERATORS["int8"].devices
    assert (cells["`--quantize int8`"] == "refused") != is_for_device
