"""Cores and their threads, caches, quotas and memory of a machine, read from made-up files."""

import platform
from pathlib import Path

import pytest

from worker.hardware import cgroup, machine
from worker.hardware.machine import (
    cache_bytes,
    count_gpus,
    free_memory_bytes,
    memory_share,
    physical_cores,
    processor,
    survey,
)


def write(root: Path, **files: str) -> Path:
    """Write a file for each name, where `__` stands for a slash, and return `root`."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def hyperthreaded(root: Path) -> Path:
    """Write the files of four cores of two threads each, numbered as Intel does.

    There are two last-level caches of 8 MiB for two cores each.
    """
    for cpu in range(8):
        core = cpu % 4
        threads = f"{core},{core + 4}"
        shared_by = "0-1,4-5"
        if core >= 2:
            shared_by = "2-3,6-7"
        files = {
            f"cpu{cpu}__topology__thread_siblings_list": threads,
            f"cpu{cpu}__cache__index0__level": "1",
            f"cpu{cpu}__cache__index0__type": "Data",
            f"cpu{cpu}__cache__index0__size": "32K",
            f"cpu{cpu}__cache__index0__shared_cpu_list": threads,
            f"cpu{cpu}__cache__index3__level": "3",
            f"cpu{cpu}__cache__index3__type": "Unified",
            f"cpu{cpu}__cache__index3__size": "8192K",
            f"cpu{cpu}__cache__index3__shared_cpu_list": shared_by,
        }
        write(root, **files)
    return root


def test_threads_of_one_core_are_one_core(tmp_path: Path) -> None:
    """Processors of one core are grouped; without system files each is a core of its own."""
    system = hyperthreaded(tmp_path)
    assert physical_cores(tuple(range(8)), system) == ((0, 4), (1, 5), (2, 6), (3, 7))
    assert physical_cores((1, 3, 5), system) == ((1, 5), (3,)), "only what this process may use"
    assert physical_cores((0, 1), tmp_path / "none") == ((0,), (1,))


def test_a_processor_is_known_by_its_name_and_what_it_can_do(tmp_path: Path) -> None:
    """The first one stands for all. Its clock, which changes, does not count."""
    cpuinfo = tmp_path / "cpuinfo"
    first = "processor\t: 0\nmodel name\t: EPYC\ncpu MHz\t\t: 2596.123\nflags\t\t: fpu avx2\n"
    cpuinfo.write_text(f"{first}\n{first.replace('EPYC', 'Other')}")
    assert processor(cpuinfo) == ["EPYC", "fpu avx2"]

    cpuinfo.write_text("processor\t: 0\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\n")
    assert processor(cpuinfo) == ["fp asimd", "0x41"]
    assert processor(tmp_path / "nowhere") == [platform.machine(), platform.processor()]


def test_each_last_level_cache_counts_once(tmp_path: Path) -> None:
    """The size of the caches counts each last-level cache once, and no other cache."""
    system = hyperthreaded(tmp_path)
    assert cache_bytes([0, 1, 2, 3], system) == 16 * 2**20
    assert cache_bytes([0, 1], system) == 8 * 2**20
    assert cache_bytes([0], tmp_path / "none") == 0


@pytest.mark.parametrize(
    ("files", "own", "expected"),
    [
        ({"cpu.max": "250000 100000"}, "0::/", 2.5),
        ({"cpu.max": "max 100000"}, "0::/", None),
        ({"cpu.max": "max 100000", "pod__cpu.max": "150000 100000"}, "0::/pod/box", 1.5),
        (
            {"cpu__cpu.cfs_quota_us": "400000", "cpu__cpu.cfs_period_us": "100000"},
            "2:cpu:/elsewhere",
            4.0,
        ),
        ({"cpu__cpu.cfs_quota_us": "-1", "cpu__cpu.cfs_period_us": "100000"}, "2:cpu:/", None),
        ({"cpu.max": "100000 100000"}, "9:name=systemd:/", None),
    ],
)
def test_a_quota_of_processor_time(
    files: dict[str, str], own: str, expected: float | None, tmp_path: Path
) -> None:
    """The quota is that of the tightest group above the process, in both versions of cgroups."""
    membership = write(tmp_path / "proc", cgroup=own) / "cgroup"
    assert cgroup.cpu_quota(write(tmp_path / "sys", **files), membership) == expected


@pytest.mark.parametrize(
    ("files", "own", "expected"),
    [
        (
            {
                "memory.max": "1000",
                "memory.current": "700",
                "memory.stat": "anon 600\ninactive_file 50",
            },
            "0::/",
            350,
        ),
        ({"memory.max": "max", "memory.current": "700"}, "0::/", None),
        (
            {"memory__memory.limit_in_bytes": "500", "memory__memory.usage_in_bytes": "900"},
            "4:memory:/x",
            0,
        ),
        ({"memory__memory.limit_in_bytes": "9223372036854771712"}, "4:memory:/", None),
        (
            {
                "memory__memory.limit_in_bytes": "1000",
                "memory__memory.usage_in_bytes": "900",
                "memory__memory.stat": "inactive_file 1\ntotal_inactive_file 200",
            },
            "4:memory:/",
            300,
        ),
    ],
)
def test_a_limit_of_memory(
    files: dict[str, str], own: str, expected: int | None, tmp_path: Path
) -> None:
    """Free memory below a limit counts inactive files as free, in both versions of cgroups."""
    membership = write(tmp_path / "proc", cgroup=own) / "cgroup"
    assert cgroup.free_memory_bytes(write(tmp_path / "sys", **files), membership) == expected


def test_free_memory_is_what_is_available_below_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Free memory is the machine's available memory, or less where a limit leaves less."""
    meminfo = write(tmp_path, meminfo="MemTotal: 900 kB\nMemAvailable: 300 kB") / "meminfo"

    monkeypatch.setattr(cgroup, "free_memory_bytes", lambda: None)
    assert free_memory_bytes(meminfo) == 300 * 2**10

    monkeypatch.setattr(cgroup, "free_memory_bytes", lambda: 5)
    assert free_memory_bytes(meminfo) == 5


