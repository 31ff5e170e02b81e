"""Waiting for a condition with a deadline, for tests that watch other processes."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

DEADLINE_S = 60.0
"""Far more than anything takes: a deadline ends a wait for what never happens."""

ALL_DAY_S = 86_400.0
"""For what must not run out while a test runs, however slow the machine is: a worker's
announcement, for instance."""


def wait_until(condition: Callable[[], bool], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Return once `condition()` holds; AssertionError naming `what` after `deadline_s`."""
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.01)


async def until(
    condition: Callable[[], bool | Awaitable[bool]], what: str, deadline_s: float = DEADLINE_S
) -> None:
    """`wait_until` for a test that shares its loop with what it watches."""
    deadline = time.monotonic() + deadline_s
    while True:
        holds = condition()
        if holds if isinstance(holds, bool) else await holds:
            return
        assert time.monotonic() < deadline, f"never happened: {what}"
        await asyncio.sleep(0.01)


def is_running(pid: int) -> bool:
    """Whether the process exists and is not a zombie that waits for a parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
