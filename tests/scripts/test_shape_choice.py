"""A fleet's shape is measured once for a model and a machine, and only where that decides."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import SecretStr
from safetensors.torch import save_file

from scripts.cli import placement, shape_choice
from scripts.cli.placement import place_workers
from scripts.cli.shape_cache import FILE
from scripts.cli.shape_probes import Candidate, Measured, ProbeError
from shared.settings.settings import ModelEntry, Settings
from tests.fixtures.logged import fields_of
from worker.hardware.machine import Machine
from worker.hardware.measurements import Measurement

GIB = 2**30
ONE_IS_BEST = [Measurement(1, 2, 186.0, 24.0), Measurement(2, 1, 165.0, 13.0)]
WHY = "1 x 2 does 186 tokens/s at 16 and 24 at 1, 2 x 1 165 and 13"
RULE = "workers: one a core; threads: the cores shared out among the workers"


class Probes:
    """Stand in for the processes that measure: they say what they are told to say."""

    def __init__(self) -> None:
        self.answer: list[Measurement] | ProbeError = ONE_IS_BEST
        self.delay = 0.0
        self.calls: list[tuple[str, list[Candidate], int]] = []
        self.env: Mapping[str, str] = {}

    def measure(
        self, model_id: str, candidates: Sequence[Candidate], env: Mapping[str, str], *, rows: int
    ) -> Measured:
        self.calls.append((model_id, list(candidates), rows))
        self.env = env
        if isinstance(self.answer, ProbeError):
            raise self.answer
        return Measured(self.answer, self.delay)


@pytest.fixture
def probes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Probes:
    """Return the probes of a machine of two cores with little cache."""
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("AIOS_RUN_DIR", str(tmp_path / "state"))
    put(monkeypatch)
    probes = Probes()
    monkeypatch.setattr(shape_choice, "measure", probes.measure)
    return probes


def put(monkeypatch: pytest.MonkeyPatch, *, free: int = 64 * GIB, gpus: int = 0) -> None:
    """Put the fleet on a machine of two cores."""
    machine = Machine(((0, 2), (1, 3)), 2, 2**20, free, gpus)
    monkeypatch.setattr(placement, "survey", lambda device: machine)


@pytest.fixture
def model(tmp_path: Path) -> Callable[..., ModelEntry]:
    """Return a maker of models, whose weights no cache holds."""

    def make(name: str, num_weights: int = 2**20, **entry: Any) -> ModelEntry:
        path = tmp_path / name
        path.mkdir()
        (path / "config.json").write_text('{"model_type": "hrm_text"}')
        save_file({"w": torch.zeros(num_weights)}, path / "model.safetensors")
        return ModelEntry(id=name, path=str(path), **entry)

    return make


def test_the_first_start_measures_and_later_ones_remember(
    probes: Probes, model: Callable[..., ModelEntry], caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(models=(model("m"),), api_keys=(SecretStr("ann:s3cret"),))
    placed, envs = place_workers(settings)

    assert (placed.workers, placed.threads) == (1, 2)
    assert len(envs) == 1
    whole = Candidate(2, ["0,2,1,3"])
    halves = Candidate(1, ["0,2", "1,3"])
    assert probes.calls == [("m", [whole, halves], 16)]
    assert "s3cret" not in str(probes.env)
    [event] = fields_of(caplog, "measuring shapes")
    assert event == {"model": "m", "shapes": "1 x 2, 2 x 1", "most_s": 60.0}

    again, _ = place_workers(settings)
    assert again == placed
    assert len(probes.calls) == 1
    first, second = fields_of(caplog, "workers placed")
    assert first["shape"] == "1 worker of 2 threads"
    assert first["why"] == f"measured: {WHY}"
    assert second["why"].startswith("measured on 20")
    assert second["why"].endswith(f": {WHY}")


def test_what_was_measured_beside_other_work_is_measured_again(
    probes: Probes, model: Callable[..., ModelEntry], caplog: pytest.LogCaptureFixture
) -> None:
    """It decides for this start only."""
    settings = Settings(models=(model("m"),))
    for probes.delay, num_calls in ((0.3, 1), (0.09, 2), (0.0, 2)):
        placed, _ = place_workers(settings)
        assert (placed.workers, placed.threads) == (1, 2)
        assert len(probes.calls) == num_calls
    [event] = fields_of(caplog, "measurements not kept")
    assert event == {"error": "other work had the processors for 30% of the time"}


def test_the_fastest_is_taken(probes: Probes, model: Callable[..., ModelEntry]) -> None:
    probes.answer = [Measurement(1, 2, 100.0, 24.0), Measurement(2, 1, 165.0, 13.0)]
    placed, envs = place_workers(Settings(models=(model("m"),)))
    assert (placed.workers, placed.threads) == (2, 1)
    assert [env["AIOS_WORKER_CORES"] for env in envs] == ["0,2", "1,3"]


def test_workers_that_will_not_be_pinned_are_not_pinned_to_be_measured(
    probes: Probes, model: Callable[..., ModelEntry]
) -> None:
    place_workers(Settings(models=(model("m"),), pin_cores=False))
    [(_, candidates, _)] = probes.calls
    assert candidates == [Candidate(2, ["0,2,1,3"]), Candidate(1, ["0,2,1,3", "0,2,1,3"])]


@pytest.mark.parametrize(
    ("given", "shape"),
    [
        ({"workers": 2}, (2, 1)),
        ({"workers": 1}, (1, 2)),
        ({"threads": 1}, (2, 1)),
        ({"threads": 2}, (1, 2)),
        ({"workers": 2, "threads": 2}, (2, 2)),
    ],
)
def test_numbers_that_are_set_win(
    probes: Probes,
    model: Callable[..., ModelEntry],
    given: dict[str, Any],
    shape: tuple[int, int],
) -> None:
    """Nothing is measured, and what was measured is not asked for."""
    entry = model("m")
    place_workers(Settings(models=(entry,)))
    probes.calls.clear()
    placed, _ = place_workers(Settings(models=(entry,), **given))
    assert (placed.workers, placed.threads) == shape
    assert probes.calls == []


def test_the_rule_decides_where_measuring_fails(
    probes: Probes, model: Callable[..., ModelEntry], caplog: pytest.LogCaptureFixture
) -> None:
    """The reason is logged, and the next start tries again."""
    probes.answer = ProbeError("took longer than 60 s")
    settings = Settings(models=(model("m"),))
    placed, _ = place_workers(settings)
    assert (placed.workers, placed.threads) == (2, 1)
    [event] = fields_of(caplog, "workers placed")
    assert event["why"] == RULE
    [event] = fields_of(caplog, "shapes not measured")
    assert event == {"model": "m", "error": "took longer than 60 s"}

    probes.answer = ONE_IS_BEST
    placed, _ = place_workers(settings)
    assert (placed.workers, placed.threads) == (1, 2)


def test_without_a_folder_each_start_measures(
    probes: Probes,
    model: Callable[..., ModelEntry],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("AIOS_RUN_DIR", str(tmp_path / "file" / "none"))
    settings = Settings(models=(model("m"),))
    for count in (1, 2):
        placed, _ = place_workers(settings)
        assert (placed.workers, placed.threads) == (1, 2)
        assert len(probes.calls) == count
    assert len(fields_of(caplog, "measurements not kept")) == 2


def test_a_broken_file_is_measured_anew(
    probes: Probes, model: Callable[..., ModelEntry], tmp_path: Path
) -> None:
    settings = Settings(models=(model("m"),))
    place_workers(settings)
    (tmp_path / "state" / FILE).write_text("{")
    place_workers(settings)
    place_workers(settings)
    assert len(probes.calls) == 2


def test_memory_bounds_what_was_measured(
    probes: Probes, model: Callable[..., ModelEntry], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With less memory there is nothing to choose; with more, other shapes are measured."""
    settings = Settings(models=(model("m"),))
    put(monkeypatch, free=2**30)
    placed, _ = place_workers(settings)
    assert (placed.workers, placed.threads) == (1, 2)
    assert probes.calls == []

    put(monkeypatch)
    probes.answer = ONE_IS_BEST[:1]
    place_workers(settings)
    assert len(probes.calls) == 1
    probes.answer = ONE_IS_BEST
    place_workers(settings)
    assert len(probes.calls) == 2, "two workers had not been measured"
    place_workers(settings)
    assert len(probes.calls) == 2


