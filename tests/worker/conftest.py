"""Fixtures of tests that run on a GPU where there is one."""

from collections.abc import Iterator
from typing import Any

import pytest


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
