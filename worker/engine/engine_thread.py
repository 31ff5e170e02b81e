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

_NICENESS = 19
"""The niceness of a thread that gives way. On one core the tokens beside a task came 2.5 times as
unevenly with 10, and 1.4 times as unevenly with 19 (docs/benchmarks.md)."""


class Stepped(Protocol):
    """An engine as its thread sees it."""

    @property
    def due_in_s(self) -> float | None:
        """Return the seconds until there is something to do, None for an engine without work."""

    def step(self) -> None: ...


class EngineThread(threading.Thread):
    """A thread for engines, which come and go between two steps.

    `heartbeat` shows whether the engines get on. `on_death` is called from this thread if an engine
    raises, which is our own bug: the process must go.
    """

    def __init__(self, on_death: Callable[[], object], name: str = "engine") -> None:
        super().__init__(name=name, daemon=True)
        self.heartbeat = Heartbeat()
        self._engines: list[Stepped] = []
        self._changes: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._on_death = on_death
        self._work = threading.Event()
        self._stopping = False
        self._gives_way = False

    def wake(self) -> None:
        """Look for work, because an engine was given some. May be called from any thread."""
        self._work.set()

    def add(self, engine: Stepped) -> None:
        """Step this engine too, from now on."""
        self._change(partial(self._engines.append, engine))

    def remove(self, engine: Stepped, then: Callable[[], object]) -> None:
        """Let go of an engine after its current step, and call `then` from this thread."""
        self._change(partial(self._engines.remove, engine))
        self._change(then)

    def rest_until(self, done: threading.Event) -> threading.Event:
        """Stand still after the current step until `done`, without being thought to hang.

        The event that is returned is set when the thread stands still.
        """
        stands = threading.Event()
        self._change(partial(_rest, stands, done))
        return stands

    def give_way(self) -> None:
        """Leave the cores to other threads from now on.

        For a task that takes seconds anyway the time that they leave is enough.
        """
        if not self._gives_way:
            self._gives_way = True
            self._change(_be_nice)

    def stop(self) -> None:
        """Return after the current step."""
        self._stopping = True
        self._work.set()

    def run(self) -> None:
        adopt(self.heartbeat)
        try:
            while not self._stopping:
                # Cleared before anything is looked at, so that what comes meanwhile ends the wait
                # below.
                self._work.clear()
                self._make_changes()
                due_in_s = self._step_due()
                if due_in_s != 0:
                    with resting():
                        self._work.wait(due_in_s)
        except Exception:  # the thread's last words; the process ends with them
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
        """Step every engine that is due once. Return in how many seconds to look again: 0 if any
        was stepped, None if none has work."""
        # A function of its own, so that between two rounds no name here holds an engine: one that
        # was removed is to be freed.
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


def _be_nice() -> None:
    """Lower the priority of this thread, and of threads that it starts, as torch does for large
    products."""
    # Only Linux has priorities of threads; elsewhere they are the process's.
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


def _rest(stands: threading.Event, done: threading.Event) -> None:
    stands.set()
    with resting():
        done.wait()
