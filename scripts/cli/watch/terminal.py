"""The terminal as a canvas: the alternate screen, keys as they are pressed, and everything as it
was afterwards."""

import asyncio
import os
import sys
import termios
import tty
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

_ENTER, _LEAVE = (
    "\x1b[?1049h\x1b[?25l",
    "\x1b[?25h\x1b[?1049l",
)  # the alternate screen without a cursor, and back
_HOME, _REST_OF_LINE, _REST_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"


def size() -> tuple[int, int]:
    """Columns and rows of the terminal that stdout is."""
    columns, rows = os.get_terminal_size(sys.stdout.fileno())
    return columns or 80, rows or 24  # one that does not know its size says 0


def draw(lines: Sequence[str]) -> None:
    """Over what was there, without a flicker; the last row tells how much is below it.

    Lines are cleared before they are written: behind one of full width the cursor is still on its
    last character.
    """
    _, rows = size()
    if len(lines) > rows:
        lines = [*lines[: rows - 1], f"({len(lines) - rows + 1} more lines)"]
    rest = "\n" + _REST_OF_SCREEN if len(lines) < rows else ""
    sys.stdout.write(_HOME + "\n".join(_REST_OF_LINE + line for line in lines) + rest)
    sys.stdout.flush()


@contextmanager
def canvas(on_key: Callable[[str], None]) -> Iterator[None]:
    """Where `draw` may be called. The running loop calls `on_key` for each key, if stdin is a
    terminal."""
    keyboard = sys.stdin.fileno() if sys.stdin.isatty() else None
    before = None if keyboard is None else termios.tcgetattr(keyboard)
    sys.stdout.write(_ENTER)
    try:
        if keyboard is not None:
            tty.setcbreak(keyboard)
            asyncio.get_running_loop().add_reader(keyboard, _read, keyboard, on_key)
        yield
    finally:
        if keyboard is not None and before is not None:
            asyncio.get_running_loop().remove_reader(keyboard)
            termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()


def _read(keyboard: int, on_key: Callable[[str], None]) -> None:
    """A terminal that has gone away is as good as a `q`."""
    try:
        pressed = os.read(keyboard, 64).decode(errors="replace")
    except OSError:
        pressed = ""
    for key in pressed or "q":
        on_key(key)
