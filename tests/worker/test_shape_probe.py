"""The rows that a probe decodes: always as many as it was told, whatever the model's window."""

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from shared.errors import FleetError, WorkerFailed
from worker.engine.runner import RunnerOptions
from worker.engine.sequence import Slice, StepResult
from worker.hardware.machine import available_processors
from worker.host import shape_probe
from worker.host.shape_probe import EndlessRows, Speed, delayed_s
from worker.runners.echo import Echo


@pytest.mark.parametrize("window", [16, 2048])
@pytest.mark.parametrize("rows", [1, 3])
def test_each_row_decodes_a_token_in_each_step(
    rows: int, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that has filled its window begins again in the next step."""
    batch = EndlessRows(Echo(RunnerOptions("echo", max_batch=4, context_window=window)), rows)
    batch.warm_up()

    # A clock that is read once before the steps, and once before each.
    clock = itertools.count()
    monkeypatch.setattr(shape_probe, "now", lambda: next(clock))
    speed = batch.decode(200)
    batch.end()
    assert speed == Speed(num_tokens=199 * rows, seconds=201, delayed_s=speed.delayed_s)


@pytest.mark.skipif(not Path("/proc/self/schedstat").is_file(), reason="the system does not tell")
def test_threads_that_share_a_processor_delay_each_other() -> None:
    """Two processes on one processor have it for a half of the time each."""
    [processor, *_] = available_processors()
    code = f"import os; os.sched_setaffinity(0, [{processor}])\nprint(flush=True)\nwhile True: pass"
    own = os.sched_getaffinity(0)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        try:
            os.sched_setaffinity(0, [processor])
            before_s = delayed_s()
            begun_s = time.monotonic()
            while time.monotonic() - begun_s < 0.5:
                pass
            delay = (delayed_s() - before_s) / (time.monotonic() - begun_s)
        finally:
            os.sched_setaffinity(0, own)
            other.kill()
    # There is no upper bound: all threads of the process are counted, and a wait counts in full when
    # it ends, even if it began earlier.
    assert delay > 0.3


class Failing(Echo):
    """An echo that fails in every step."""

    def step(self, slices: Sequence[Slice]) -> list[StepResult | FleetError]:
        return [WorkerFailed("it is broken") for _ in slices]


def test_a_row_that_fails_is_an_error() -> None:
    batch = EndlessRows(Failing(RunnerOptions("echo", max_batch=4)), 2)
    with pytest.raises(WorkerFailed, match="it is broken"):
        batch.warm_up()
