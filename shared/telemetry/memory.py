"""The memory that this process holds."""

import os
from pathlib import Path


def resident_bytes(statm: Path = Path("/proc/self/statm")) -> int:
    """Return the bytes in memory; 0 where the system does not tell."""
    try:
        pages = statm.read_text().split()[1:2]
    except OSError:
        return 0
    if not pages:
        return 0
    return int(pages[0]) * os.sysconf("SC_PAGE_SIZE")
