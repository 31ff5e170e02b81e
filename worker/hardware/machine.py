"""A survey of the machine: cores, cache, memory and GPUs.

The facts come from files of the system, without torch. On systems without these files (macOS,
Windows) every logical processor counts as a core. Unknown sizes are taken to be small, so that
`auto` errs towards fewer workers.
"""

import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from worker.hardware import cgroup

_UNKNOWN_CACHE_PER_CORE = 2 * 2**20
_BYTES_OF_UNIT = {"K": 2**10, "M": 2**20, "G": 2**30}
GPU_NODES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA, ROCm, and either under WSL2
COUNT_GPUS = (
    "import torch; print(torch.cuda.device_count() or int(torch.backends.mps.is_available()))"
)
_PROBE_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Machine:
    """The part of a machine that this process may use.

    `cores` are the physical cores, each with its logical processors. `num_cores` is the processor
    time that may be used, in cores: a container may have less than all. `cache_bytes` is the size
    of the last-level caches. `free_memory_bytes` is 0 where it is unknown.
    """

    cores: tuple[tuple[int, ...], ...]
    num_cores: int
    cache_bytes: int
    free_memory_bytes: int
    num_gpus: int = 0


def survey(device: str) -> Machine:
    """Return the part of this machine that the process may use.

    GPUs are counted unless `device` (auto | cuda | mps | cpu) is the CPU.
    """
    cores = physical_cores(available_processors())
    num_cores = len(cores)
    quota = cgroup.cpu_quota()
    if quota is not None:
        num_cores = max(1, min(num_cores, int(quota)))
    num_cache_bytes = cache_bytes([core[0] for core in cores])
    num_free_bytes = free_memory_bytes()
    return Machine(
        cores,
        num_cores,
        cache_bytes=num_cache_bytes or _UNKNOWN_CACHE_PER_CORE * num_cores,
        free_memory_bytes=num_free_bytes,
        num_gpus=0 if device == "cpu" else count_gpus(),
    )


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """Return the name of the first processor, and what it is able to do.

    Where the system has no file of it (macOS, Windows), only the kind is known.
    """
    facts: list[str] = []
    for line in _text(cpuinfo).partition("\n\n")[0].splitlines():
        name, _, value = line.partition(":")
        # Processors of Arm have an implementer and a part in place of a name.
        if name.strip() in ("model name", "flags", "CPU implementer", "CPU part", "Features"):
            facts.append(value.strip())
    return facts or [platform.machine(), platform.processor()]


def available_processors() -> tuple[int, ...]:
    """Return the numbers of the logical processors that this process may run on."""
    if sys.platform == "linux":
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def physical_cores(
    processors: tuple[int, ...], system: Path = Path("/sys/devices/system/cpu")
) -> tuple[tuple[int, ...], ...]:
    """Return `processors` in groups, one group for each core, in the order of their numbers."""
    groups: dict[str, list[int]] = {}
    for number in processors:
        siblings = _text(system / f"cpu{number}" / "topology" / "thread_siblings_list")
        # Where the system does not tell siblings, each processor counts as a core.
        groups.setdefault(siblings or str(number), []).append(number)
    return tuple(tuple(group) for group in groups.values())


def cache_bytes(processors: list[int], system: Path = Path("/sys/devices/system/cpu")) -> int:
    """Return the bytes of these processors' last-level caches, each counted once.

    Return 0 where the system does not tell.
    """
    sizes: dict[str, int] = {}
    for number in processors:
        caches: list[tuple[int, str, str]] = []
        for index in (system / f"cpu{number}" / "cache").glob("index*"):
            size = _text(index / "size")
            if not size or _text(index / "type") == "Instruction":
                continue
            caches.append((int(_text(index / "level")), _text(index / "shared_cpu_list"), size))
        if not caches:
            continue
        level, shared_by, size = max(caches)
        # Processors that share a cache name the same list.
        sizes[f"{level}:{shared_by}"] = int(size[:-1]) * _BYTES_OF_UNIT[size[-1]]
    return sum(sizes.values())


def free_memory_bytes(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Return the bytes of memory that may be allocated without swapping, 0 where unknown.

    In a container they are at most those that the container may still use.
    """
    free = 0
    for line in _text(meminfo).splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 2**10
            break
    # macOS tells only the total, of which half is taken to be free.
    if not free and sys.platform == "darwin":
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    allowed = cgroup.free_memory_bytes()
    if allowed is None:
        return free
    return min(free, allowed)


def memory_share(meminfo: Path = Path("/proc/meminfo")) -> float:
    """Return the share of memory that is in use, from 0 to 1. It is 0 where unknown.

    The memory is that of the fullest control group with a limit, or else the machine's.
    """
    in_group = cgroup.memory_share()
    if in_group is not None:
        return in_group
    total, used = _memory(meminfo)
    return used / total if total else 0.0


def memory_in_use(meminfo: Path = Path("/proc/meminfo")) -> tuple[int, int]:
    """Return the total memory and the memory in use, both in bytes. They are 0 where unknown.

    The memory is that of the fullest control group with a limit, or else the machine's.
    """
    return cgroup.memory_in_use() or _memory(meminfo)


def _memory(meminfo: Path) -> tuple[int, int]:
    """Return the machine's total memory and its memory in use, both in bytes."""
    kib: dict[str, int] = {}
    for line in _text(meminfo).splitlines():
        name, _, rest = line.partition(":")
        kib[name] = int(rest.split()[0])
    total = kib.get("MemTotal", 0)
    return total * 2**10, (total - kib.get("MemAvailable", 0)) * 2**10


def count_gpus() -> int:
    """Return the number of GPUs that torch can use here."""
    # Without the driver of a GPU there is no need to start torch.
    if sys.platform != "darwin" and not any(Path(node).exists() for node in GPU_NODES):
        return 0
    # In a separate process, because importing torch is slow, and fixes the threads of its process.
    command = [sys.executable, "-c", COUNT_GPUS]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=_PROBE_TIMEOUT_S, check=False
    )
    if done.returncode != 0:
        return 0
    return int(done.stdout)


def _text(file: Path) -> str:
    """Return a file's text without white space at its ends, empty where the file is missing."""
    try:
        return file.read_text().strip()
    except OSError:
        return ""
