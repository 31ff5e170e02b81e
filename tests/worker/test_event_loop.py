"""A step that takes longer than the worker waits for it when it leaves."""

import asyncio
import threading
from functools import partial
from unittest.mock import Mock

import pytest

from tests.fixtures.polling import DEADLINE_S
from worker.engine.engine_thread import EngineThread
from worker.engine.event_loop import call_in_loop
from worker.engine.request import Emission
from worker.host.outbox import Outbox


class LateEngine:
    """An engine with one step, which ends when the gate is opened, and then emits."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self.has_begun = threading.Event()
        self.gate = threading.Event()

    @property
    def due_in_s(self) -> float | None:
        return 0.0

    def step(self) -> None:
        self.has_begun.set()
        assert self.gate.wait(DEADLINE_S)
        self._outbox.put([Emission("job:1", (1,), "x")])


def test_what_is_emitted_after_the_end_of_the_loop_is_dropped(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The thread ends as told, and logs no death of an engine."""
    died = Mock()

    async def start() -> tuple[EngineThread, LateEngine]:
        engine = LateEngine(Outbox(Mock(), Mock(), Mock()))
        thread = EngineThread(partial(call_in_loop, asyncio.get_running_loop(), died))
        thread.add(engine)
        thread.start()
        return thread, engine

    thread, engine = asyncio.run(start())
    assert engine.has_begun.wait(DEADLINE_S)
    thread.stop()
    engine.gate.set()
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
    assert caplog.messages == []
    died.assert_not_called()
