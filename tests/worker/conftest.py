"""Fixtures of tests that run on a GPU where there is one."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> None:
    """Have Triton's kernels interpreted where there is no GPU.

    Triton asks when a kernel is defined, so that must be decided before a file of tests is loaded.
    The fast tier has no kernels, and loads no torch.
    """
    if parent.config.getoption("--fast"):
        return
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")
    # torch.compile's pool of processes would outlive the tests.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device. A test that takes it runs on the CPU, and once more on a GPU where there is one.

    The GPU computes float32 in full, as the CPU does, and not in TF32.
    """
    name: str = request.param
    if name == "cpu":
        yield name
        return
    import torch

    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = False
    yield name
    for backend, allowed in zip(backends, before, strict=True):
        backend.allow_tf32 = allowed
