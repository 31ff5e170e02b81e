"""The puzzles that Sapient HRM networks are trained on: how their grids are written as tokens, and
tokens as grids.

Plain Python. A kind is told by the size of its vocabulary; in all of them token 0 is padding.
Source of the formats: the dataset builders and the ARC evaluation of the HRM repository.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shared.errors import InvalidRequest
from shared.messages import Grid

Puzzle = str | Grid

_SUDOKU_SIZE = 9
_FIELD_SIZE = 30  # of a maze, and of the field on which an ARC grid is laid
_MAZE_CELLS = "# SGo"  # wall, space, start, goal, path
_MAZE_SIGNS = "?" + _MAZE_CELLS  # by token
_ARC_EOS = 1
_ARC_FIRST = 2  # the token of colour 0; colour 9 is the last of the vocabulary


@dataclass(frozen=True)
class PuzzleKind:
    """`encode` writes a grid as `num_cells` tokens, or raises InvalidRequest; `decode` reads an
    answer's tokens."""

    name: str
    vocab_size: int
    num_cells: int
    blank: Puzzle
    encode: Callable[[Puzzle], tuple[int, ...]]
    decode: Callable[[Sequence[int]], Grid]


def _encode_sudoku(puzzle: Puzzle) -> tuple[int, ...]:
    """Digit d is token d + 1; 0, and in a string also ".", is a blank cell."""
    expected = (
        "9 rows of 9 numbers, or a string of 81 digits, with 0 (or . in the string) for a "
        "blank cell"
    )
    if isinstance(puzzle, str):
        digits = puzzle.replace(".", "0")
        if len(digits) != _SUDOKU_SIZE**2 or not (digits.isascii() and digits.isdigit()):
            raise _invalid(f"expected {expected}")
        return tuple(int(digit) + 1 for digit in digits)
    rows = _rows_of_digits(puzzle, expected)
    if [len(row) for row in rows] != [_SUDOKU_SIZE] * _SUDOKU_SIZE:
        raise _invalid(f"expected {expected}")
    return tuple(cell + 1 for row in rows for cell in row)


def _decode_sudoku(tokens: Sequence[int]) -> Grid:
    """A cell that the network left blank, or padded, is 0."""
    return tuple(tuple(max(token - 1, 0) for token in row) for row in _cut(tokens, _SUDOKU_SIZE))


def _encode_maze(puzzle: Puzzle) -> tuple[int, ...]:
    """The characters in their order are tokens from 1."""
    expected = f"{_FIELD_SIZE} strings of {_FIELD_SIZE} characters out of {_MAZE_CELLS!r}"
    rows = [row for row in puzzle if isinstance(row, str)]
    if (
        isinstance(puzzle, str)
        or len(rows) < len(puzzle)
        or [len(row) for row in rows] != [_FIELD_SIZE] * _FIELD_SIZE
    ):
        raise _invalid(f"expected {expected}")
    for at, row in enumerate(rows):
        if strange := set(row) - set(_MAZE_CELLS):
            raise _invalid(f"expected characters out of {_MAZE_CELLS!r}, got {min(strange)!r}", at)
    return tuple(_MAZE_SIGNS.index(cell) for row in rows for cell in row)


def _decode_maze(tokens: Sequence[int]) -> Grid:
    """A cell that the network padded is "?"."""
    return tuple("".join(_MAZE_SIGNS[token] for token in row) for row in _cut(tokens, _FIELD_SIZE))


def _encode_arc(puzzle: Puzzle) -> tuple[int, ...]:
    """Colour c is token c + 2; the grid lies in the field's top left, end marks below it and to its
    right."""
    expected = (
        f"1 to {_FIELD_SIZE} rows of equal length, 1 to {_FIELD_SIZE}, of numbers from 0 to 9"
    )
    if isinstance(puzzle, str):
        raise _invalid(f"expected {expected}")
    rows = _rows_of_digits(puzzle, expected)
    widths = {len(row) for row in rows}
    if len(widths) != 1 or not (0 < len(rows) <= _FIELD_SIZE and 0 < max(widths) <= _FIELD_SIZE):
        raise _invalid(f"expected {expected}")
    height, width = len(rows), max(widths)
    field = [[0] * _FIELD_SIZE for _ in range(_FIELD_SIZE)]
    for line, row in zip(field, rows, strict=False):
        line[: width + 1] = [*(cell + _ARC_FIRST for cell in row), _ARC_EOS]
    if height < _FIELD_SIZE:
        field[height][:width] = [_ARC_EOS] * width
    return tuple(cell for line in field for cell in line[:_FIELD_SIZE])


def _decode_arc(tokens: Sequence[int]) -> Grid:
    """The largest rectangle of colours from the top left corner; among equals the one of fewest
    rows."""
    best_height = best_width = 0
    lines, width = _cut(tokens, _FIELD_SIZE), _FIELD_SIZE
    for height, line in enumerate(lines, start=1):
        width = next((at for at in range(width) if line[at] < _ARC_FIRST), width)
        if height * width > best_height * best_width:
            best_height, best_width = height, width
    return tuple(
        tuple(token - _ARC_FIRST for token in line[:best_width]) for line in lines[:best_height]
    )


def _rows_of_digits(puzzle: Grid, expected: str) -> list[tuple[int, ...]]:
    rows = [row for row in puzzle if not isinstance(row, str)]
    if len(rows) < len(puzzle):
        raise _invalid(f"expected {expected}")
    for at, row in enumerate(rows):
        if strange := [cell for cell in row if not 0 <= cell <= 9]:
            raise _invalid(f"expected numbers from 0 to 9, got {strange[0]}", at)
    return rows


def _cut(tokens: Sequence[int], width: int) -> list[Sequence[int]]:
    return [tokens[start : start + width] for start in range(0, len(tokens), width)]


def _invalid(problem: str, row: int | None = None) -> InvalidRequest:
    place = "grid" if row is None else f"grid[{row}]"
    return InvalidRequest(f"{place}: {problem}.", field="grid")


SUDOKU = PuzzleKind(
    "sudoku", 11, _SUDOKU_SIZE**2, "." * _SUDOKU_SIZE**2, _encode_sudoku, _decode_sudoku
)
MAZE = PuzzleKind(
    "maze", 6, _FIELD_SIZE**2, (" " * _FIELD_SIZE,) * _FIELD_SIZE, _encode_maze, _decode_maze
)
ARC = PuzzleKind("arc", 12, _FIELD_SIZE**2, ((0,),), _encode_arc, _decode_arc)
KINDS = (SUDOKU, MAZE, ARC)