def test_a_survey_obeys_affinity_and_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quota lowers the number of cores to whole ones, but not below one."""
    monkeypatch.setattr(machine, "physical_cores", lambda processors: ((0,), (1,), (2,), (3,)))

    monkeypatch.setattr(cgroup, "cpu_quota", lambda: 2.7)
    offer = survey("cpu")
    assert len(offer.cores) == 4
    assert offer.num_cores == 2
    assert offer.num_gpus == 0

    monkeypatch.setattr(cgroup, "cpu_quota", lambda: 0.5)
    assert survey("cpu").num_cores == 1


def test_the_share_of_memory_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The share of memory in use is that of the container's limit, else of the machine."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(
        "MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable: 250 kB\nHugePages_Total: 0\n"
    )

    monkeypatch.setattr(cgroup, "memory_share", lambda: None)
    assert memory_share(meminfo) == 0.75
    assert memory_share(tmp_path / "missing") == 0.0

    monkeypatch.setattr(cgroup, "memory_share", lambda: 0.5)
    assert memory_share(meminfo) == 0.5


def test_no_gpu_is_counted_where_no_driver_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU's device file the count is 0, and no process is started to ask torch."""
    monkeypatch.setattr(machine.sys, "platform", "linux")
    monkeypatch.setattr(machine, "GPU_NODES", ())
    monkeypatch.setattr(
        machine.subprocess, "run", lambda *_, **__: pytest.fail("asked torch for nothing")
    )
    assert count_gpus() == 0


def test_gpus_are_counted_by_torch_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A process asks torch for the number of GPUs if there is a driver, and its answer counts.

    A driver that torch cannot use, as with a build for the CPU, is no GPU.
    """
    # Imported here, since other tests of this file need no torch.
    import torch

    monkeypatch.setattr(machine, "GPU_NODES", (str(tmp_path),))
    num_gpus = torch.cuda.device_count()
    if num_gpus == 0:
        num_gpus = int(torch.backends.mps.is_available())
    assert count_gpus() == num_gpus

    monkeypatch.setattr(machine, "COUNT_GPUS", "print(3)")
    assert count_gpus() == 3

    monkeypatch.setattr(machine, "COUNT_GPUS", "raise ImportError('no torch')")
    assert count_gpus() == 0
