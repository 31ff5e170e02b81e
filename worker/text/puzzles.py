"""The puzzles that Sapient HRM networks are trained on: grids as tokens, and tokens as grids.

Plain Python. The size of a network's vocabulary tells the kind of puzzle. Token 0 is padding in all
kinds. Source of the formats: the dataset builders and the ARC evaluation of the HRM repository.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shared.errors import InvalidRequest
from shared.messages import Grid

Puzzle = str | Grid

_SUDOKU_SIZE = 9
_FIELD_SIZE = 30  # of a maze, and of the field in which an ARC grid stands
_MAZE_CELLS = "# SGo"  # wall, space, start, goal, path
_MAZE_SIGNS = "?" + _MAZE_CELLS  # by token
_ARC_EOS = 1
_ARC_FIRST = 2  # the token of colour 0; colour 9 is the last of the vocabulary


@dataclass(frozen=True)
class PuzzleKind:
    """A kind of puzzle, and the format of its grids.

    `encode` returns a grid as `num_cells` tokens, or raises InvalidRequest. `decode` returns the
    grid of an answer's tokens. `blank` is an empty puzzle.
    """

    name: str
    vocab_size: int
    num_cells: int
    blank: Puzzle
    encode: Callable[[Puzzle], tuple[int, ...]]
    decode: Callable[[Sequence[int]], Grid]


def _encode_sudoku(puzzle: Puzzle) -> tuple[int, ...]:
    """Return digit d as token d + 1. A blank cell is 0, or in a string also "."."""
    expected = (
        "9 rows of 9 numbers, or a string of 81 digits, with 0 (or . in the string) for a "
        "blank cell"
    )
    if isinstance(puzzle, str):
        digits = puzzle.replace(".", "0")
        # isdigit alone would let digits of other scripts pass.
        if len(digits) != _SUDOKU_SIZE**2 or not (digits.isascii() and digits.isdigit()):
            raise _invalid(f"expected {expected}")
        return tuple(int(digit) + 1 for digit in digits)

    rows = _rows_of_digits(puzzle, expected)
    if len(rows) != _SUDOKU_SIZE:
        raise _invalid(f"expected {expected}")

    tokens: list[int] = []
    for row in rows:
        if len(row) != _SUDOKU_SIZE:
            raise _invalid(f"expected {expected}")
        for cell in row:
            tokens.append(cell + 1)
    return tuple(tokens)


def _decode_sudoku(tokens: Sequence[int]) -> Grid:
    """Return tokens as digits. A cell that the network left blank, or padded, is 0."""
    grid: list[tuple[int, ...]] = []
    for row in _cut(tokens, _SUDOKU_SIZE):
        grid.append(tuple(max(token - 1, 0) for token in row))
    return tuple(grid)


def _encode_maze(puzzle: Puzzle) -> tuple[int, ...]:
    """Return each character as a token: its index in `_MAZE_SIGNS`."""
    expected = f"{_FIELD_SIZE} strings of {_FIELD_SIZE} characters out of {_MAZE_CELLS!r}"
    if isinstance(puzzle, str) or len(puzzle) != _FIELD_SIZE:
        raise _invalid(f"expected {expected}")

    rows: list[str] = []
    for row in puzzle:
        if not isinstance(row, str) or len(row) != _FIELD_SIZE:
            raise _invalid(f"expected {expected}")
        rows.append(row)

    tokens: list[int] = []
    for index, text in enumerate(rows):
        unknown = set(text) - set(_MAZE_CELLS)
        if unknown:
            problem = f"expected characters out of {_MAZE_CELLS!r}, got {min(unknown)!r}"
            raise _invalid(problem, row=index)
        for character in text:
            tokens.append(_MAZE_SIGNS.index(character))
    return tuple(tokens)


def _decode_maze(tokens: Sequence[int]) -> Grid:
    """Return tokens as characters. A cell that the network padded is "?"."""
    grid: list[str] = []
    for row in _cut(tokens, _FIELD_SIZE):
        grid.append("".join(_MAZE_SIGNS[token] for token in row))
    return tuple(grid)


def _encode_arc(puzzle: Puzzle) -> tuple[int, ...]:
    """Return colour c as token c + 2, with the grid in the field's top left corner.

    End tokens fill the row below the grid and the column to its right, unless the grid reaches the
    field's edge there.
    """
    expected = (
        f"1 to {_FIELD_SIZE} rows of equal length, 1 to {_FIELD_SIZE}, of numbers from 0 to 9"
    )
    if isinstance(puzzle, str):
        raise _invalid(f"expected {expected}")

    rows = _rows_of_digits(puzzle, expected)
    height = len(rows)
    if not 0 < height <= _FIELD_SIZE:
        raise _invalid(f"expected {expected}")
    width = len(rows[0])
    if not 0 < width <= _FIELD_SIZE:
        raise _invalid(f"expected {expected}")

    tokens: list[int] = []
    for row in rows:
        if len(row) != width:
            raise _invalid(f"expected {expected}")
        line = [cell + _ARC_FIRST for cell in row]
        if width < _FIELD_SIZE:
            line.append(_ARC_EOS)
        line += [0] * (_FIELD_SIZE - len(line))
        tokens += line

    if height < _FIELD_SIZE:
        # The corner below the grid's right edge stays padding.
        tokens += [_ARC_EOS] * width
    tokens += [0] * (_FIELD_SIZE**2 - len(tokens))
    return tuple(tokens)


def _decode_arc(tokens: Sequence[int]) -> Grid:
    """Return the largest rectangle of colours in the top left corner.

    Among rectangles of equal size it is the one with the fewest rows.
    """
    lines = _cut(tokens, _FIELD_SIZE)
    best_height = 0
    best_width = 0
    width = _FIELD_SIZE
    for height, line in enumerate(lines, start=1):
        # A rectangle's width is the shortest run of colours among its rows.
        run = 0
        while run < width and line[run] >= _ARC_FIRST:
            run += 1
        width = run
        if height * width > best_height * best_width:
            best_height = height
            best_width = width

    grid: list[tuple[int, ...]] = []
    for line in lines[:best_height]:
        grid.append(tuple(token - _ARC_FIRST for token in line[:best_width]))
    return tuple(grid)


def _rows_of_digits(puzzle: Grid, expected: str) -> list[tuple[int, ...]]:
    """Return the rows of numbers from 0 to 9. Raise InvalidRequest for anything else."""
    rows: list[tuple[int, ...]] = []
    for row in puzzle:
        if isinstance(row, str):
            raise _invalid(f"expected {expected}")
        rows.append(row)

    for index, numbers in enumerate(rows):
        for number in numbers:
            if not 0 <= number <= 9:
                raise _invalid(f"expected numbers from 0 to 9, got {number}", row=index)
    return rows


def _cut(tokens: Sequence[int], width: int) -> list[Sequence[int]]:
    """Return the rows of `width` tokens."""
    return [tokens[start : start + width] for start in range(0, len(tokens), width)]


def _invalid(problem: str, row: int | None = None) -> InvalidRequest:
    where = "grid"
    if row is not None:
        where = f"grid[{row}]"
    return InvalidRequest(f"{where}: {problem}.", field="grid")


SUDOKU = PuzzleKind(
    name="sudoku",
    vocab_size=11,
    num_cells=_SUDOKU_SIZE**2,
    blank="." * _SUDOKU_SIZE**2,
    encode=_encode_sudoku,
    decode=_decode_sudoku,
)
MAZE = PuzzleKind(
    name="maze",
    vocab_size=6,
    num_cells=_FIELD_SIZE**2,
    blank=(" " * _FIELD_SIZE,) * _FIELD_SIZE,
    encode=_encode_maze,
    decode=_decode_maze,
)
ARC = PuzzleKind(
    name="arc",
    vocab_size=12,
    num_cells=_FIELD_SIZE**2,
    blank=((0,),),
    encode=_encode_arc,
    decode=_decode_arc,
)
KINDS = (SUDOKU, MAZE, ARC)
