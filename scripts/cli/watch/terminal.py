"""The terminal in full-screen mode: the alternate screen, and keys as they are pressed.

The terminal is as it was before when the mode ends.
"""

import asyncio
import os
import sys
import termios
import tty
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

_BYTES_OF_KEYS = 64
# Escape sequences of xterm, which other terminals follow.
_ALTERNATE_SCREEN = "\x1b[?1049h"
_MAIN_SCREEN = "\x1b[?1049l"
_HIDE_CURSOR = "\x1b[?25l"
_SHOW_CURSOR = "\x1b[?25h"
_CURSOR_HOME = "\x1b[H"
_CLEAR_LINE = "\x1b[K"
_CLEAR_BELOW = "\x1b[J"


def size() -> tuple[int, int]:
    """Return the columns and rows of the terminal that stdout is."""
    columns, rows = os.get_terminal_size(sys.stdout.fileno())
    # A terminal that does not know its size reports 0.
    return columns or 80, rows or 24


def draw(lines: Sequence[str]) -> None:
    """Write the lines over those that were drawn before, without a flicker.

    Where they do not fit, the last row of the screen tells how many lines are below it.
    """
    _, num_rows = size()
    visible = list(lines)
    if len(lines) > num_rows:
        visible = visible[: num_rows - 1]
        visible.append(f"({len(lines) - num_rows + 1} more lines)")

    # Each line is cleared before it is written: behind a line of full width the cursor still stands
    # on its last character, which clearing would take away.
    output = _CURSOR_HOME + "\n".join(_CLEAR_LINE + line for line in visible)
    if len(visible) < num_rows:
        output += "\n" + _CLEAR_BELOW
    sys.stdout.write(output)
    sys.stdout.flush()


@contextmanager
def canvas(on_key: Callable[[str], None]) -> Iterator[None]:
    """Show the alternate screen while the context lasts, so that `draw` may be called.

    The running loop calls `on_key` with each key if stdin is a terminal.
    """
    if not sys.stdin.isatty():
        with _alternate_screen():
            yield
        return

    keyboard = sys.stdin.fileno()
    loop = asyncio.get_running_loop()
    attributes = termios.tcgetattr(keyboard)
    with _alternate_screen():
        try:
            tty.setcbreak(keyboard)
            loop.add_reader(keyboard, _read, keyboard, on_key)
            yield
        finally:
            loop.remove_reader(keyboard)
            termios.tcsetattr(keyboard, termios.TCSADRAIN, attributes)


@contextmanager
def _alternate_screen() -> Iterator[None]:
    sys.stdout.write(_ALTERNATE_SCREEN + _HIDE_CURSOR)
    try:
        yield
    finally:
        sys.stdout.write(_SHOW_CURSOR + _MAIN_SCREEN)
        sys.stdout.flush()


def _read(keyboard: int, on_key: Callable[[str], None]) -> None:
    """Call `on_key` with each key that was pressed.

    A terminal that has gone away counts as a press of `q`.
    """
    try:
        keys = os.read(keyboard, _BYTES_OF_KEYS).decode(errors="replace")
    except OSError:
        keys = ""
    if not keys:
        keys = "q"
    for key in keys:
        on_key(key)
