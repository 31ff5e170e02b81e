"""The progress of a run, as a line that is drawn again and again on a terminal."""

import time
from shutil import get_terminal_size
from typing import TextIO

from scripts.cli.runs.tally import Tally
from scripts.cli.watch.units import amount, span

_BAR_WIDTH = 24
_LEAST_S = 0.1
"""The least time between two drawings."""
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

    def draw(self, tally: Tally, num_new: int) -> None:
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


def progress_line(tally: Tally, total: int, num_new: int, seconds: float) -> str:
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
