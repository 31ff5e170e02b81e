"""The fast tier loads no torch, and the files that it leaves out are told by their imports."""

import subprocess
import sys

import pytest

from tests.fixtures.tiers import ROOT, needs_of_file

_PROGRAM = """
import sys
import pytest

status = pytest.main(["--fast", "--collect-only", "-q", "-p", "no:cacheprovider", "tests"])
heavy = {"torch", "transformers", "tokenizers"} & sys.modules.keys()
print("loaded:", sorted(heavy))
sys.exit(status)
"""


@pytest.mark.parametrize(
    ("file", "needs"),
    [
        ("tests/shared/test_metrics.py", set()),
        ("tests/worker/test_task_engine.py", set()),
        ("tests/worker/test_sampler.py", {"torch"}),
        ("tests/chaos/test_matrix.py", {"process"}),
        ("tests/e2e/test_wheel.py", {"process"}),
    ],
)
def test_what_a_file_needs_is_read_off_its_imports(file: str, needs: set[str]) -> None:
    assert needs_of_file(ROOT / file) == needs


def test_the_fast_tier_loads_no_torch() -> None:
    result = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr
    assert result.stdout.splitlines()[-1] == "loaded: []"
