"""Signals as calls in the running event loop, on every platform."""

import asyncio
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial

STOP_SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP")

_SAME_SIGNAL_S = 0.3


@contextmanager
def signals_call(actions: Mapping[str, Callable[[], object]]) -> Iterator[None]:
    """Have each signal, by name, call its action in this loop, except those ignored (nohup) or unknown here (Windows).

    Enter it in the main thread. Where the loop has handlers of its own they are used: they wake a loop that falls
    asleep at that very moment.
    """
    loop = asyncio.get_running_loop()
    numbered = {getattr(signal, name): action for name, action in actions.items() if hasattr(signal, name)}
    previous = {number: signal.getsignal(number) for number in numbered}
    for number, action in numbered.items():
        if previous[number] is signal.SIG_IGN:
            continue
        try:
            loop.add_signal_handler(number, action)
        except NotImplementedError:
            signal.signal(number, lambda *_, action=action: loop.call_soon_threadsafe(action))
    try:
        yield
    finally:
        for number, handler in previous.items():
            with suppress(NotImplementedError):
                loop.remove_signal_handler(number)
            signal.signal(number, handler)


class StopSignals:
    """Calls `stop` at the first signal that ends a process, and `hurry` at a later one.

    `timeout` and some init systems send SIGTERM to a process and to its group: within a moment these are one signal.
    """

    def __init__(self, stop: Callable[[str], object], hurry: Callable[[], object]) -> None:
        self._stop = stop
        self._hurry = hurry
        self._stopped_at_s: float | None = None

    def actions(self, names: tuple[str, ...] = STOP_SIGNALS) -> dict[str, Callable[[], None]]:
        """For `signals_call`."""
        return {name: partial(self.receive, name) for name in names}

    def receive(self, name: str) -> None:
        now_s = time.monotonic()
        if self._stopped_at_s is None:
            self._stopped_at_s = now_s
            self._stop(name)
        elif name == "SIGINT" or now_s - self._stopped_at_s > _SAME_SIGNAL_S:
            self._hurry()
