"""The one thread that computes. Steps every engine that has work, and sleeps while none has."""

import logging
import threading
from collections.abc import Callable, Sequence

from worker.engine import Engine
from worker.progress import Pulse, adopt, beat, resting

logger = logging.getLogger("aios.engine")


class EngineThread(threading.Thread):
    """`work` is the event that the engines set when they are given something to do, `pulse` shows that they get on.

    `on_death` is called from this thread if an engine raises, which is our own bug: the process must go.
    """

    def __init__(
        self, engines: Sequence[Engine], work: threading.Event, pulse: Pulse, on_death: Callable[[], object]
    ) -> None:
        super().__init__(name="engine", daemon=True)
        self._engines = engines
        self._on_death = on_death
        self._work = work
        self._pulse = pulse
        self._stopping = False

    def stop(self) -> None:
        """Return after the current step."""
        self._stopping = True
        self._work.set()

    def run(self) -> None:
        adopt(self._pulse)
        try:
            while not self._stopping:
                self._work.clear()
                for engine in self._engines:
                    while engine.has_work and not self._stopping:
                        beat()
                        engine.step()
                        if len(self._engines) > 1:
                            self._work.set()
                            break
                with resting():
                    self._work.wait()
        except Exception:  # the thread's last words; the process ends with them
            logger.exception("engine died")
            self._on_death()
