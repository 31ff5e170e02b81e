"""`aios serve hrm --workers auto` as it runs: one pinned worker a core, and the same core after a
restart."""

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
    """This process, and so what it starts, may use no more than two cores."""
    before = os.sched_getaffinity(0)
    cores = physical_cores(available_processors())[:2]
    os.sched_setaffinity(0, [processor for core in cores for processor in core])
    yield [sorted(core) for core in cores]
    os.sched_setaffinity(0, before)


def test_auto_gives_each_core_a_worker_of_its_own(two_cores: list[list[int]]) -> None:
    """The sample model is small, so it is one single-threaded worker a core, each with a share of
    the requests."""
    if len(two_cores) < 2:
        pytest.skip("one core: nothing to share")
    with serving("--workers", "auto") as fleet:
        [placed] = [json.loads(line) for line in fleet.lines if '"workers placed"' in line]
        assert (placed["shape"], placed["num_cores"]) == ("2 workers of 1 thread", 2)
        workers = fleet.children("worker")
        wait_until(lambda: places(workers) == two_cores, "each is on its core")
        body = httpx.post(
            f"{fleet.url}/generate",
            json={"prompts": ["Solve for x: 2x + 3 = 9"], "temperature": 0},
            timeout=60,
        ).json()
        assert body["completions"][0].endswith("x = 3")
        lost = workers[0].cpu_affinity()
        workers[0].kill()
        wait_until(
            lambda: (
                lost
                in [
                    child.cpu_affinity() for child in new_workers(fleet.children("worker"), workers)
                ]
            ),
            "its successor is on the same core",
            deadline_s=30,
        )


def places(workers: list[psutil.Process]) -> list[list[int]]:
    return sorted(sorted(worker.cpu_affinity() or []) for worker in workers)


def new_workers(now: list[psutil.Process], before: list[psutil.Process]) -> list[psutil.Process]:
    return [worker for worker in now if worker.pid not in {old.pid for old in before}]
