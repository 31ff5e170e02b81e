"""Signals as calls in the running event loop, on every platform."""

import asyncio
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress


@contextmanager
def signals_call(actions: Mapping[str, Callable[[], object]]) -> Iterator[None]:
    """Have each signal, by name, call its action in this loop, except those ignored (nohup) or
    unknown here (Windows).

    Enter it in the main thread. Where the loop has handlers of its own they are used: they wake a
    loop that falls asleep at that very moment.
    """
    loop = asyncio.get_running_loop()
    numbered = {
        getattr(signal, name): action for name, action in actions.items() if hasattr(signal, name)
    }
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
