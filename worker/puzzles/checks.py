"""Checks of solutions by the rules of the puzzle, not by anybody's answer."""

from collections import deque
from collections.abc import Iterator, Sequence
from math import isqrt
from typing import NamedTuple

WALL = "#"
SPACE = " "
START = "S"
GOAL = "G"
PATH = "o"


class Verdict(NamedTuple):
    """The verdict on a solution: whether it is one and, in a maze, of the least length.

    None is not known.
    """

    is_valid: bool | None
    is_shortest: bool | None = None


UNKNOWN = Verdict(None)


def box_shape(size: int) -> tuple[int, int]:
    """Return the rows and columns of a box of a Sudoku with `size` rows.

    Boxes are as square as they can be, and not higher than wide: 2 x 2 of 4, 2 x 3 of 6, 3 x 3 of 9.
    """
    height = isqrt(size)
    while size % height:
        height -= 1
    return height, size // height


def check_sudoku(givens: Sequence[int], digits: Sequence[int], size: int) -> Verdict:
    """Return whether `digits` fill a Sudoku, cell by cell, whose blank cells in `givens` are 0.

    Each row, column and box has all digits from 1 to `size`, and the given ones are kept.
    """
    for given, digit in zip(givens, digits, strict=True):
        if given and given != digit:
            return Verdict(False)
    expected = set(range(1, size + 1))
    for unit in _units(size):
        if {digits[cell] for cell in unit} != expected:
            return Verdict(False)
    return Verdict(True)


def _units(size: int) -> Iterator[list[int]]:
    """Yield the cells of each row, column and box."""
    for line in range(size):
        yield list(range(line * size, (line + 1) * size))
        yield list(range(line, size * size, size))
    height, width = box_shape(size)
    for top in range(0, size, height):
        for left in range(0, size, width):
            box: list[int] = []
            for row in range(top, top + height):
                first = row * size + left
                box += range(first, first + width)
            yield box


def check_maze(maze: str, answer: str, width: int) -> Verdict:
    """Return whether the marked cells of `answer` are a way through `maze`, and a shortest one.

    Both are the rows, `width` characters each, one behind the other. The marked cells must lie on
    spaces of the maze and be one path from the start to the goal, with no cell besides; all other
    cells must be as they were. A maze without exactly one start and one goal has no verdict.
    """
    if maze.count(START) != 1 or maze.count(GOAL) != 1:
        return UNKNOWN
    marked: set[int] = set()
    for cell, (before, after) in enumerate(zip(maze, answer, strict=True)):
        if after == PATH and before in (SPACE, PATH):
            marked.add(cell)
        elif before == PATH and after == SPACE:
            # A path that the puzzle itself showed may be left.
            continue
        elif after != before:
            return Verdict(False, None)

    start = maze.index(START)
    goal = maze.index(GOAL)
    length = _distance(marked | {goal}, start, goal, width)
    # A longer set of marked cells has some that are not on the way.
    if length is None or length != len(marked) + 1:
        return Verdict(False, None)
    free = {cell for cell, sign in enumerate(maze) if sign != WALL}
    return Verdict(True, length == _distance(free, start, goal, width))


def _distance(cells: set[int], start: int, goal: int, width: int) -> int | None:
    """Return the least number of steps from `start` to `goal` over `cells`, None without a way."""
    seen = {start}
    ahead = deque([(start, 0)])
    while ahead:
        cell, steps = ahead.popleft()
        if cell == goal:
            return steps
        for other in _neighbours(cell, width):
            if other in cells and other not in seen:
                seen.add(other)
                ahead.append((other, steps + 1))
    return None


def _neighbours(cell: int, width: int) -> Iterator[int]:
    """Yield the cells above, below, left and right of a cell; some may be outside of the maze."""
    yield cell - width
    yield cell + width
    if cell % width:
        yield cell - 1
    if (cell + 1) % width:
        yield cell + 1
