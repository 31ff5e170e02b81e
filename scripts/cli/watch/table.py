"""Tables of text that fit a width.

The columns that matter least are left out first. Then names are shortened in the middle.
"""

from collections.abc import Sequence
from dataclasses import dataclass

GAP = "  "
CUT = "~"


@dataclass(frozen=True)
class Heading:
    """The title of a column, and how the column gives way in a narrow table.

    Columns of the lowest `rank` are left out first, all of one rank together. Columns of rank 0 are
    never left out. Names are aligned left; numbers are aligned right. A column whose `least` is not
    0 may be shortened to so many characters, the others stay whole.
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
        """The width of the longest cell, in characters."""
        widest = len(self.heading.title)
        for cell in self.cells:
            widest = max(widest, len(cell))
        return widest

    @property
    def smallest(self) -> int:
        """The width to which the column may be shortened, in characters."""
        if not self.heading.least:
            return self.natural
        return min(self.natural, max(self.heading.least, len(self.heading.title)))

    def lines(self, width: int) -> list[str]:
        """Return the title and the cells, each of exactly `width` characters."""
        lines = []
        for text in (self.heading.title, *self.cells):
            line = shorten(text, width)
            if self.heading.is_name:
                line = line.ljust(width)
            else:
                line = line.rjust(width)
            lines.append(line)
        return lines


def columns_of(headings: Sequence[Heading], rows: Sequence[Sequence[str]]) -> list[Column]:
    """Return the columns of rows that have a cell for every heading."""
    columns = []
    for index, heading in enumerate(headings):
        columns.append(Column(heading, [row[index] for row in rows]))
    return columns


def table(columns: Sequence[Column], width: int) -> list[str]:
    """Return the title line and a line for each row, none wider than `width`."""
    # Leave out columns until the others can be shortened to fit.
    kept = list(columns)
    while _total([column.smallest for column in kept]) > width:
        ranks = {column.heading.rank for column in kept} - {0}
        if not ranks:
            break
        lowest_rank = min(ranks)
        kept = [column for column in kept if column.heading.rank != lowest_rank]

    widths = [column.natural for column in kept]
    while _total(widths) > width:
        spare = []
        for size, column in zip(widths, kept, strict=True):
            spare.append(size - column.smallest)
        if not any(spare):
            break
        # The column that can give most gives one character.
        widths[spare.index(max(spare))] -= 1

    cells = []
    for column, size in zip(kept, widths, strict=True):
        cells.append(column.lines(size))

    lines = []
    for row in zip(*cells, strict=True):
        # Columns of rank 0 stay even where they do not fit: then the line is cut off.
        lines.append(GAP.join(row).rstrip()[:width])
    return lines


def shorten(text: str, width: int) -> str:
    """Return the text, or its beginning and its end around CUT if it is longer than `width`.

    Characters that are not printable, as those that command a terminal, become question marks.
    """
    printable = "".join(char if char.isprintable() else "?" for char in text)
    if len(printable) <= width:
        return printable
    tail_width = (width - 1) // 2
    head_width = width - 1 - tail_width
    return printable[:head_width] + CUT + printable[len(printable) - tail_width :]


def _total(widths: Sequence[int]) -> int:
    """Return the width of a line whose columns have these widths."""
    return sum(widths) + len(GAP) * (len(widths) - 1)
