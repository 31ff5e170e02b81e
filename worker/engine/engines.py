"""The engines by mechanism, and the one interface that a host, its intake and its thread use."""

from collections.abc import Callable
from typing import Any, Protocol

from worker.engine.engine import Engine
from worker.engine.engine_stats import EngineStats
from worker.engine.request import Emission
from worker.engine.runner import Runner
from worker.engine.scheduler import Load
from worker.engine.take import Prepared, Take
from worker.engine.task_engine import TaskEngine
from worker.engine.task_runner import TaskRunner

AnyRunner = Runner | TaskRunner
"""A loaded model. `spec.mechanism` tells which of them it is."""


class AnyEngine(Protocol):
    """An engine of either mechanism.

    `prepare`, `submit` and `abort` may be called from any thread, `step` from one.
    """

    stats: EngineStats

    def prepare(self, take: Take) -> Prepared:
        """Read a task that was taken. Raise a FleetError for one that the model cannot do."""

    def submit(self, work: Any) -> None:
        """Queue a work that this engine has prepared."""

    def abort(self, key: str) -> None:
        """Drop a work, whatever its phase."""

    @property
    def load(self) -> Load: ...

    @property
    def accepts(self) -> bool:
        """Return whether a work that came now could begin soon."""

    @property
    def has_work(self) -> bool: ...

    @property
    def due_in_s(self) -> float | None: ...

    def step(self) -> None: ...


def engine_for(
    runner: AnyRunner,
    emit: Callable[[list[Emission]], None],
    wake: Callable[[], None] = lambda: None,
    *,
    batch_wait_s: float = 0.0,
) -> AnyEngine:
    """Return an engine for the runner's mechanism. `batch_wait_s` is for tasks that are done
    whole."""
    if runner.spec.mechanism == "task":
        return TaskEngine(runner, emit, wake, batch_wait_s=batch_wait_s)
    return Engine(runner, emit, wake)
