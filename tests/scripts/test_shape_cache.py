"""Measurements of shapes are kept for their owner, for what they depend on and nothing else."""

import os
import stat
from pathlib import Path
from typing import Any

import pytest

import scripts.cli.shape_cache as cache
from scripts.cli.shape_cache import FILE, keep, kept, key_of
from shared.settings.settings import ModelEntry, Settings, model_entries
from worker.hardware.machine import Machine
from worker.hardware.measurements import Measurement

MEASURED = (Measurement(1, 2, 186.5, 24.25), Measurement(2, 1, 165.0, 13.5))
MACHINE = Machine(((0,), (1,)), 2, cache_bytes=1, free_memory_bytes=2**30)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of the file."""
    monkeypatch.setenv("AIOS_RUN_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


def test_what_is_kept_is_found_again(folder: Path) -> None:
    assert kept("a") is None
    keep("a", MEASURED)
    keep("b", MEASURED[:1])

    found = kept("a")
    assert found is not None
    assert found.measurements == MEASURED
    assert len(found.day) == len("2026-11-29")
    other = kept("b")
    assert other is not None
    assert other.measurements == MEASURED[:1]
    assert kept("c") is None
    assert stat.S_IMODE((folder / FILE).stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_it_is_kept_where_files_outlive_a_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AIOS_RUN_DIR")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home"))
    keep("a", MEASURED)
    assert (tmp_path / "home" / "aios" / FILE).is_file()
    assert not (tmp_path / "run").exists()


def test_the_oldest_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_MOST_KEPT", 2)
    for key in ("a", "b", "a", "c"):
        keep(key, MEASURED)
    assert kept("b") is None, "a was kept again after it"
    assert kept("a") is not None
    assert kept("c") is not None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"a": 1}',
        b'{"a": {"day": "2026-11-29"}}',
        b'{"a": {"day": "2026-11-29", "measurements": [{"workers": "1"}]}}',
        bytes(range(256)),
    ],
)
def test_a_damaged_file_is_replaced(folder: Path, content: bytes) -> None:
    folder.mkdir(mode=0o700)
    (folder / FILE).write_bytes(content)
    assert kept("a") is None
    keep("a", MEASURED)
    found = kept("a")
    assert found is not None
    assert found.measurements == MEASURED


def test_what_is_no_file_is_passed_over(folder: Path) -> None:
    """No pipe is opened, which would block for ever."""
    folder.mkdir(mode=0o700)
    os.mkfifo(folder / FILE)
    assert kept("a") is None
    keep("a", MEASURED)
    assert kept("a") is not None


def test_a_folder_that_is_open_to_others_is_not_believed(folder: Path) -> None:
    keep("a", MEASURED)
    folder.chmod(0o755)
    assert kept("a") is None
    with pytest.raises(OSError, match="open to others"):
        keep("b", MEASURED)


def test_a_file_that_cannot_be_written_leaves_the_old_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is replaced as a whole, and nothing is left behind."""
    keep("a", MEASURED)

    def fail(self: Path, target: Path) -> Path:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="no space left"):
            keep("b", MEASURED)
    assert kept("a") is not None
    assert kept("b") is None
    assert [file.name for file in folder.iterdir()] == [FILE]


def key(
    path: Path, *, machine: Machine = MACHINE, runner: str = "hrm-text", **settings: Any
) -> str:
    entry = ModelEntry(id="m", path=str(path))
    values = Settings(**{"models": (entry,), **settings})
    return key_of(model_entries(values)[0], runner, values, machine)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return a directory with a config and weights."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text('{"layers": 2}')
    (path / "model.safetensors").write_bytes(bytes(100_000))
    return path


def test_a_model_may_be_moved_and_have_another_name(model: Path, tmp_path: Path) -> None:
    before = key(model)
    moved = model.rename(tmp_path / "moved")
    assert key(moved) == before

    entry = ModelEntry(id="another", path=str(moved))
    assert key(moved, models=(entry,)) == before


def test_other_files_are_another_model(model: Path) -> None:
    keys = {key(model), key(model / "model.safetensors")}
    (model / "config.json").write_text('{"layers": 3}')
    keys.add(key(model))
    (model / "model.safetensors").write_bytes(bytes(100_001))
    keys.add(key(model))
    (model / "adapter.safetensors").write_bytes(b"")
    keys.add(key(model))
    assert len(keys) == 5


@pytest.mark.parametrize(
    "changed",
    [
        {"dtype": "bfloat16"},
        {"quantize": "int8"},
        {"max_batch_size": 8},
        {"pin_cores": False},
        {"compile_layers": False},
        {"runner": "causal"},
        {"machine": Machine(((0,), (1,), (2,)), 3, cache_bytes=1, free_memory_bytes=2**30)},
        {"machine": Machine(((0,), (1,)), 1, cache_bytes=1, free_memory_bytes=2**30)},
    ],
)
def test_what_speed_depends_on_is_in_the_key(model: Path, changed: dict[str, Any]) -> None:
    assert key(model, **changed) != key(model)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("processor", lambda: ["another processor"]),
        ("version", lambda package: f"another {package}"),
        ("find_runtime", lambda: "/lib/another-openmp.so"),
    ],
)
def test_the_machine_and_its_libraries_are_in_the_key(
    model: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: Any
) -> None:
    before = key(model)
    monkeypatch.setattr(cache, name, value)
    assert key(model) != before


def test_the_kernels_are_in_the_key(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "native"
    folder.mkdir()
    monkeypatch.setattr("worker.native.__path__", [str(folder)])
    keys = {key(model)}
    for content in (b"one", b"two"):
        (folder / "kernels_avx2.so").write_bytes(content)
        keys.add(key(model))
    assert len(keys) == 3


def test_free_memory_is_not_in_the_key(model: Path) -> None:
    other = Machine(((0,), (1,)), 2, cache_bytes=1, free_memory_bytes=2**31)
    assert key(model, machine=other) == key(model)
