"""A kind of puzzle on one grid."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from scripts.ui.board import BoardStyle, Rows


@dataclass(frozen=True)
class GridKind:
    """A kind of puzzle on one grid: its look, its text, and its form in requests.

    `name` is the kind in the records of models, and `field` the field of the page that has a puzzle
    as text. `examples(num_cells)` returns puzzles by their names, of so many cells where that can
    be chosen; the puzzle named `first` is on the board at first. `read` raises ValueError for a
    text that is no puzzle, in words for people. `grid_of` makes the `grid` of a request, and
    `rows_of` rows of that of an answer. `is_long` is for texts of several lines.
    """

    name: str
    title: str
    plural: str
    field: str
    style_of: Callable[[Rows], BoardStyle]
    examples: Callable[[int], dict[str, Rows]]
    first: str
    read: Callable[[str], Rows]
    write: Callable[[Rows], str]
    grid_of: Callable[[Rows], Any]
    rows_of: Callable[[Any, Rows], Rows]
    box_of: Callable[[Rows], tuple[int, int] | None]
    text_help: str
    is_long: bool = False
