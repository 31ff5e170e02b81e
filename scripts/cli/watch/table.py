"""Tables that fit a width.

Columns that matter least are left out first; then names are shortened in the middle.
"""

from collections.abc import Sequence
from dataclasses import dataclass

GAP = "  "
CUT = "~"


@dataclass(frozen=True)
class Heading:
    """The head of a column, and how the column gives way.

    Columns of a low `rank` are left out first, all of the same rank at once; those of rank 0 never.
    Names stand left and may be shortened to `least` characters; numbers stand right and stay whole.
    """

    title: str
    rank: int = 0
    is_name: bool = False
    least: int = 0


@dataclass(frozen=True)
class Column:
    """A column: its heading, and its cell in each row."""

    heading: Heading
    cells: Sequence[str]

    @property
    def natural(self) -> int:
        return max(map(len, (self.heading.title, *self.cells)))

    @property
    def smallest(self) -> int:
        if not self.heading.least:
            return self.natural
        return min(self.natural, max(self.heading.least, len(self.heading.title)))

    def lines(self, width: int) -> list[str]:
        lines = []
        for text in (self.heading.title, *self.cells):
            line = shorten(text, width)
            lines.append(line.ljust(width) if self.heading.is_name else line.rjust(width))
        return lines


def columns_of(headings: Sequence[Heading], rows: Sequence[Sequence[str]]) -> list[Column]:
    """Return the columns of rows, each with a cell for every heading."""
    columns = []
    for index, heading in enumerate(headings):
        columns.append(Column(heading, [row[index] for row in rows]))
    return columns


def table(columns: Sequence[Column], width: int) -> list[str]:
    """Return the title line and a line for each row, none wider than `width`."""
    kept = list(columns)
    while _total([column.smallest for column in kept]) > width:
        ranks = {column.heading.rank for column in kept} - {0}
        if not ranks:
            break
        kept = [column for column in kept if column.heading.rank != min(ranks)]

    widths = [column.natural for column in kept]
    while _total(widths) > width:
        spare = []
        for size, column in zip(widths, kept, strict=True):
            spare.append(size - column.smallest)
        if not any(spare):
            break
        # The column with most to spare gives a character.
        widths[spare.index(max(spare))] -= 1

    cells = []
    for column, size in zip(kept, widths, strict=True):
        cells.append(column.lines(size))
    return [GAP.join(row).rstrip()[:width] for row in zip(*cells, strict=True)]


def shorten(text: str, width: int) -> str:
    """Return the text, or its beginning and its end.

    What a terminal would not print as one character is replaced.
    """
    text = "".join(char if char.isprintable() else "?" for char in text)
    if len(text) <= width:
        return text
    tail = (width - 1) // 2
    return text[: width - 1 - tail] + CUT + text[len(text) - tail :]


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(GAP) * (len(widths) - 1)
