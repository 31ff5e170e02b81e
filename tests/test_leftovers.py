"""A process that a test leaves behind fails the run by name, and is ended.

The same holds for an orphan, whose parent is gone.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from shared.shipped import REPO_ROOT
from tests.fixtures.polling import is_running

LEAVES_A_STOPPED_ONE = """
import signal, subprocess

def test_that_fails_and_leaves():
    process = subprocess.Popen(["sleep", "1000"])
    process.send_signal(signal.SIGSTOP)
    assert False
"""
LEAVES_AN_ORPHAN = """
import subprocess

def test_that_passes_and_leaves():
    subprocess.run(["sh", "-c", "sleep 1000 >/dev/null & exit 0"])
"""
LEAVES_NONE = """
import subprocess

def test_that_ends_what_it_starts():
    process = subprocess.Popen(["sleep", "1000"])
    process.kill()
    process.wait()

def test_that_does_not_wait():
    subprocess.Popen(["true"])
"""


def run(directory: Path, **files: str) -> "subprocess.CompletedProcess[str]":
    """Run pytest on these test files, with our plugin and nothing else of ours."""
    for name, text in files.items():
        (directory / f"test_{name}.py").write_text(text)

    command = [
        *(sys.executable, "-m", "pytest", "-q"),
        *("-p", "no:cacheprovider"),
        *("-p", "tests.fixtures.leftovers"),
        *("-c", os.devnull),
        *("--rootdir", str(directory)),
        str(directory),
    ]
    return subprocess.run(
        command,
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(REPO_ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_what_is_left_fails_the_run_and_is_ended(tmp_path: Path) -> None:
    result = run(tmp_path, one=LEAVES_A_STOPPED_ONE, other=LEAVES_AN_ORPHAN)
    assert result.returncode == 1, result.stdout
    assert "1 failed, 1 passed, 2 errors" in result.stdout

    line = r"process (\d+) \(sleep 1000\), started in test_(?:one|other).py::(\w+)"
    test_by_pid = dict(re.findall(line, result.stdout))
    tests = sorted(test_by_pid.values())
    assert tests == ["test_that_fails_and_leaves", "test_that_passes_and_leaves"], result.stdout
    for pid in test_by_pid:
        assert not is_running(int(pid))


def test_who_cleans_up_passes(tmp_path: Path) -> None:
    result = run(tmp_path, none=LEAVES_NONE)
    assert result.returncode == 0, result.stdout
