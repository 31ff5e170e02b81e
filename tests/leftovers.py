"""No process outlives the module of tests that started it. One that does fails the run by name, and
is killed.

A pytest plugin. On Linux the test process adopts the orphans of its children, so that a grandchild
whose parent has died is found too.
"""

import contextlib
import ctypes
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

_PR_SET_CHILD_SUBREAPER = 36
_GOES_BY_S = 5.0
"""A process whose parent was just killed may take a moment to follow it."""

_RESOURCE_TRACKER = "from multiprocessing.resource_tracker import main"

_kept: set[int] = set()


def pytest_configure() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@pytest.fixture(scope="session", autouse=True)
def kept_pids() -> Iterator[set[int]]:
    """Where to put the pid of a process that lives as long as the session does; not longer."""
    yield _kept
    _kept.clear()
    _end_what_is_left("session")


@pytest.fixture(scope="module", autouse=True)
def no_process_outlives_its_module(kept_pids: set[int]) -> Iterator[None]:
    """An autouse fixture is made before others of its scope, so it is torn down after them."""
    yield
    _end_what_is_left("module")


def _end_what_is_left(scope: str) -> None:
    """Fail when a process is still there, and leave none."""
    deadline = time.monotonic() + _GOES_BY_S
    while (left := _running()) and time.monotonic() < deadline:
        time.sleep(0.01)
    told = [_describe(process) for process in left]
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()  # this ends a stopped process too
    if told:
        pytest.fail(f"outlived its {scope} of tests: " + "; ".join(told), pytrace=False)


def _running() -> list[psutil.Process]:
    """All descendants but zombies, which only wait for somebody to look at their exit status."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.pid in _kept or process.status() == psutil.STATUS_ZOMBIE:
                continue
            # Python's own helper, which watches what this process shares and ends with it.
            if _RESOURCE_TRACKER not in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def _describe(process: psutil.Process) -> str:
    """Its command, and the test that was running when it was started, where that can be read."""
    try:
        command = " ".join(process.cmdline()).strip()
        test = process.environ().get("PYTEST_CURRENT_TEST", "")
    except psutil.Error:
        return f"process {process.pid}"
    return f"process {process.pid} ({command[:200]}), started in {test or 'a test of this module'}"
