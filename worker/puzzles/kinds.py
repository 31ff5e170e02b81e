"""The puzzles that recurrent networks are trained on: grids as tokens, and tokens as grids.

The sizes of a network's vocabulary and of its field tell the kind of puzzle. Token 0 is padding in
all kinds. Source of the formats: the dataset builders and the ARC evaluation of the HRM repository.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from math import isqrt
from typing import Protocol

from shared.errors import InvalidRequest
from shared.messages import Grid
from worker.puzzles.arc import Rows
from worker.puzzles.checks import UNKNOWN, Verdict, check_maze, check_sudoku

Puzzle = str | Grid

_MAZE_CELLS = "# SGo"  # wall, space, start, goal, path
_MAZE_SIGNS = "?" + _MAZE_CELLS  # by token
_ARC_SIZE = 30  # of the field in which a grid stands
_ARC_EOS = 1
_ARC_FIRST = 2  # the token of colour 0; colour 9 is the last of the vocabulary


class PuzzleKind(Protocol):
    """A kind of puzzle, and the format of its grids. Data sets have its `name` in theirs.

    `blank` is an empty puzzle. `has_check` tells whether solutions can be checked at all.
    """

    @property
    def name(self) -> str: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def num_cells(self) -> int: ...

    @property
    def width(self) -> int:
        """The number of columns of the field."""

    @property
    def blank(self) -> Puzzle: ...

    @property
    def has_check(self) -> bool: ...

    def encode(self, puzzle: Puzzle) -> tuple[int, ...]:
        """Return a grid as `num_cells` tokens. Raise InvalidRequest for a grid of another kind."""

    def decode(self, tokens: Sequence[int]) -> Grid:
        """Return the grid of an answer's tokens."""

    def check(self, puzzle: Sequence[int], answer: Sequence[int]) -> Verdict:
        """Return whether the tokens of an answer solve those of a puzzle, as far as can be told."""


@dataclass(frozen=True)
class Sudoku:
    """A Sudoku of `size` rows. Digit d is token d + 1, and a blank cell is the digit 0."""

    size: int = 9
    name = "sudoku"
    has_check = True

    @property
    def width(self) -> int:
        return self.size

    @property
    def vocab_size(self) -> int:
        return self.size + 2

    @property
    def num_cells(self) -> int:
        return self.size**2

    @property
    def blank(self) -> Puzzle:
        return ((0,) * self.size,) * self.size

    def encode(self, puzzle: Puzzle) -> tuple[int, ...]:
        expected = self._expected()
        if isinstance(puzzle, str):
            return self._of_string(puzzle, expected)

        rows = _rows_of_numbers(puzzle, expected, most=self.size)
        if len(rows) != self.size:
            raise _invalid(f"expected {expected}")
        tokens: list[int] = []
        for row in rows:
            if len(row) != self.size:
                raise _invalid(f"expected {expected}")
            for cell in row:
                tokens.append(cell + 1)
        return tuple(tokens)

    def _of_string(self, puzzle: str, expected: str) -> tuple[int, ...]:
        digits = puzzle.replace(".", "0")
        # isdigit alone would let digits of other scripts pass.
        is_digits = digits.isascii() and digits.isdigit()
        if self.size > 9 or len(digits) != self.num_cells or not is_digits:
            raise _invalid(f"expected {expected}")
        if int(max(digits)) > self.size:
            raise _invalid(f"expected digits from 0 to {self.size}, got {max(digits)}")
        return tuple(int(digit) + 1 for digit in digits)

    def _expected(self) -> str:
        rows = f"{self.size} rows of {self.size} numbers"
        if self.size > 9:
            return f"{rows}, with 0 for a blank cell"
        return (
            f"{rows}, or a string of {self.num_cells} digits, with 0 (or . in the string) for a "
            "blank cell"
        )

    def decode(self, tokens: Sequence[int]) -> Grid:
        """Return tokens as digits. A cell that the network left blank, or padded, is 0."""
        grid: list[tuple[int, ...]] = []
        for row in _cut(tokens, self.size):
            grid.append(tuple(max(token - 1, 0) for token in row))
        return tuple(grid)

    def check(self, puzzle: Sequence[int], answer: Sequence[int]) -> Verdict:
        givens = [token - 1 for token in puzzle]
        digits = [token - 1 for token in answer]
        return check_sudoku(givens, digits, self.size)


@dataclass(frozen=True)
class Maze:
    """A maze of `size` rows. Each character is a token: its index in `_MAZE_SIGNS`."""

    size: int = 30
    name = "maze"
    has_check = True
    vocab_size = len(_MAZE_SIGNS)

    @property
    def width(self) -> int:
        return self.size

    @property
    def num_cells(self) -> int:
        return self.size**2

    @property
    def blank(self) -> Puzzle:
        return (" " * self.size,) * self.size

    def encode(self, puzzle: Puzzle) -> tuple[int, ...]:
        expected = f"{self.size} strings of {self.size} characters out of {_MAZE_CELLS!r}"
        if isinstance(puzzle, str) or len(puzzle) != self.size:
            raise _invalid(f"expected {expected}")

        rows: list[str] = []
        for row in puzzle:
            if not isinstance(row, str) or len(row) != self.size:
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

    def decode(self, tokens: Sequence[int]) -> Grid:
        """Return tokens as characters. A cell that the network padded is "?"."""
        grid: list[str] = []
        for row in _cut(tokens, self.size):
            grid.append("".join(_MAZE_SIGNS[token] for token in row))
        return tuple(grid)

    def check(self, puzzle: Sequence[int], answer: Sequence[int]) -> Verdict:
        signs = "".join(_MAZE_SIGNS[token] for token in puzzle)
        answered = "".join(_MAZE_SIGNS[token] for token in answer)
        return check_maze(signs, answered, self.size)


