"""Signals as calls in the running event loop, on every platform."""

import asyncio
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress


@contextmanager
def signals_call(actions: Mapping[str, Callable[[], object]]) -> Iterator[None]:
    """Let each signal, given by name, call its action in this loop.

    Enter the context in the main thread. Signals that are ignored (nohup) stay so, and those that
    this system does not have are left out (Windows).
    """
    loop = asyncio.get_running_loop()
    numbered = {}
    for name, action in actions.items():
        if hasattr(signal, name):
            numbered[getattr(signal, name)] = action
    previous = {number: signal.getsignal(number) for number in numbered}

    for number, action in numbered.items():
        if previous[number] is signal.SIG_IGN:
            continue
        try:
            # The loop's own handlers also wake a loop that falls asleep at that very moment.
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
