"""The progress of a run, as a line that is drawn again and again on a terminal.

A run that sums up its answers has a Progress, one that counts things is `counting`, and work of
unknown length is `waiting`.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from shutil import get_terminal_size
from typing import TextIO

from scripts.cli.runs.tally import Counted
from scripts.cli.watch.units import amount, span

_BAR_WIDTH = 24
_LEAST_S = 0.1
"""The least time between two drawings."""
_QUIET_S = 1.0
"""Work that takes less is not told of."""
_CLEAR_LINE = "\r\x1b[K"


class Progress:
    """Draws on `stream` how many of `total` lines are done, if it is a terminal.

    Notes are lines for people, on any stream. Times count from the first drawing.
    """

    def __init__(self, stream: TextIO, total: int, *, is_shown: bool = True) -> None:
        self._stream = stream
        self._total = total
        self._is_shown = is_shown and stream.isatty()
        self._started_s: float | None = None
        self._drawn_s = 0.0
        self._last_note = ""

    def draw(self, tally: Counted, num_new: int) -> None:
        """Draw the progress, of which `num_new` lines came in this run."""
        now_s = time.monotonic()
        is_whole = tally.num_done >= self._total
        if not self._is_shown or (now_s - self._drawn_s < _LEAST_S and not is_whole):
            return
        if self._started_s is None:
            self._started_s = now_s
        self._drawn_s = now_s
        width = get_terminal_size().columns - 1
        line = progress_line(tally, self._total, num_new, now_s - self._started_s)
        self._stream.write(f"{_CLEAR_LINE}{line[:width]}")
        self._stream.flush()

    def note(self, text: str) -> None:
        """Print a line, unless it is the same as that before."""
        if text == self._last_note:
            return
        self._last_note = text
        self.clear()
        print(text, file=self._stream, flush=True)

    def clear(self) -> None:
        """Remove what is drawn."""
        if self._is_shown:
            self._stream.write(_CLEAR_LINE)
            self._stream.flush()


def progress_line(tally: Counted, total: int, num_new: int, seconds: float) -> str:
    """Return the progress as text. `num_new` lines took these seconds."""
    done = tally.num_done
    num_filled = min(_BAR_WIDTH, _BAR_WIDTH * done // max(1, total))
    bar = "#" * num_filled + "." * (_BAR_WIDTH - num_filled)
    parts = [f"{done}/{total} [{bar}]", *tally.parts(seconds)]
    if num_new:
        rate = num_new / max(seconds, 1e-9)
        parts.append(f"{amount(rate)}/s")
        parts.append(f"{span(max(0, total - done) / rate)} left")
    return "  ".join(parts)


class _Count:
    """A number of things with a name, as a tally."""

    def __init__(self, name: str) -> None:
        self.num_done = 0
        self._name = name

    def parts(self, seconds: float) -> list[str]:
        return [self._name]


@contextmanager
def counting(name: str, total: int, stream: TextIO | None = None) -> Iterator[Callable[[], None]]:
    """Draw how many of `total` things are done while the context lasts; yield what counts one.

    The stream is stderr unless another is given. Nothing is drawn where it is no terminal.
    """
    count = _Count(name)
    progress = Progress(stream or sys.stderr, total)

    def done() -> None:
        count.num_done += 1
        progress.draw(count, count.num_done)

    progress.draw(count, 0)
    try:
        yield done
    finally:
        progress.clear()


@contextmanager
def waiting(name: str, stream: TextIO | None = None) -> Iterator[None]:
    """Draw the name of work and how long it takes, from its second second on, while it lasts.

    The stream is stderr unless another is given. Nothing is drawn where it is no terminal.
    """
    drawn_on = stream or sys.stderr
    if not drawn_on.isatty():
        yield
        return

    is_over = threading.Event()
    started_s = time.monotonic()

    def draw() -> None:
        while not is_over.wait(_QUIET_S):
            line = f"{name}  {span(time.monotonic() - started_s)}"
            # Back at the beginning: a log line of another process then replaces what is drawn.
            drawn_on.write(f"{_CLEAR_LINE}{line[: get_terminal_size().columns - 1]}\r")
            drawn_on.flush()

    drawing = threading.Thread(target=draw, name="progress", daemon=True)
    drawing.start()
    try:
        yield
    finally:
        is_over.set()
        drawing.join()
        drawn_on.write(_CLEAR_LINE)
        drawn_on.flush()
