"""The engines by mechanism, and the one interface that a host, its intake and its thread use."""

from collections.abc import Callable
from typing import Any, Protocol

from worker.engine.engine import Engine
from worker.engine.engine_stats import EngineStats
from worker.engine.remote_engine import RemoteEngine
from worker.engine.remote_runner import RemoteRunner
from worker.engine.request import Emission
from worker.engine.runner import Runner
from worker.engine.scheduler import Load
from worker.engine.take import Prepared, Take
from worker.engine.task_engine import TaskEngine
from worker.engine.task_runner import Files, TaskRunner

AnyRunner = Runner | TaskRunner | RemoteRunner
"""A model of any mechanism, which `spec.mechanism` names."""


class AnyEngine(Protocol):
    """An engine of any mechanism.

    `prepare`, `submit` and `abort` may be called from any thread, `step` from one.
    """

    stats: EngineStats

    def prepare(self, take: Take) -> Prepared:
        """Read a task that was taken. Raise a FleetError for one that the model cannot do."""

    def submit(self, work: Any) -> None:
        """Queue work that this engine has prepared."""

    def abort(self, key: str) -> None:
        """Drop the work of this key, whatever its phase."""

    def close(self) -> None:
        """Free what is not memory, such as connections. No step may follow."""

    @property
    def load(self) -> Load:
        """Return the present numbers. May be called from any thread."""

    @property
    def accepts(self) -> bool:
        """Return whether work that is submitted now could begin soon."""

    @property
    def has_work(self) -> bool:
        """Return whether any work waits or is being computed."""

    @property
    def due_in_s(self) -> float | None:
        """Return the seconds until the next step is due, None for an engine without work."""

    def step(self) -> None:
        """Admit new work and compute one step or one batch."""


def engine_for(
    runner: AnyRunner,
    emit: Callable[[list[Emission]], None],
    wake: Callable[[], None] = lambda: None,
    *,
    batch_wait_s: float = 0.0,
    files_of: Callable[[str], Files] | None = None,
) -> AnyEngine:
    """Return an engine for the runner's mechanism.

    `batch_wait_s` matters only to tasks that are done whole.
    """
    if runner.spec.mechanism == "task":
        return TaskEngine(runner, emit, wake, batch_wait_s=batch_wait_s, files_of=files_of)
    if runner.spec.mechanism == "remote":
        return RemoteEngine(runner, emit, wake)
    return Engine(runner, emit, wake, files_of=files_of)
