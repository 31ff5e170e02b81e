"""What a container may use: processor time and memory, read from control groups of either version
(Linux).

A process sees all cores and all memory of its machine, whatever its container is given; only these
files tell. Where there are no such files nothing is limited.
"""

from collections.abc import Iterator
from pathlib import Path

_UNLIMITED_BYTES = 1 << 60  # version 1 says "no limit" with a number near 2**63


def cpu_quota(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> float | None:
    """Cores' worth of time that the tightest group around this process is given; None where there
    is no quota."""
    quotas = []
    for place in _places(root, own, "cpu"):
        words = _words(place / "cpu.max")  # version 2, in one file: "200000 100000" or "max 100000"
        words = words or _words(place / "cpu.cfs_quota_us") + _words(place / "cpu.cfs_period_us")
        if len(words) == 2 and words[0].isdigit():
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def free_memory_bytes(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> int | None:
    """Bytes left below the tightest limit, file cache that can be dropped not counted; None where
    there is none."""
    return min((max(0, limit - used) for limit, used in _memory(root, own)), default=None)


def memory_in_use(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> tuple[int, int] | None:
    """Return the tightest limit (bytes) and what is in use of it, counted in the same way; None
    where there is none."""
    limited = [(limit, used) for limit, used in _memory(root, own) if limit]
    return max(limited, key=lambda item: item[1] / item[0], default=None)


def memory_share(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> float | None:
    """What is in use of the tightest limit, from 0 to 1, counted in the same way; None where there
    is none."""
    return max((used / limit for limit, used in _memory(root, own) if limit), default=None)


def _memory(root: Path, own: Path) -> Iterator[tuple[int, int]]:
    """Limit and bytes in use of each group that has a limit."""
    for place in _places(root, own, "memory"):
        limit, used = _number(place / "memory.max"), _number(place / "memory.current")
        if limit is None:
            limit, used = (
                _number(place / "memory.limit_in_bytes"),
                _number(place / "memory.usage_in_bytes"),
            )
        if limit is not None and limit < _UNLIMITED_BYTES:
            yield limit, (used or 0) - _droppable(place / "memory.stat")


def _places(root: Path, own: Path, controller: str) -> Iterator[Path]:
    """The directories of the groups that this process is in, innermost first, up to the root that
    is mounted."""
    for line in own.read_text().splitlines() if own.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            top = root / controller if controllers else root
            group = top / path.lstrip("/")
            while group != top:
                yield group
                group = group.parent
            yield top


def _droppable(stat: Path) -> int:
    values = dict(zip(words[::2], words[1::2], strict=False)) if (words := _words(stat)) else {}
    return int(values.get("total_inactive_file") or values.get("inactive_file") or 0)


def _number(file: Path) -> int | None:
    words = _words(file)
    return int(words[0]) if words and words[0].isdigit() else None


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []
