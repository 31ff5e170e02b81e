"""What a worker does to its process before torch is there: threads, cores and malloc. Each in a
process of its own."""

import json
import os
import platform
import subprocess
import sys
from typing import Any

import pytest

from worker.hardware.machine import available_processors

PREPARE = """
import json, os, sys, threading
from shared.settings.settings import Settings
from worker.__main__ import prepare_process
prepare_process(Settings(**json.loads(sys.argv[1])))
found = {"early": "torch" in sys.modules}
import torch
def look():
    found["threads"] = torch.get_num_threads()
    found["cores"] = sorted(os.sched_getaffinity(0))
thread = threading.Thread(target=look)  # the engine's thread is not the one that prepares
thread.start(); thread.join()
print(json.dumps(found))
"""
FAULTS = """
import ctypes, resource, sys, threading
from worker.hardware.device import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
def step(size=96 * 2**20):
    block = ctypes.c_void_p(libc.malloc(ctypes.c_size_t(size)))
    libc.memset(block, 1, ctypes.c_size_t(size))
    libc.free(block)
def count():
    step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3): step()
    print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 3)
thread = threading.Thread(target=count)
thread.start(); thread.join()
"""
GIVES_BACK = """
import ctypes, os
from worker.hardware.device import give_back_memory, keep_freed_memory
keep_freed_memory()
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
before, size = resident(), ctypes.c_size_t(96 * 2**20)
block = ctypes.c_void_p(libc.malloc(size))
libc.memset(block, 1, size)
libc.free(block)
kept = resident() - before
give_back_memory()
print(kept, resident() - before)
"""
linux = pytest.mark.skipif(sys.platform != "linux", reason="processors are pinned on Linux only")
glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="malloc is told to keep memory on glibc only"
)


def run(code: str, *args: str, **env: str) -> str:
    command = [sys.executable, "-c", code, *args]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("AIOS_")
    } | env
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def prepared(env: dict[str, str], **settings: object) -> Any:
    return json.loads(run(PREPARE, json.dumps(settings), **env))


@linux
def test_threads_hold_in_every_thread_whatever_the_environment_said() -> None:
    count = min(2, len(available_processors()))  # torch takes no more than there are cores
    found = prepared({"OMP_NUM_THREADS": "1"}, threads=count)
    assert found == {"early": False, "threads": count, "cores": list(available_processors())}


@linux
def test_a_worker_runs_on_the_cores_it_is_given_unless_told_otherwise() -> None:
    """And `auto` is one thread for the sample model, which fits any cache."""
    last = available_processors()[-1]
    given = {"AIOS_WORKER_CORES": str(last), "OMP_NUM_THREADS": "7"}
    assert prepared(given) == {"early": False, "threads": 1, "cores": [last]}
    assert prepared(given, pin_cores=False)["cores"] == list(available_processors())


@glibc
def test_a_steps_temporaries_are_not_mapped_anew_each_time() -> None:
    """96 MiB are 24,576 pages: without the setting each is faulted in again at every step."""
    assert int(run(FAULTS, "default")) > 20_000, (
        "malloc keeps memory anyway, so this proves nothing"
    )
    assert int(run(FAULTS, "keep")) < 100


@glibc
def test_what_loading_freed_is_given_back_once() -> None:
    kept, left = map(int, run(GIVES_BACK).split())
    assert kept > 90, "nothing was kept, so this proves nothing"
    assert left < 10
