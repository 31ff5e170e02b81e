"""`aios serve hrm --workers auto` pins one worker to each core.

A restarted worker has the same core.
"""

import json
import os
import sys
from collections.abc import Iterator

import httpx
import psutil
import pytest

from tests.fixtures.e2e.serving import serving
from tests.fixtures.polling import wait_until
from worker.hardware.machine import available_processors, physical_cores

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="processors are pinned on Linux only"
)


@pytest.fixture
def two_cores() -> Iterator[list[list[int]]]:
    """Pin this process, and so its children, to two cores at most."""
    before = os.sched_getaffinity(0)
    cores = physical_cores(available_processors())[:2]
    processors = set[int]()
    for core in cores:
        processors.update(core)
    os.sched_setaffinity(0, processors)
    yield [sorted(core) for core in cores]
    os.sched_setaffinity(0, before)


def test_auto_gives_each_core_a_worker_of_its_own(two_cores: list[list[int]]) -> None:
    """The default model is small, so each core has a worker of one thread."""
    if len(two_cores) < 2:
        pytest.skip("one core: nothing to share")
    with serving("--workers", "auto") as fleet:
        [line] = [line for line in fleet.lines if '"workers placed"' in line]
        event = json.loads(line)
        assert event["shape"] == "2 workers of 1 thread"
        assert event["num_cores"] == 2

        workers = fleet.children("worker")
        wait_until(lambda: cores_of(workers) == two_cores, "each is on its core")

        body = {"prompts": ["Solve for x: 2x + 3 = 9"], "temperature": 0}
        answer = httpx.post(f"{fleet.url}/generate", json=body, timeout=60)
        assert answer.json()["completions"][0].endswith("\\boxed{3}")

        victim = workers[0]
        core = victim.cpu_affinity()
        victim.kill()

        def has_a_successor() -> bool:
            for child in fleet.children("worker"):
                if child not in workers and child.cpu_affinity() == core:
                    return True
            return False

        wait_until(has_a_successor, "its successor is on the same core")


def cores_of(workers: list[psutil.Process]) -> list[list[int]]:
    """Return the processors of each worker, in order."""
    return sorted(sorted(worker.cpu_affinity() or []) for worker in workers)
