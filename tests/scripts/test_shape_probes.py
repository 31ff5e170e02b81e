"""Shapes are measured by processes that load a model and decode as workers would."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import psutil
import pytest

from scripts.cli.child_env import child_env
from scripts.cli.shape_probes import Candidate, ProbeError, measure
from shared.settings.settings import ModelEntry, Settings
from tests.fixtures.tiny_hrm_text import write_tiny
from worker.hardware.machine import available_processors
from worker.host.shape_probe import GO, READY, Speed, Trial

PROCESSORS = available_processors()
BOTH = ",".join(str(processor) for processor in PROCESSORS[:2])
FIRST = str(PROCESSORS[0])
LAST = str(PROCESSORS[:2][-1])
PATIENT_S = 200.0  # a machine that runs other tests is slow


def env_of(path: str) -> dict[str, str]:
    """Return the environment of a fleet that serves this model as `m`."""
    entry = ModelEntry(id="m", path=path)
    return child_env(Settings(device="cpu", models=(entry,)))


def test_two_processes_measure_both_shapes(tmp_path: Path) -> None:
    """They are ended afterwards."""
    write_tiny(tmp_path, layers=1)
    candidates = [Candidate(2, [BOTH]), Candidate(1, [FIRST, LAST])]
    before = psutil.Process().children(recursive=True)

    found = measure("m", candidates, env_of(str(tmp_path)), rows=3, most_s=PATIENT_S)

    assert [(one.workers, one.threads) for one in found.shapes] == [(1, 2), (2, 1)]
    assert 0 <= found.delay <= 1
    for measured in found.shapes:
        assert measured.batch_tokens_per_s > 0
        assert measured.row_tokens_per_s > 0
    assert psutil.Process().children(recursive=True) == before


def test_a_model_that_does_not_load_is_a_reason(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ProbeError, match=r"config.json"):
        measure("m", [Candidate(1, [FIRST])], env_of(str(tmp_path)), rows=1, most_s=PATIENT_S)


def test_a_probe_that_is_killed_is_a_reason(tmp_path: Path) -> None:
    """The kernel kills it where memory is short, and it has no last words."""
    end_itself = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    (tmp_path / "sitecustomize.py").write_text(end_itself)
    env = {**env_of("echo"), "PYTHONPATH": str(tmp_path)}
    with pytest.raises(ProbeError, match="killed by SIGKILL"):
        measure("m", [Candidate(1, [FIRST])], env, rows=1, most_s=PATIENT_S)


def test_probes_that_take_too_long_are_ended(tmp_path: Path) -> None:
    write_tiny(tmp_path, layers=1)
    before = psutil.Process().children(recursive=True)
    with pytest.raises(ProbeError, match=r"took longer than 0.01 s"):
        measure("m", [Candidate(1, [FIRST])], env_of(str(tmp_path)), rows=1, most_s=0.01)
    assert psutil.Process().children(recursive=True) == before


@contextmanager
def probe(path: str, threads: int) -> "Iterator[subprocess.Popen[str]]":
    command = [sys.executable, "-m", "worker.host.shape_probe", "m", str(threads)]
    process = subprocess.Popen(
        command,
        env=env_of(path),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    with process:
        yield process
        process.kill()


def said(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def tell(process: "subprocess.Popen[str]", line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{line}\n")


@pytest.mark.skipif(sys.platform != "linux", reason="processors are pinned on Linux only")
def test_each_trial_has_its_own_processors(tmp_path: Path) -> None:
    """All threads move, those that compute already, too."""
    write_tiny(tmp_path, layers=1)
    with probe(str(tmp_path), 2) as process:
        assert said(process) == READY
        for processors in (BOTH, LAST, BOTH):
            trial = Trial(rows=2, threads=2, processors=processors, seconds=0.01)
            tell(process, msgspec.json.encode(trial).decode())
            assert said(process) == READY
            expected = {int(number) for number in processors.split(",")}
            for thread in psutil.Process(process.pid).threads():
                assert os.sched_getaffinity(thread.id) == expected
            tell(process, GO)
            speed = msgspec.json.decode(said(process), type=Speed)
            assert speed.num_tokens > 0
            assert speed.seconds >= 0.01


def test_a_probe_ends_with_its_stdin() -> None:
    with probe("echo", 1) as process:
        assert said(process) == READY
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=60) == 0
