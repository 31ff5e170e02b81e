"""A worker prepares its process before torch is loaded: threads, cores and malloc.

Each test runs a program in a process of its own.
"""

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
report = {"early": "torch" in sys.modules}
import torch

def look():
    report["threads"] = torch.get_num_threads()
    report["cores"] = sorted(os.sched_getaffinity(0))

# The engine's thread is not the one that prepares.
thread = threading.Thread(target=look)
thread.start()
thread.join()
print(json.dumps(report))
"""
FAULTS = """
import ctypes, resource, sys, threading
from worker.hardware.device import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
size = ctypes.c_size_t(96 * 2**20)

def step():
    block = ctypes.c_void_p(libc.malloc(size))
    libc.memset(block, 1, size)
    libc.free(block)

def num_faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def count():
    step()
    before = num_faults()
    for _ in range(3):
        step()
    print((num_faults() - before) // 3)

thread = threading.Thread(target=count)
thread.start()
thread.join()
"""
GIVES_BACK = """
import ctypes, os
from worker.hardware.device import give_back_memory, keep_freed_memory
keep_freed_memory()

def resident_mib():
    pages = int(open("/proc/self/statm").read().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") >> 20

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
size = ctypes.c_size_t(96 * 2**20)
before = resident_mib()
block = ctypes.c_void_p(libc.malloc(size))
libc.memset(block, 1, size)
libc.free(block)
kept = resident_mib() - before
give_back_memory()
print(kept, resident_mib() - before)
"""
linux = pytest.mark.skipif(sys.platform != "linux", reason="processors are pinned on Linux only")
glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="malloc is told to keep memory on glibc only"
)


def run(code: str, *args: str, **env: str) -> str:
    """Run the program, without settings in its environment but `env`, and return its output."""
    command = [sys.executable, "-c", code, *args]
    environment = {}
    for name, value in os.environ.items():
        if not name.startswith("AIOS_"):
            environment[name] = value
    environment.update(env)
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def prepared(env: dict[str, str], **settings: object) -> Any:
    """Return the threads and cores of a process that a worker has prepared."""
    return json.loads(run(PREPARE, json.dumps(settings), **env))


@linux
def test_threads_hold_in_every_thread_whatever_the_environment_said() -> None:
    """The setting `threads` outranks the environment, in other threads too."""
    cores = list(available_processors())
    # Torch takes no more threads than there are cores.
    count = min(2, len(cores))

    report = prepared({"OMP_NUM_THREADS": "1"}, threads=count)

    assert report == {"early": False, "threads": count, "cores": cores}


@linux
def test_a_worker_runs_on_the_cores_it_is_given_unless_told_otherwise() -> None:
    """A worker runs on the cores of `AIOS_WORKER_CORES` unless `pin_cores` is false.

    `auto` is one thread for the default model, which fits any cache.
    """
    last = available_processors()[-1]
    env = {"AIOS_WORKER_CORES": str(last), "OMP_NUM_THREADS": "7"}

    assert prepared(env) == {"early": False, "threads": 1, "cores": [last]}
    assert prepared(env, pin_cores=False)["cores"] == list(available_processors())


@glibc
def test_a_steps_temporaries_are_not_mapped_anew_each_time() -> None:
    """Memory that a step frees stays in the process for the next one.

    Without the setting each page is faulted in again at every step.
    """
    # 96 MiB are 24,576 pages.
    by_default = int(run(FAULTS, "default"))
    assert by_default > 20_000, "malloc keeps memory anyway, so this proves nothing"
    assert int(run(FAULTS, "keep")) < 100


@glibc
def test_what_loading_freed_is_given_back_once() -> None:
    """`give_back_memory` returns the memory that is kept to the system."""
    kept_mib, left_mib = run(GIVES_BACK).split()
    assert int(kept_mib) > 90, "nothing was kept, so this proves nothing"
    assert int(left_mib) < 10
