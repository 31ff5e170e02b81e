"""The rows that a probe decodes: always as many as it was told, whatever the model's window."""

import itertools
from collections.abc import Sequence

import pytest

from shared.errors import FleetError, WorkerFailed
from worker.engine.runner import RunnerOptions
from worker.engine.sequence import Slice, StepResult
from worker.host import shape_probe
from worker.host.shape_probe import EndlessRows, Speed
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
    assert speed == Speed(num_tokens=199 * rows, seconds=201)


class Failing(Echo):
    """An echo that fails in every step."""

    def step(self, slices: Sequence[Slice]) -> list[StepResult | FleetError]:
        return [WorkerFailed("it is broken") for _ in slices]


def test_a_row_that_fails_is_an_error() -> None:
    batch = EndlessRows(Failing(RunnerOptions("echo", max_batch=4)), 2)
    with pytest.raises(WorkerFailed, match="it is broken"):
        batch.warm_up()
