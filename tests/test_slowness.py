"""A stretched limit still fails for a body that only waits.

It spares a body that the machine holds up.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from tests.fixtures import slowness as module
from tests.fixtures.polling import wait_until
from tests.fixtures.slowness import slowness, slowness_meanwhile, waited_within, within

Limit = Callable[[float, str], AbstractContextManager[None]]


@pytest.mark.parametrize("limit", [within, waited_within])
def test_what_waits_for_too_long_fails(limit: Limit) -> None:
    with pytest.raises(AssertionError, match="it waits: "), limit(0.001, "it waits"):
        time.sleep(0.5)


@pytest.mark.parametrize("limit", [within, waited_within])
def test_what_is_held_up_by_others_does_not(limit: Limit, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that is twenty times as slow, half a second is as good as 25 ms."""
    monkeypatch.setattr(module, "slowness", lambda: 20.0)
    with limit(0.05, "it works"):
        time.sleep(0.5)


def test_a_busy_moment_in_the_middle_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine is idle before and after, and slow for a while in between."""
    now = 1.0
    seen = []

    def measure() -> float:
        seen.append(now)
        return now

    monkeypatch.setattr(module, "slowness", measure)
    with slowness_meanwhile() as greatest:
        now = 7.0
        # When the second is measured, the first is noted.
        wait_until(lambda: seen.count(7.0) >= 2, "the busy moment is measured")
        now = 1.0
        assert greatest() == 7.0
    assert seen[0] == seen[-1] == 1.0


@pytest.mark.skipif(sys.platform != "linux", reason="cores are chosen on Linux")
def test_slowness_is_what_others_take() -> None:
    """Work beside four busy loops on the same core takes more than twice its time."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})

    try:
        loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
        try:
            wait_until(lambda: slowness() > 2, "the loops run")
        finally:
            for loop in loops:
                loop.kill()
                loop.wait()
    finally:
        os.sched_setaffinity(0, cores)

    assert slowness() >= 1
