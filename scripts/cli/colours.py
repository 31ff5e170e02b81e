"""Colour and tables for people: on a terminal, and nowhere else.

What is piped stays plain, line by line as it always was.
"""

import re
import sys
from collections.abc import Sequence
from shutil import get_terminal_size

import click

from scripts.cli.watch.table import Heading, columns_of, table
from shared.commands import has_colour

GOOD = "green"
POOR = "yellow"
BAD = "red"
_TITLES = ("MODEL", "QUEUE", "WORKER", "LATENCY")
"""The first titles of the tables of `aios status` and `aios top`."""
_STATES = {
    "REDIS IS AWAY": BAD,
    "NOT READY": BAD,
    "aof OFF": POOR,
    "ready": GOOD,
    "draining": POOR,
}


def coloured(text: str, colour: str | None = None, *, bold: bool = False) -> str:
    """Return the text in a colour if stdout takes colours, else as it is."""
    if not has_colour(sys.stdout):
        return text
    return click.style(text, fg=colour, bold=bold)


def listing(
    headings: Sequence[Heading], rows: Sequence[Sequence[str]], lines: Sequence[str]
) -> list[str]:
    """Return a table of the rows on a terminal, and elsewhere the lines."""
    if not rows or not sys.stdout.isatty():
        return list(lines)
    return with_bold_heading(table(columns_of(headings, rows), get_terminal_size().columns))


def with_bold_heading(lines: Sequence[str]) -> list[str]:
    """Return the lines of a table, the first of which is bold on a terminal."""
    return [coloured(lines[0], bold=True), *lines[1:]]


def painted(lines: Sequence[str]) -> list[str]:
    """Return the lines of `scripts.cli.watch.screen` in colours, if stdout takes them."""
    if not has_colour(sys.stdout):
        return list(lines)
    return [_painted(line) for line in lines]


def _painted(line: str) -> str:
    if line.partition("  ")[0] in _TITLES:
        return click.style(line, bold=True)
    if " failed: " in line:
        return click.style(line, fg=BAD)
    for word, colour in _STATES.items():
        found = re.search(rf"(?<=  ){word}(?=  )", line)
        if found:
            begin, end = found.span()
            return line[:begin] + click.style(word, fg=colour, bold=True) + line[end:]
    return line
