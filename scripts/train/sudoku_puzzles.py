"""Sudokus with exactly one solution, of any size, for the sample puzzle networks.

This module does without torch, so that a test can draw held-out puzzles quickly. Each puzzle comes
from a random complete grid, from which givens are removed in random order for as long as the
solution stays the only one. One that stops early is easy, one that can lose no more is hard.

Whether a puzzle is held out depends on a hash that all its symmetric images share: other digits,
other orders of rows and columns, and transposition. So whatever images of its puzzles a training
shows, it never shows a held-out puzzle or an image of one.
"""

import random
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from math import isqrt

SIZES = (4, 6, 9)
HELD_OUT_ONE_IN = 10
PUZZLES_PER_GRID = 6
# Steps of one search. Counted, not timed, so that a seed gives the same puzzles everywhere.
_MAX_STEPS = 2_000


class SearchTooLong(Exception):
    """A search for solutions took more steps than it may."""


@dataclass(frozen=True)
class Layout:
    """The units of a Sudoku of `size` x `size` cells.

    Boxes are as nearly square as the size allows, and at least as wide as high: 2 x 2 in a Sudoku
    of size 4, 2 rows x 3 columns in one of size 6, 3 x 3 in one of size 9.
    """

    size: int

    @cached_property
    def box_height(self) -> int:
        """Return the largest divisor of the size that is not over its root."""
        height = isqrt(self.size)
        while self.size % height:
            height -= 1
        return height

    @property
    def box_width(self) -> int:
        return self.size // self.box_height

    @property
    def num_cells(self) -> int:
        return self.size**2

    @cached_property
    def units(self) -> tuple[tuple[int, int, int], ...]:
        """Return row, column and box of each cell, each numbered from 0."""
        units = []
        for cell in range(self.num_cells):
            row, column = divmod(cell, self.size)
            boxes_above = row // self.box_height * self.box_height
            units.append((row, column, boxes_above + column // self.box_width))
        return tuple(units)


@cache
def layout_of(size: int) -> Layout:
    return Layout(size)


@dataclass(frozen=True)
class Puzzle:
    """A Sudoku and its only solution, row by row. A blank cell of `givens` is 0."""

    size: int
    givens: tuple[int, ...]
    solution: tuple[int, ...]

    @property
    def num_blanks(self) -> int:
        return self.givens.count(0)

    @property
    def text(self) -> str:
        """The givens as digits, with "." for a blank cell."""
        return "".join(str(digit) for digit in self.givens).replace("0", ".")


class _Board:
    """A partly filled grid. Digit d is the bit `1 << (d - 1)`, and a blank cell is 0."""

    def __init__(self, layout: Layout, rng: random.Random) -> None:
        all_digits = (1 << layout.size) - 1
        self.layout = layout
        self.cells = [0] * layout.num_cells
        self._rng = rng
        # The digits that are still free in each row, column and box.
        self._rows = [all_digits] * layout.size
        self._columns = [all_digits] * layout.size
        self._boxes = [all_digits] * layout.size
        self._solution: list[int] = []
        self._steps_left = _MAX_STEPS

    def put(self, cell: int, bit: int) -> None:
        self.cells[cell] = bit
        self._flip(cell, bit)

    def clear(self, cell: int) -> int:
        """Make a cell blank, and return the digit that stood there."""
        bit = self.cells[cell]
        self.cells[cell] = 0
        self._flip(cell, bit)
        return bit

    def _flip(self, cell: int, bit: int) -> None:
        row, column, box = self.layout.units[cell]
        self._rows[row] ^= bit
        self._columns[column] ^= bit
        self._boxes[box] ^= bit

    def candidates(self, cell: int) -> int:
        """Return the digits that are free in all units of a blank cell."""
        row, column, box = self.layout.units[cell]
        return self._rows[row] & self._columns[column] & self._boxes[box]

    def complete(self) -> list[int] | None:
        """Return a solution as bits, or None if there is none. The board stays as it is.

        Raise SearchTooLong if more than `_MAX_STEPS` digits are tried.
        """
        self._steps_left = _MAX_STEPS
        if self._count(limit=1) == 0:
            return None
        return self._solution

    def count_solutions(self, limit: int) -> int:
        """Return the number of solutions, or `limit` if there are more. Raise as `complete`."""
        self._steps_left = _MAX_STEPS
        return self._count(limit)

    def _count(self, limit: int) -> int:
        cell, free = self._tightest_cell()
        if cell < 0:
            self._solution = list(self.cells)
            return 1

        count = 0
        for bit in self._shuffled_bits(free):
            self._steps_left -= 1
            if self._steps_left < 0:
                raise SearchTooLong
            self.put(cell, bit)
            try:
                count += self._count(limit - count)
            finally:
                self.clear(cell)
            if count >= limit:
                break
        return count

    def _tightest_cell(self) -> tuple[int, int]:
        """Return the blank cell with the fewest candidates, and these. Cell -1: none is blank."""
        best_cell = -1
        best_free = 0
        fewest = self.layout.size + 1
        rows, columns, boxes = self._rows, self._columns, self._boxes
        for cell, (row, column, box) in enumerate(self.layout.units):
            if self.cells[cell]:
                continue
            free = rows[row] & columns[column] & boxes[box]
            count = free.bit_count()
            if count < fewest:
                best_cell = cell
                best_free = free
                fewest = count
                if count < 2:
                    break
        return best_cell, best_free

    def _shuffled_bits(self, digits: int) -> list[int]:
        bits = _bits(digits)
        if len(bits) > 1:
            self._rng.shuffle(bits)
        return bits


def _bits(digits: int) -> list[int]:
    """Return the single bits of a set of digits."""
    bits = []
    while digits:
        lowest = digits & -digits
        bits.append(lowest)
        digits ^= lowest
    return bits


def count_solutions(size: int, givens: Sequence[int], limit: int = 2) -> int:
    """Return the number of solutions of a Sudoku, or `limit` if there are more.

    Givens that contradict one another have none. Raise SearchTooLong if that cannot be told soon.
    """
    board = _Board(layout_of(size), random.Random(0))
    for cell, digit in enumerate(givens):
        if not digit:
            continue
        bit = 1 << (digit - 1)
        if not board.candidates(cell) & bit:
            return 0
        board.put(cell, bit)
    return board.count_solutions(limit)


def _filled_board(layout: Layout, rng: random.Random) -> _Board:
    """Return a random complete grid."""
    while True:
        board = _Board(layout, rng)
        try:
            solution = board.complete()
        except SearchTooLong:
            continue
        assert solution is not None
        for cell, bit in enumerate(solution):
            board.put(cell, bit)
        return board


def _is_needed(board: _Board, cell: int, bit: int) -> bool:
    """Return whether a puzzle needs the given `bit` of `cell`, which is blank now, to be unique.

    That is so if the cell could hold another digit. A search that takes too long counts as one
    that found such a solution.
    """
    for other in _bits(board.candidates(cell) ^ bit):
        board.put(cell, other)
        try:
            has_other_solution = board.complete() is not None
        except SearchTooLong:
            has_other_solution = True
        finally:
            board.clear(cell)
        if has_other_solution:
            return True
    return False


def _dig(board: _Board, rng: random.Random, max_blanks: int) -> list[int]:
    """Remove givens of a complete grid in random order, and return their cells in that order.

    After each of them the grid is still the only solution. At most `max_blanks` are removed.
    """
    removed: list[int] = []
    cells = list(range(board.layout.num_cells))
    rng.shuffle(cells)
    for cell in cells:
        if len(removed) == max_blanks:
            break
        bit = board.clear(cell)
        if _is_needed(board, cell, bit):
            board.put(cell, bit)
        else:
            removed.append(cell)
    return removed


def _puzzles_of_a_grid(layout: Layout, rng: random.Random, max_blanks: int) -> list[Puzzle]:
    """Return the puzzles of one random grid, from the easiest to the hardest.

    Each has one blank cell more than the one before. The first has a quarter of the last's.
    """
    board = _filled_board(layout, rng)
    solution = tuple(bit.bit_length() for bit in board.cells)
    removed = _dig(board, rng, max_blanks)

    puzzles = []
    givens = list(solution)
    for num_blanks, cell in enumerate(removed, start=1):
        givens[cell] = 0
        if 4 * num_blanks >= len(removed):
            puzzles.append(Puzzle(layout.size, tuple(givens), solution))
    return puzzles


def is_held_out(size: int, givens: Sequence[int]) -> bool:
    """Return whether a puzzle, and with it all its symmetric images, is held out of training."""
    layout = layout_of(size)
    in_row: Counter[int] = Counter()
    in_column: Counter[int] = Counter()
    in_box: Counter[int] = Counter()
    for cell, digit in enumerate(givens):
        if digit:
            row, column, box = layout.units[cell]
            in_row[row] += 1
            in_column[column] += 1
            in_box[box] += 1

    # A given is told by how many its units have, and how often its digit stands in the grid. A row
    # and a column have the same part, since transposition exchanges them.
    of_digit = Counter(givens)
    marks = []
    for cell, digit in enumerate(givens):
        if digit:
            row, column, box = layout.units[cell]
            lines = sorted((in_row[row], in_column[column]))
            marks.append((*lines, in_box[box], of_digit[digit]))
    return zlib.crc32(repr(sorted(marks)).encode()) % HELD_OUT_ONE_IN == 0


def held_out(size: int, count: int, seed: int = 0, max_blanks: int | None = None) -> list[Puzzle]:
    """Return `count` distinct held-out puzzles, each of another random grid.

    The same arguments give the same puzzles.
    """
    rng = random.Random(f"held out/{size}/{seed}")
    layout = layout_of(size)
    puzzles: dict[tuple[int, ...], Puzzle] = {}
    while len(puzzles) < count:
        found = []
        for puzzle in _puzzles_of_a_grid(layout, rng, _blanks(layout, max_blanks)):
            if is_held_out(size, puzzle.givens):
                found.append(puzzle)
        if found:
            puzzle = rng.choice(found)
            puzzles[puzzle.givens] = puzzle
    return list(puzzles.values())


def training_stream(
    size: int, seed: int | str, max_blanks: int | None = None
) -> Iterator[list[Puzzle]]:
    """Yield the training puzzles of one random grid after another, without end.

    They are up to `PUZZLES_PER_GRID` of different difficulty, none of which is held out.
    """
    rng = random.Random(f"training/{size}/{seed}")
    layout = layout_of(size)
    while True:
        allowed = []
        for puzzle in _puzzles_of_a_grid(layout, rng, _blanks(layout, max_blanks)):
            if not is_held_out(size, puzzle.givens):
                allowed.append(puzzle)
        yield rng.sample(allowed, min(PUZZLES_PER_GRID, len(allowed)))


def _blanks(layout: Layout, max_blanks: int | None) -> int:
    return layout.num_cells if max_blanks is None else max_blanks
