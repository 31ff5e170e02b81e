"""Without a GPU, Triton's kernels are interpreted: it asks when a kernel is defined, so that must
be decided before a file of tests is loaded."""

import os
from pathlib import Path

import pytest


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> None:
    """Decide once; the fast tier has no kernels, and loads no torch."""
    if parent.config.getoption("--fast"):
        return
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """A device; a test that takes it runs on the CPU, and once more on a GPU where there is one."""
    name: str = request.param
    return name
