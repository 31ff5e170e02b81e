"""The device and the dtype that this process computes with, and its use of processor and memory.

A device that is requested by name must be there. `auto` takes cuda (ROCm counts as cuda), then mps,
then cpu. Torch is imported only when a device is chosen, because the echo runner needs none.
"""

import ctypes
import os
import platform
import sys
from typing import TYPE_CHECKING, TypedDict

from shared import garbage
from shared.settings.settings import SettingsError
from shared.telemetry.memory import resident_bytes
from worker.hardware import machine

if TYPE_CHECKING:
    import torch

CORES_ENV = "AIOS_WORKER_CORES"
"""The environment variable of one worker's processors, such as "0,1".

The supervisor sets it, because only the supervisor knows how many workers share the machine.
"""

TUNABLES_ENV = "GLIBC_TUNABLES"
HUGE_PAGES = "glibc.malloc.hugetlb=1"
"""The value of TUNABLES_ENV with which malloc asks the kernel for huge pages.

Weights, keys and values are read from memory in every step, and with pages of 4 KiB the processor
often waits for an address. It has to be set before the process starts (glibc 2.35 or later).
"""

# Parameters of glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_MMAP_THRESHOLDS = (1 << 30, 1 << 25)  # glibc before 2.35 takes no more than 32 MiB


class Capabilities(TypedDict):
    """The accelerators of this machine.

    `gpu_name` and `memory_gb` (in units of 2**30 bytes) are those of the first GPU.
    """

    cuda: bool
    mps: bool
    gpu_name: str | None
    memory_gb: float | None


def select_device(prefer: str = "auto") -> "torch.device":
    """Return the device to use. `prefer` is auto | cuda | mps | cpu.

    Raise SettingsError when a named device is missing.
    """
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
    """Return the bytes of the GPU's memory that this process has reserved, and the total.

    Both are 0 for a process that uses no CUDA GPU.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0, 0
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return torch.cuda.memory_reserved(), properties.total_memory


def memory_in_use() -> tuple[int, int]:
    """Return the total memory and the memory in use, both in bytes. They are 0 where unknown.

    The memory is that of the GPU if this process uses one, else of the container or the machine.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return machine.memory_in_use()
    free, total = torch.cuda.mem_get_info()
    return total, total - free


def bytes_in_use() -> int:
    """Return the bytes that this process holds, on the GPU if it uses one, else in memory.

    Return 0 where unknown.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return resident_bytes()
    return int(torch.cuda.memory_allocated())


def device_capabilities() -> Capabilities:
    """Return the accelerators of this machine. Imports torch."""
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


def choose_dtype(requested: str, device: "torch.device") -> str:
    """Return the `requested` dtype, or for `auto` one with which the device is fast.

    That is bfloat16, or else float16, on cuda, and float32 elsewhere.
    """
    import torch

    if requested != "auto":
        return requested
    # On the CPU float32 makes tokens independent of other rows and of the worker.
    if device.type != "cuda":
        return "float32"
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bfloat16"
    return "float16"


def use_threads(count: int) -> None:
    """Set the number of threads to compute with, whether or not torch has been imported."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(count)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)


def use_cores(processors: str) -> None:
    """Bind this thread, and threads started from now on, to these processors ("0,1").

    This works on Linux only.
    """
    if sys.platform == "linux":
        numbers = [int(number) for number in processors.split(",")]
        os.sched_setaffinity(0, numbers)


def keep_freed_memory() -> None:
    """Let malloc keep freed memory for the next step.

    Call this before other threads start. It works with glibc only. A step's temporaries have the
    same sizes each time. By default the large ones, of tens of MiB, would be mapped from the kernel
    and returned to it each time. Writing to them then costs a page fault every 4 KiB, which takes
    longer than the computing.
    """
    libc = _glibc()
    if libc is None:
        return
    # One arena for all threads: the arena of a thread other than the main one, such as the
    # engine's, cannot hold blocks of more than 64 MiB, whatever the threshold.
    libc.mallopt(_M_ARENA_MAX, 1)
    libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    # The largest threshold that this glibc takes.
    for size in _MMAP_THRESHOLDS:
        if libc.mallopt(_M_MMAP_THRESHOLD, size):
            break


def give_back_memory() -> None:
    """Free unused memory, and return it to the system once.

    Call this after loading, which needs more memory than serving, and when a model is unloaded. The
    processor's memory is returned with glibc only.
    """
    garbage.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.accelerator.is_available():
        torch.accelerator.empty_cache()
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    """Return the C library of this process if it is glibc."""
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return None
    return ctypes.CDLL(None)
