"""The limits of a container, read from control groups of either version (Linux).

The limits are of processor time and of memory. A process sees all cores and all memory of its
machine, whatever its container may use. Only these files tell the limits. Where they are missing
nothing is limited.
"""

from collections.abc import Iterator
from pathlib import Path

_UNLIMITED_BYTES = 1 << 60  # version 1 says "no limit" with a number near 2**63


def cpu_quota(
    root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> float | None:
    """Return the processor time of the tightest group around this process, in cores.

    Return None where there is no quota.
    """
    quotas: list[float] = []
    for group in _groups(root, membership, "cpu"):
        # Version 2 has both numbers in one file: "200000 100000" or "max 100000".
        words = _words(group / "cpu.max")
        if not words:
            words = _words(group / "cpu.cfs_quota_us") + _words(group / "cpu.cfs_period_us")
        if len(words) == 2 and words[0].isdigit():
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def free_memory_bytes(
    root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> int | None:
    """Return the free bytes of the group that has the fewest, None where there is no limit."""
    free = [max(0, limit - used) for limit, used in _memory(root, membership)]
    return min(free, default=None)


def memory_in_use(
    root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> tuple[int, int] | None:
    """Return the limit and the memory in use, both in bytes, of the fullest group.

    Return None where there is no limit.
    """
    limits = [(limit, used) for limit, used in _memory(root, membership) if limit]
    return max(limits, key=_share, default=None)


def memory_share(
    root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> float | None:
    """Return the share of its limit that the fullest group uses, from 0 to 1.

    Return None where there is no limit.
    """
    memory = memory_in_use(root, membership)
    if memory is None:
        return None
    return _share(memory)


def _share(memory: tuple[int, int]) -> float:
    limit, used = memory
    return used / limit


def _memory(root: Path, membership: Path) -> Iterator[tuple[int, int]]:
    """Yield the limit and the bytes in use of each group that has a limit."""
    for group in _groups(root, membership, "memory"):
        limit = _number(group / "memory.max")
        used = _number(group / "memory.current")
        # Version 1 has other names.
        if limit is None:
            limit = _number(group / "memory.limit_in_bytes")
            used = _number(group / "memory.usage_in_bytes")
        if limit is not None and limit < _UNLIMITED_BYTES:
            # File cache that can be dropped at any time is not counted as in use.
            yield limit, (used or 0) - _droppable(group / "memory.stat")


def _groups(root: Path, membership: Path, controller: str) -> Iterator[Path]:
    """Yield the directories of the groups that this process is in.

    The innermost comes first, the root that is mounted last.
    """
    if not membership.is_file():
        return
    for line in membership.read_text().splitlines():
        # A line is "4:memory:/docker/1f2e" in version 1. In version 2 it names no controllers.
        _, controllers, path = line.split(":", 2)
        top = root
        if controllers:
            if controller not in controllers.split(","):
                continue
            top = root / controller
        group = top / path.lstrip("/")
        while group != top:
            yield group
            group = group.parent
        yield top


def _droppable(stat: Path) -> int:
    """Return the bytes of file cache that can be dropped."""
    # The file has a name and a number in each line.
    words = _words(stat)
    values = dict(zip(words[::2], words[1::2], strict=False))
    return int(values.get("total_inactive_file") or values.get("inactive_file") or 0)


def _number(file: Path) -> int | None:
    """Return the number in a file, None where the file holds a word or is missing."""
    words = _words(file)
    if not words or not words[0].isdigit():
        return None
    return int(words[0])


def _words(file: Path) -> list[str]:
    """Return the words in a file, none where it is missing."""
    try:
        return file.read_text().split()
    except OSError:
        return []
