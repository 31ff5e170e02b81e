"""Sudokus of 9, 6 or 4 rows, as a text of all digits with a dot for a blank cell."""

from typing import Any

from scripts.ui.board import BoardStyle, Rows, Sign
from scripts.ui.puzzles.grid_kind import GridKind

_BLANK = "."
BOXES = {9: (3, 3), 6: (2, 3), 4: (2, 2)}
"""The rows and columns of a box, by the size of the Sudoku."""
EXAMPLES = {
    9: {
        "Easy": "64.8.39.1.3.5.9687..9...45.916.8.5724.89523..523.6....257.38169.617.5248.9.6.1...",
        "Medium": "1576...4..984.5.1.3.....856..2896573.3.72168.7..54.192..1...7.5.6927..31...1.4.6.",
        "Hard": ".8.7....1.36..8.9.4..6.2..3563..9.1281..27.6..2.36....69..5..3.3.591.42.1..873.56",
    },
    6: {
        "Easy": "2143...3..42..263.643.2132.4654.5...",
        "Hard": "345.2..265....1.6..5.213......4....1",
    },
    4: {"Easy": "214.341.1.24.231", "Hard": "..2..1.3.....43."},
}


def read(text: str) -> Rows:
    """Return the rows of a Sudoku. Raise ValueError for a text that is none."""
    for size in BOXES:
        digits = {_BLANK, *map(str, range(1, size + 1))}
        if len(text) == size * size and set(text) <= digits:
            return _cut(text, size)
    sizes = " or ".join(str(size * size) for size in BOXES)
    raise ValueError(f"A Sudoku has {sizes} digits, with a dot for each blank cell.")


def _cut(text: str, size: int) -> Rows:
    return [text[start : start + size] for start in range(0, len(text), size)]


def _examples(num_cells: int) -> dict[str, Rows]:
    examples = {}
    for size, puzzles in EXAMPLES.items():
        for name, text in puzzles.items():
            examples[f"{name} {size} x {size}"] = _cut(text, size)
    return examples


def _rows_of(grid: Any, puzzle: Rows) -> Rows:
    # A cell that the network has left blank is 0.
    return _cut(grid.replace("0", _BLANK), len(puzzle))


def _style_of(size: int) -> BoardStyle:
    signs = [Sign(_BLANK, "blank", keys="0 ")]
    signs += [Sign(str(digit), str(digit)) for digit in range(1, size + 1)]
    return BoardStyle("sudoku", tuple(signs))


STYLES = {size: _style_of(size) for size in BOXES}
SUDOKU = GridKind(
    name="sudoku",
    title="Sudoku",
    plural="Sudokus",
    field="puzzle",
    style_of=lambda rows: STYLES[len(rows)],
    examples=_examples,
    first="Medium 9 x 9",
    read=read,
    write="".join,
    grid_of="".join,
    rows_of=_rows_of,
    box_of=lambda rows: BOXES[len(rows)],
    text_help="All cells, row by row; a dot is blank.",
)