def test_the_largest_model_is_measured(probes: Probes, model: Callable[..., ModelEntry]) -> None:
    small = model("small")
    large = model("large", 2**21)
    elsewhere = model("elsewhere", 2**22, gpu_required=True)
    echo = ModelEntry(id="e", path="echo")
    place_workers(Settings(models=(echo, small, large, elsewhere)))
    assert [call[0] for call in probes.calls] == ["large"]


@pytest.mark.parametrize("runner", ["encoder", "hrm-puzzle"])
def test_only_generating_is_measured(
    probes: Probes,
    model: Callable[..., ModelEntry],
    runner: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    place_workers(Settings(models=(model("m", runner=runner),)))
    assert probes.calls == []
    [event] = fields_of(caplog, "workers placed")
    assert event["why"] == RULE


def test_files_of_no_model_are_left_to_the_workers(
    probes: Probes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "notes.bin").write_bytes(bytes(2**22))
    place_workers(Settings(models=(ModelEntry(id="m", path=str(tmp_path)),)))
    assert probes.calls == []
    [event] = fields_of(caplog, "workers placed")
    assert event["why"] == RULE


def test_gpus_and_small_models_are_not_measured(
    probes: Probes, model: Callable[..., ModelEntry], monkeypatch: pytest.MonkeyPatch
) -> None:
    place_workers(Settings(models=(model("tiny", 1000),)))
    put(monkeypatch, gpus=1)
    place_workers(Settings(models=(model("m"),)))
    assert probes.calls == []
