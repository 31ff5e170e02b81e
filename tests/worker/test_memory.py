"""Budgets of a GPU's memory, with a GPU made up of three numbers: free, used and the cap."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from shared.settings.settings import ModelEntry, Settings, SettingsError
from tests.fixtures.tiny_hrm_text import write_tiny
from worker.engine.runner import RunnerOptions
from worker.hardware import device, memory
from worker.host import loading
from worker.kv.store import KVShape
from worker.models.errors import ModelFormatError
from worker.runners.paged import count_pages

CUDA = torch.device("cuda:0")
CPU = torch.device("cpu")
MIB = 2**20
GIB = 2**30


def gpu(monkeypatch: pytest.MonkeyPatch, *, free: int, used: int = 0) -> None:
    """Make up a GPU of 80 GiB with so many bytes free and so many used by torch."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: used)


def options(**values: Any) -> RunnerOptions:
    return RunnerOptions("nowhere", device="cuda:0", **values)


def test_on_the_cpu_keys_and_values_have_a_fixed_budget() -> None:
    """On the CPU the budget is `kv_bytes`; neither share nor cap matters."""
    capped = options(kv_bytes=7, kv_fraction=0.5, max_device_bytes=1)
    assert memory.kv_memory(capped, CPU).num_bytes == 7


def test_on_a_gpu_they_get_a_share_of_what_is_free_below_the_cap(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a GPU the budget is a share of the free memory below the cap, or `kv_bytes` if less."""
    gpu(monkeypatch, free=10 * GIB, used=5 * GIB)

    def budget(**values: Any) -> int:
        return memory.kv_memory(options(**values), CUDA).num_bytes

    assert budget(kv_fraction=0.5) == 5 * GIB
    assert budget(kv_fraction=0.5, max_device_bytes=9 * GIB) == 2 * GIB
    assert budget(kv_fraction=0.5, max_device_bytes=3 * GIB) == 0
    assert budget(kv_bytes=GIB) == GIB
    assert budget(kv_bytes=GIB, max_device_bytes=5 * GIB + 9) == 9


def test_a_window_that_does_not_fit_behind_the_weights_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Memory below weights and one context window is refused; the error says what to do (D8)."""
    shape = KVShape(4, num_heads=2, head_dim=64)
    net: Any = SimpleNamespace(kv_shape=shape, dtype=torch.float32, device=CUDA)
    gpu(monkeypatch, free=10 * GIB, used=GIB)
    window = 512
    # Each token has keys and values, of 4 slots and 2 heads of 64 numbers of 4 bytes.
    cost = window * 2 * 4 * 2 * 64 * 4

    enough = options(kv_fraction=1.0, max_device_bytes=GIB + cost)
    assert count_pages(net, window, enough, kv_dtype=net.dtype) == window // 16

    too_little = options(kv_fraction=1.0, max_device_bytes=GIB + cost - 1)
    with pytest.raises(
        ModelFormatError, match=r"max_gpu_memory_gb allows 1\. .*bfloat16.*context window"
    ):
        count_pages(net, window, too_little, kv_dtype=net.dtype)

    gpu(monkeypatch, free=cost - 1)
    with pytest.raises(
        ModelFormatError, match=r"free memory of cuda:0 allows 1\. .*bfloat16.*context window"
    ):
        count_pages(net, window, options(kv_fraction=1.0), kv_dtype=net.dtype)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Return settings of a tiny model for a GPU that is made up; a test that loads it fails."""
    monkeypatch.setattr(device, "select_device", lambda prefer: CUDA)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(loading, "load_runner", lambda *_: pytest.fail("it was loaded"))
    gpu(monkeypatch, free=10 * GIB)
    write_tiny(tmp_path)
    return Settings(models=(ModelEntry(id="tiny", path=str(tmp_path)),))


@pytest.mark.parametrize(
    ("dtype", "better"), [("float32", "in bfloat16"), ("auto", "smaller model")]
)
def test_weights_over_the_cap_are_refused_before_they_are_loaded(
    settings: Settings, dtype: str, better: str
) -> None:
    """Weights above the cap are refused by their files' size, with what to do about it."""
    capped = settings.model_copy(update={"max_gpu_memory_gb": 1e-6, "dtype": dtype})
    with pytest.raises(SettingsError, match=f"model 'tiny': .*max_gpu_memory_gb allows .*{better}"):
        loading.load_models(capped)


def test_weights_over_what_is_free_are_refused(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights above the free memory are refused before they are loaded."""
    gpu(monkeypatch, free=1000)
    with pytest.raises(SettingsError, match="the free memory of cuda:0 allows"):
        loading.load_models(settings)


def test_a_model_that_turns_out_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose size is only known once it is loaded is refused then."""
    gpu(monkeypatch, free=GIB, used=3 * GIB)
    with pytest.raises(ModelFormatError, match=r"1\.0 GB more than max_gpu_memory_gb"):
        memory.check_below_cap(options(max_device_bytes=2 * GIB))
    memory.check_below_cap(options(max_device_bytes=3 * GIB))
    memory.check_below_cap(options())


def placed(settings: Settings, **values: Any) -> RunnerOptions:
    """Return the options of the first model under the changed settings."""
    changed = settings.model_copy(update=values)
    return loading.runner_options(changed.models[0], changed, "hrm-text")


def test_settings_become_a_budget(settings: Settings) -> None:
    """On a GPU the models part a share of 0.9 between them; memory given in MiB outranks it."""
    by_default = placed(settings)
    assert by_default.device == "cuda:0"
    assert by_default.dtype == "bfloat16"
    assert by_default.kv_fraction == 0.9
    assert by_default.max_device_bytes is None

    two_models = (*settings.models, ModelEntry(id="b", path="x"))
    parted = placed(settings, models=two_models, kv_memory_fraction=0.5)
    assert parted.kv_fraction == 0.25

    in_mib = placed(settings, kv_memory_mib=64, max_gpu_memory_gb=1.5)
    assert in_mib.kv_fraction is None
    assert in_mib.kv_bytes == 64 * MIB
    assert in_mib.max_device_bytes == 1536 * MIB


def test_a_share_is_refused_where_it_means_nothing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A share is refused beside memory in MiB, and on a CPU."""
    with pytest.raises(SettingsError, match=r"kv_memory_fraction: .*kv_memory_mib is 64"):
        placed(settings, kv_memory_fraction=0.5, kv_memory_mib=64)
    monkeypatch.setattr(device, "select_device", lambda prefer: CPU)
    with pytest.raises(SettingsError, match=r"kv_memory_fraction: .*device is cpu"):
        placed(settings, kv_memory_fraction=0.5)

    by_default = placed(settings)
    assert by_default.kv_fraction is None
    assert by_default.kv_bytes == 512 * MIB
