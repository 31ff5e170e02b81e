"""The memory that this process holds."""

import os
from pathlib import Path


def resident_bytes(statm: Path = Path("/proc/self/statm")) -> int:
    """Return the bytes in memory; 0 where the system does not tell."""
    try:
        columns = statm.read_text().split()
    except OSError:
        return 0
    # The columns are the numbers of pages that are mapped, that are in memory, and others.
    if len(columns) < 2:
        return 0
    return int(columns[1]) * os.sysconf("SC_PAGE_SIZE")
