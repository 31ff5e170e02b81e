"""The device and the dtype that this process computes with, and its use of processor and memory.

A device that was asked for by name must be there; `auto` takes cuda (ROCm counts as cuda), then
mps, then cpu. Torch is imported only when a device is chosen: the echo runner needs none.
"""

import ctypes
import gc
import os
import platform
import sys
from typing import TYPE_CHECKING, TypedDict

from shared.settings.settings import SettingsError
from shared.telemetry.memory import resident_bytes
from worker.hardware import machine

if TYPE_CHECKING:
    import torch

CORES_ENV = "AIOS_WORKER_CORES"
"""The processors of one worker, as "0,1". The supervisor writes them: it alone knows how many
workers share the machine."""

# Parameters of glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_MMAP_THRESHOLDS = (1 << 30, 1 << 25)  # glibc before 2.35 takes no more than 32 MiB


class Capabilities(TypedDict):
    """The accelerators of this machine. Name and memory (in units of 2**30 bytes) are the first
    GPU's."""

    cuda: bool
    mps: bool
    gpu_name: str | None
    memory_gb: float | None


def select_device(prefer: str = "auto") -> "torch.device":
    """Return the device to use; `prefer` is auto | cuda | mps | cpu. Raise SettingsError when a
    named one is missing."""
    import torch

    # In the order of `auto`.
    capabilities = device_capabilities()
    devices: dict[str, str] = {}
    if capabilities["cuda"]:
        devices["cuda"] = "cuda:0"
    if capabilities["mps"]:
        devices["mps"] = "mps"
    devices["cpu"] = "cpu"

    if prefer == "auto":
        return torch.device(next(iter(devices.values())))
    if prefer not in devices:
        raise SettingsError(
            f"device: {prefer!r} was asked for but is not available here; there is "
            f"{', '.join(devices)}"
        )
    return torch.device(devices[prefer])


def device_memory() -> tuple[int, int]:
    """Return the bytes of the GPU that this process has allocated, and all there are; zeros where
    it uses none."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0, 0
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return torch.cuda.memory_reserved(), properties.total_memory


def memory_in_use() -> tuple[int, int]:
    """Return the bytes of memory in all, and those in use; zeros where the system does not tell.

    They are of the GPU where this process uses one, else of the machine or its container.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return machine.memory_in_use()
    free, total = torch.cuda.mem_get_info()
    return total, total - free


def bytes_in_use() -> int:
    """Return the bytes that this process holds, on the GPU where it uses one, else in memory; 0
    where unknown."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return resident_bytes()
    return int(torch.cuda.memory_allocated())


def device_capabilities() -> Capabilities:
    import torch

    cuda = torch.cuda.is_available()
    mps = torch.backends.mps.is_available()
    if cuda:
        properties = torch.cuda.get_device_properties(0)
        memory_gb = round(properties.total_memory / 2**30, 1)
        return Capabilities(cuda=True, mps=mps, gpu_name=properties.name, memory_gb=memory_gb)
    if mps:
        memory_gb = round(torch.mps.recommended_max_memory() / 2**30, 1)
        return Capabilities(
            cuda=False, mps=True, gpu_name=platform.processor(), memory_gb=memory_gb
        )
    return Capabilities(cuda=False, mps=False, gpu_name=None, memory_gb=None)


def choose_dtype(wanted: str, device: "torch.device") -> str:
    """Return `wanted`, or for `auto` the dtype that the device is fast with: bfloat16, else
    float16, on cuda; float32 elsewhere."""
    import torch

    if wanted != "auto":
        return wanted
    # On the CPU float32 makes tokens independent of batch mates and workers.
    if device.type != "cuda":
        return "float32"
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bfloat16"
    return "float16"


def use_threads(count: int) -> None:
    """Compute with `count` threads, whether or not torch has been imported yet."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(count)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)


def use_cores(processors: str) -> None:
    """Run only on these processors ("0,1"), with every thread started from now on. Works on Linux
    only."""
    if sys.platform == "linux":
        os.sched_setaffinity(0, map(int, processors.split(",")))


def keep_freed_memory() -> None:
    """Let malloc keep what is freed, for the next step. To be called before other threads start.
    Works with glibc only.

    A step's temporaries are of the same sizes each time, and the large ones, of tens of MiB, would
    by default be mapped from the kernel and given back each time. Writing to them then costs a page
    fault every 4 KiB, which takes longer than the computing.
    """
    libc = _glibc()
    if libc is None:
        return
    # One arena for all: the engine runs on a thread of its own, and such a thread's arena cannot
    # hold blocks of more than 64 MiB, whatever the threshold.
    libc.mallopt(_M_ARENA_MAX, 1)
    libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    # The largest threshold that this glibc takes.
    for size in _MMAP_THRESHOLDS:
        if libc.mallopt(_M_MMAP_THRESHOLD, size):
            break


def give_back_memory() -> None:
    """Free what nobody holds and return it to the system once, the processor's memory with glibc
    only.

    To be called after loading, which needs more than serving, and when a model has gone.
    """
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.accelerator.is_available():
        torch.accelerator.empty_cache()
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return None
    return ctypes.CDLL(None)
