"""Tables that fit a width: what matters least is left out first, then names are shortened in the
middle."""

from collections.abc import Sequence
from dataclasses import dataclass

GAP = "  "
CUT = "~"


@dataclass(frozen=True)
class Column:
    """Columns of a low `rank` are left out first, all of the same at once, those of rank 0 never.

    Names stand left and may be shortened to `least` characters; numbers stand right and stay whole.
    """

    title: str
    cells: Sequence[str]
    rank: int = 0
    is_name: bool = False
    least: int = 0

    @property
    def natural(self) -> int:
        return max(map(len, (self.title, *self.cells)))

    @property
    def smallest(self) -> int:
        return min(self.natural, max(self.least, len(self.title))) if self.least else self.natural

    def lines(self, width: int) -> list[str]:
        shown = [shorten(text, width) for text in (self.title, *self.cells)]
        return [text.ljust(width) if self.is_name else text.rjust(width) for text in shown]


def table(columns: Sequence[Column], width: int) -> list[str]:
    """The title line and a line for each row, none wider than `width`."""
    kept = list(columns)
    while _total([column.smallest for column in kept]) > width and any(
        column.rank for column in kept
    ):
        least = min(column.rank for column in kept if column.rank)
        kept = [column for column in kept if column.rank != least]
    widths = [column.natural for column in kept]
    while _total(widths) > width:
        spare = [size - column.smallest for size, column in zip(widths, kept, strict=True)]
        if not any(spare):
            break
        widths[spare.index(max(spare))] -= 1
    rows = zip(
        *(column.lines(size) for column, size in zip(kept, widths, strict=True)), strict=True
    )
    return [GAP.join(row).rstrip()[:width] for row in rows]


def shorten(text: str, width: int) -> str:
    """`text`, or its beginning and its end; what a terminal would not print as one character is
    replaced."""
    text = "".join(char if char.isprintable() else "?" for char in text)
    if len(text) <= width:
        return text
    tail = (width - 1) // 2
    return text[: width - 1 - tail] + CUT + text[len(text) - tail :]


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(GAP) * (len(widths) - 1)
