"""Colour and tables for people: on a terminal, and nowhere else.

What is piped stays plain, line by line as it always was.
"""

import re
import sys
from collections.abc import Sequence
from shutil import get_terminal_size

import click

from scripts.cli.watch.table import GAP, Heading, columns_of, table
from shared.commands import has_colour

GOOD = "green"
POOR = "yellow"
BAD = "red"
_TITLES = ("MODEL", "QUEUE", "WORKER", "LATENCY")
"""The first titles of the tables of `aios status` and `aios top`."""
_CELL_ENDS = re.compile(r"(?<!\\)\|")
_ANY_WIDTH = 10_000
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
    headings: Sequence[Heading], rows: Sequence[Sequence[str]], lines: Sequence[str], *, none: str
) -> list[str]:
    """Return a table of the rows on a terminal, and elsewhere the lines.

    `none` is the line that a terminal gets where there are no rows. Columns that matter less give way
    in a narrow terminal, and the others are never cut off.
    """
    if not sys.stdout.isatty():
        return list(lines)
    if not rows:
        return [none]
    columns = columns_of(headings, rows)
    kept = [column.smallest for column in columns if not column.heading.rank]
    least = sum(kept) + len(GAP) * (len(kept) - 1)
    return with_bold_heading(table(columns, max(least, get_terminal_size().columns)))


def with_bold_heading(lines: Sequence[str]) -> list[str]:
    """Return the lines of a table, the first of which is bold on a terminal."""
    return [coloured(lines[0], bold=True), *lines[1:]]


def without_markup(markdown: str) -> str:
    """Return Markdown with its tables as aligned columns on a terminal, and elsewhere as it is.

    Lines may be wider than the terminal: no cell is shortened or left out.
    """
    if not sys.stdout.isatty():
        return markdown
    lines: list[str] = []
    rows: list[list[str]] = []
    for line in [*markdown.splitlines(), ""]:
        if line.startswith("|"):
            rows.append(_CELL_ENDS.split(line)[1:-1])
            continue
        if rows:
            lines += _aligned(rows)
            rows = []
        lines.append(line)
    return "\n".join(lines)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the rows of a Markdown table, the second of which is its ruler, as columns."""
    headings = []
    for number, title in enumerate(rows[0]):
        headings.append(Heading(title.strip(), is_name=number == 0))
    cells = []
    for row in rows[2:]:
        cells.append([cell.strip().replace("\\|", "|") for cell in row])
    return with_bold_heading(table(columns_of(headings, cells), _ANY_WIDTH))


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
