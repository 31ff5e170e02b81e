"""A thread that computes: it steps every engine that has work, and sleeps while none has."""

import logging
import os
import queue
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Protocol

from worker.engine.heartbeat import Heartbeat, adopt, heartbeat, resting

logger = logging.getLogger("aios.engine")

LEAST_PRIORITY = 19
"""The niceness of a thread that gives way, unless it is told another.

On one core the tokens beside a task came 2.5 times as unevenly with niceness 10, and 1.4 times as
unevenly with 19 (docs/benchmarks.md).
"""


class Stepped(Protocol):
    """An engine as its thread sees it."""

    @property
    def due_in_s(self) -> float | None:
        """Return the seconds until the next step is due, None for an engine without work."""

    def step(self) -> None:
        """Compute one step or one batch."""


class EngineThread(threading.Thread):
    """A thread for engines, which are added and removed between two steps.

    When it gives way to others, its niceness is `niceness`. `heartbeat` shows whether the engines
    make progress. `on_death` is called from this thread if an engine raises. That is our own bug,
    and the process must end.
    """

    def __init__(
        self,
        on_death: Callable[[], object],
        name: str = "engine",
        niceness: int = LEAST_PRIORITY,
    ) -> None:
        super().__init__(name=name, daemon=True)
        self.heartbeat = Heartbeat()
        self._engines: list[Stepped] = []
        self._changes: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._on_death = on_death
        self._work = threading.Event()
        self._stopping = False
        self._niceness = niceness
        self._gives_way = False

    def wake(self) -> None:
        """Let the thread look for work. May be called from any thread."""
        self._work.set()

    def add(self, engine: Stepped) -> None:
        """Step this engine, too, from now on."""
        self._change(partial(self._engines.append, engine))

    def remove(self, engine: Stepped, then: Callable[[], object]) -> None:
        """Remove an engine after its current step, and call `then` from this thread."""
        self._change(partial(self._engines.remove, engine))
        self._change(then)

    def rest_until(self, done: threading.Event) -> threading.Event:
        """Pause the thread after its current step until `done` is set.

        The thread is not thought to hang meanwhile. Return an event that is set when it has paused.
        """
        paused = threading.Event()
        self._change(partial(_rest, paused, done))
        return paused

    def give_way(self) -> None:
        """Leave the cores to other threads from now on.

        Tasks that take seconds anyway can do with the time that the others leave.
        """
        if not self._gives_way and self._niceness:
            self._gives_way = True
            self._change(partial(_be_nice, self._niceness))

    def stop(self) -> None:
        """End the thread after its current step."""
        self._stopping = True
        self._work.set()

    def run(self) -> None:
        adopt(self.heartbeat)
        try:
            while not self._stopping:
                # Cleared before the thread looks for changes and work, so that those that come
                # meanwhile end the wait below.
                self._work.clear()
                self._make_changes()
                due_in_s = self._step_due()
                if due_in_s != 0:
                    with resting():
                        self._work.wait(due_in_s)
        except Exception:  # our own bug: it is logged here, and `on_death` ends the process
            logger.exception("engine died")
            self._on_death()

    def _change(self, change: Callable[[], object]) -> None:
        self._changes.put(change)
        self._work.set()

    def _make_changes(self) -> None:
        while not self._changes.empty():
            change = self._changes.get()
            change()

    def _step_due(self) -> float | None:
        """Step every engine that is due once.

        Return the seconds until an engine is due: 0 if any was stepped, None if none has work.
        """
        # This is a function so that no local variable refers to an engine between two rounds: an
        # engine that was removed has to be freed.
        waits_s: list[float] = []
        for engine in self._engines:
            if self._stopping:
                break
            due_in_s = engine.due_in_s
            if due_in_s is None:
                continue
            if due_in_s <= 0:
                heartbeat()
                engine.step()
                due_in_s = 0.0
            waits_s.append(due_in_s)
        return min(waits_s, default=None)


def _be_nice(niceness: int) -> None:
    """Lower the priority of this thread to a niceness.

    Threads that it starts, as torch does for large products, inherit the priority.
    """
    # Only Linux has priorities of threads; elsewhere a priority is the whole process's.
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)


def _rest(paused: threading.Event, done: threading.Event) -> None:
    paused.set()
    with resting():
        done.wait()
