"""What this machine offers to workers: cores, cache, memory and GPUs. Reads files of the system;
imports no torch.

On systems without these files (macOS, Windows) every logical processor counts as a core, and what
cannot be known is taken to be small, so that `auto` errs towards fewer workers.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from worker import cgroup

_UNKNOWN_CACHE_PER_CORE = 2 * 2**20
_GPU_NODES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA, ROCm, and either under WSL2
_COUNT_GPUS = (
    "import torch; print(torch.cuda.device_count() or int(torch.backends.mps.is_available()))"
)
_PROBE_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Machine:
    """`cores` are the physical ones this process may use, each with its logical processors; of
    their time a container may be given less, `num_cores` cores' worth. `cache_bytes` is last-level
    cache; `free_memory_bytes` 0 is unknown."""

    cores: tuple[tuple[int, ...], ...]
    num_cores: int
    cache_bytes: int
    free_memory_bytes: int
    num_gpus: int = 0


def survey(device: str) -> Machine:
    """This machine as the process sees it; GPUs are looked for unless `device` (auto | cuda | mps |
    cpu) is the CPU."""
    cores = physical_cores(available_processors())
    quota = cgroup.cpu_quota()
    num_cores = len(cores) if quota is None else max(1, min(len(cores), int(quota)))
    return Machine(
        cores,
        num_cores,
        cache_bytes([core[0] for core in cores]) or _UNKNOWN_CACHE_PER_CORE * num_cores,
        free_memory_bytes(),
        0 if device == "cpu" else count_gpus(),
    )


def available_processors() -> tuple[int, ...]:
    """Numbers of the logical processors that this process may run on."""
    if sys.platform == "linux":
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def physical_cores(
    processors: tuple[int, ...], system: Path = Path("/sys/devices/system/cpu")
) -> tuple[tuple[int, ...], ...]:
    """`processors` grouped by the core they are threads of, in the order of their numbers."""
    groups: dict[str, list[int]] = {}
    for number in processors:
        siblings = _text(system / f"cpu{number}" / "topology" / "thread_siblings_list") or str(
            number
        )
        groups.setdefault(siblings, []).append(number)
    return tuple(map(tuple, groups.values()))


def cache_bytes(processors: list[int], system: Path = Path("/sys/devices/system/cpu")) -> int:
    """Last-level caches of these processors, each counted once; 0 where the system does not
    tell."""
    caches: dict[str, int] = {}
    for number in processors:
        found = [
            (int(_text(place / "level")), _text(place / "shared_cpu_list"), _text(place / "size"))
            for place in (system / f"cpu{number}" / "cache").glob("index*")
            if _text(place / "type") != "Instruction" and _text(place / "size")
        ]
        if found:
            level, shared_by, size = max(found)
            caches[f"{level}:{shared_by}"] = (
                int(size[:-1]) * {"K": 2**10, "M": 2**20, "G": 2**30}[size[-1]]
            )
    return sum(caches.values())


def free_memory_bytes(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Memory that can be had without swapping, or what a container may still use of it; 0 where
    unknown."""
    lines = _text(meminfo).splitlines()
    free = next(
        (int(line.split()[1]) * 2**10 for line in lines if line.startswith("MemAvailable:")), 0
    )
    if not free and sys.platform == "darwin":  # it tells no more than the total
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    allowed = cgroup.free_memory_bytes()
    return free if allowed is None else min(free, allowed)


def memory_share(meminfo: Path = Path("/proc/meminfo")) -> float:
    """How much of its memory is in use: of the tightest control group with a limit, or else of the
    machine; 0 where the system does not tell."""
    in_group = cgroup.memory_share()
    if in_group is not None:
        return in_group
    total, used = _memory(meminfo)
    return used / total if total else 0.0


def memory_in_use(meminfo: Path = Path("/proc/meminfo")) -> tuple[int, int]:
    """Return the bytes of memory in all, and those in use: of the tightest control group with a
    limit, or else of the machine; zeros where the system does not tell."""
    return cgroup.memory_in_use() or _memory(meminfo)


def _memory(meminfo: Path) -> tuple[int, int]:
    kib: dict[str, int] = {}
    for line in _text(meminfo).splitlines():
        name, _, rest = line.partition(":")
        kib[name] = int(rest.split()[0])
    total = kib.get("MemTotal", 0)
    return total * 2**10, (total - kib.get("MemAvailable", 0)) * 2**10


def count_gpus() -> int:
    """GPUs that torch can use here. It is asked in a process of its own, because importing it is
    slow and binds threads; and not at all where no GPU's driver is loaded."""
    if sys.platform != "darwin" and not any(Path(node).exists() for node in _GPU_NODES):
        return 0
    command = [sys.executable, "-c", _COUNT_GPUS]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=_PROBE_TIMEOUT_S, check=False
    )
    return int(done.stdout) if done.returncode == 0 else 0


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
