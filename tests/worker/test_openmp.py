"""Workers of several threads compute with an OpenMP runtime that keeps threads ready."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from worker.hardware import openmp

INSTALLED = pytest.mark.skipif(
    openmp.find_runtime() is None, reason="no runtime is installed beside torch's own"
)
PROGRAM = """
import hashlib, sys
from worker.hardware.openmp import use_ready_threads

threads, with_runtime = int(sys.argv[1]), sys.argv[2] == "True"
loaded = use_ready_threads(threads) if with_runtime else None

import torch

torch.set_num_threads(threads)
torch.manual_seed(0)
digest = hashlib.sha256()
hidden = torch.randn(16, 512)
for _ in range(4):
    weight = torch.randn(2048, 512) / 20
    wide = torch.nn.functional.silu(torch.nn.functional.linear(hidden, weight))
    hidden = torch.nn.functional.rms_norm(wide @ weight, (512,))
    heads = hidden.view(1, 16, 8, 64).transpose(1, 2)
    scores = torch.nn.functional.scaled_dot_product_attention(heads, heads, heads)
    digest.update(hidden.numpy().tobytes() + scores.numpy().tobytes())
print(loaded)
print(digest.hexdigest())
"""


def compute(threads: int, *, with_runtime: bool) -> tuple[str, str, bool]:
    """Compute in a process of its own.

    Return the runtime that was loaded, a digest of all bits of the results, and whether that
    runtime started a second thread.
    """
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(threads), str(with_runtime)],
        env=os.environ | {"KMP_AFFINITY": "verbose"},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded, digest = done.stdout.split()
    return loaded, digest, "thread 1 bound" in done.stderr


@INSTALLED
def test_torch_computes_with_it_and_all_bits_are_equal() -> None:
    loaded, digest, has_threads = compute(2, with_runtime=True)
    assert loaded == openmp.find_runtime()
    assert has_threads
    assert compute(2, with_runtime=False) == ("None", digest, False)


@INSTALLED
def test_one_thread_needs_none() -> None:
    loaded, _, _ = compute(1, with_runtime=True)
    assert loaded == "None"


def test_torch_has_its_own_where_none_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openmp, "find_runtime", lambda: None)
    monkeypatch.delitem(sys.modules, "torch")
    assert openmp.use_ready_threads(2) is None


def test_it_comes_too_late_behind_torch() -> None:
    assert torch.__name__ in sys.modules
    assert openmp.use_ready_threads(2) is None


def test_what_ended_processes_left_behind_is_removed(tmp_path: Path) -> None:
    user = os.getuid()
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    left = tmp_path / f"__KMP_REGISTERED_LIB_{ended.pid}_{user}"
    kept = [
        tmp_path / f"__KMP_REGISTERED_LIB_{os.getpid()}_{user}",
        tmp_path / f"__KMP_REGISTERED_LIB_{ended.pid}_{user + 1}",
        tmp_path / f"other_{ended.pid}_{user}",
    ]
    for path in (left, *kept):
        path.touch()

    openmp.forget_ended(tmp_path)

    assert sorted(tmp_path.iterdir()) == sorted(kept)