@dataclass(frozen=True)
class Arc:
    """An ARC grid, in the top left corner of a field. Colour c is token c + 2.

    End tokens fill the row below the grid and the column to its right, unless the grid reaches the
    field's edge there.
    """

    name = "arc"
    has_check = False
    vocab_size = 12
    num_cells = _ARC_SIZE**2
    width = _ARC_SIZE
    blank = ((0,),)

    def encode(self, puzzle: Puzzle) -> tuple[int, ...]:
        expected = (
            f"1 to {_ARC_SIZE} rows of equal length, 1 to {_ARC_SIZE}, of numbers from 0 to 9"
        )
        if isinstance(puzzle, str):
            raise _invalid(f"expected {expected}")

        rows = _rows_of_numbers(puzzle, expected, most=9)
        height = len(rows)
        if not 0 < height <= _ARC_SIZE:
            raise _invalid(f"expected {expected}")
        width = len(rows[0])
        if not 0 < width <= _ARC_SIZE:
            raise _invalid(f"expected {expected}")

        tokens: list[int] = []
        for row in rows:
            if len(row) != width:
                raise _invalid(f"expected {expected}")
            line = [cell + _ARC_FIRST for cell in row]
            if width < _ARC_SIZE:
                line.append(_ARC_EOS)
            line += [0] * (_ARC_SIZE - len(line))
            tokens += line

        if height < _ARC_SIZE:
            # The corner below the grid's right edge stays padding.
            tokens += [_ARC_EOS] * width
        tokens += [0] * (self.num_cells - len(tokens))
        return tuple(tokens)

    def decode(self, tokens: Sequence[int]) -> Rows:
        """Return the largest rectangle of colours in the top left corner.

        Among rectangles of equal size it is the one with the fewest rows.
        """
        lines = _cut(tokens, _ARC_SIZE)
        best_height = 0
        best_width = 0
        width = _ARC_SIZE
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

    def check(self, puzzle: Sequence[int], answer: Sequence[int]) -> Verdict:
        """Return no verdict: a grid alone does not tell the rule of its task."""
        return UNKNOWN


@dataclass(frozen=True)
class RawTokens:
    """Tokens of a data set that we know nothing else of: they go in and come out as they are.

    A field whose size is a square has as many rows as columns, any other has one row.
    """

    vocab_size: int
    num_cells: int
    name = "tokens"
    has_check = False

    @property
    def width(self) -> int:
        side = isqrt(self.num_cells)
        if side**2 == self.num_cells:
            return side
        return self.num_cells

    @property
    def blank(self) -> Puzzle:
        return ((0,) * self.width,) * (self.num_cells // self.width)

    def encode(self, puzzle: Puzzle) -> tuple[int, ...]:
        expected = f"rows of {self.num_cells} tokens in all, from 0 to {self.vocab_size - 1}"
        if isinstance(puzzle, str):
            raise _invalid(f"expected {expected}")
        tokens: list[int] = []
        for row in _rows_of_numbers(puzzle, expected, most=self.vocab_size - 1):
            tokens += row
        if len(tokens) != self.num_cells:
            raise _invalid(f"expected {expected}, got {len(tokens)}")
        return tuple(tokens)

    def decode(self, tokens: Sequence[int]) -> Grid:
        return tuple(tuple(row) for row in _cut(tokens, self.width))

    def check(self, puzzle: Sequence[int], answer: Sequence[int]) -> Verdict:
        """Return no verdict: the rules are not known."""
        return UNKNOWN


SUDOKU = Sudoku()
MAZE = Maze()
ARC = Arc()
KINDS: tuple[PuzzleKind, ...] = (SUDOKU, MAZE, ARC)
"""The kinds in their usual sizes."""


def kind_of(vocab_size: int, num_cells: int | None, words: Set[str]) -> PuzzleKind | None:
    """Return the kind of puzzle with this vocabulary and field, None for one that we do not know.

    A field of unknown size (None) has the kind's usual one. `words` are those of the data set's
    name, which decide where two kinds have the same sizes.
    """
    fitting: list[PuzzleKind] = []
    for kind in _candidates(num_cells):
        if kind.vocab_size == vocab_size:
            fitting.append(kind)
    for kind in fitting:
        if kind.name in words:
            return kind
    return fitting[0] if fitting else None


def _candidates(num_cells: int | None) -> Sequence[PuzzleKind]:
    """Return the kinds whose field may have so many cells, the likeliest first."""
    if num_cells is None:
        return KINDS
    side = isqrt(num_cells)
    if side**2 != num_cells:
        return ()
    if num_cells == ARC.num_cells:
        return (ARC, Maze(side), Sudoku(side))
    return (Sudoku(side), Maze(side))


def _rows_of_numbers(puzzle: Grid, expected: str, most: int) -> list[tuple[int, ...]]:
    """Return the rows of numbers from 0 to `most`. Raise InvalidRequest for anything else."""
    rows: list[tuple[int, ...]] = []
    for row in puzzle:
        if isinstance(row, str):
            raise _invalid(f"expected {expected}")
        rows.append(row)

    for index, numbers in enumerate(rows):
        for number in numbers:
            if not 0 <= number <= most:
                raise _invalid(f"expected numbers from 0 to {most}, got {number}", row=index)
    return rows


def _cut(tokens: Sequence[int], width: int) -> list[Sequence[int]]:
    """Return the rows of `width` tokens."""
    return [tokens[start : start + width] for start in range(0, len(tokens), width)]


def _invalid(problem: str, row: int | None = None) -> InvalidRequest:
    where = "grid"
    if row is not None:
        where = f"grid[{row}]"
    return InvalidRequest(f"{where}: {problem}.", field="grid")
