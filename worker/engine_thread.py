"""The one thread that computes. Steps every engine that has work, and sleeps while none has."""

import logging
import queue
import threading
from collections.abc import Callable
from functools import partial

from worker.engine import Engine
from worker.progress import Pulse, adopt, beat, resting

logger = logging.getLogger("aios.engine")


class EngineThread(threading.Thread):
    """`work` is the event that the engines set when they are given something to do, `pulse` shows that they get on.

    Engines come and go between two steps. `on_death` is called from this thread if an engine raises, which is our own
    bug: the process must go.
    """

    def __init__(self, work: threading.Event, pulse: Pulse, on_death: Callable[[], object]) -> None:
        super().__init__(name="engine", daemon=True)
        self._engines: list[Engine] = []
        self._changes: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._on_death = on_death
        self._work = work
        self._pulse = pulse
        self._stopping = False

    def add(self, engine: Engine) -> None:
        """Step it too, from now on."""
        self._change(partial(self._engines.append, engine))

    def remove(self, engine: Engine, then: Callable[[], object]) -> None:
        """Let go of an engine after its current step, and call `then` from this thread."""
        self._change(partial(self._engines.remove, engine))
        self._change(then)

    def rest_until(self, done: threading.Event) -> threading.Event:
        """Stand still after the current step, without being thought to hang, until `done`. The event that is returned
        is set when it does."""
        stands = threading.Event()
        self._change(partial(_rest, stands, done))
        return stands

    def stop(self) -> None:
        """Return after the current step."""
        self._stopping = True
        self._work.set()

    def run(self) -> None:
        adopt(self._pulse)
        try:
            while not self._stopping:
                self._work.clear()
                self._make_changes()
                if not self._step_all():
                    with resting():
                        self._work.wait()
        except Exception:  # the thread's last words; the process ends with them
            logger.exception("engine died")
            self._on_death()

    def _change(self, change: Callable[[], object]) -> None:
        self._changes.put(change)
        self._work.set()

    def _make_changes(self) -> None:
        while not self._changes.empty():
            self._changes.get()()

    def _step_all(self) -> bool:
        """One step of every engine with work; False if none had any. Between two rounds no name here holds an engine:
        one that is removed is to be freed."""
        has_stepped = False
        for engine in self._engines:
            if engine.has_work and not self._stopping:
                beat()
                engine.step()
                has_stepped = True
        return has_stepped


def _rest(stands: threading.Event, done: threading.Event) -> None:
    stands.set()
    with resting():
        done.wait()
