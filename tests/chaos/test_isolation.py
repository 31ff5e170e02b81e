"""A cell that fails makes no other cell fail."""

import subprocess
import sys
from pathlib import Path

from shared.shipped import REPO_ROOT


def test_the_cell_after_a_broken_one_passes() -> None:
    cells = Path(__file__).with_name("broken_cell.py")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--tb=line",
        str(cells),
    ]

    run = subprocess.run(command, cwd=REPO_ROOT, capture_output=True, text=True, check=False)
    assert "1 failed, 1 passed" in run.stdout, run.stdout + run.stderr
    assert "on purpose" in run.stdout
