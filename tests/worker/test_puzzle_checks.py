"""The checks of solutions, against brute force and against solutions that were broken on purpose."""

import random
from itertools import permutations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.puzzles.checks import UNKNOWN, Verdict, box_shape, check_maze, check_sudoku
from worker.puzzles.kinds import ARC, MAZE, SUDOKU, Maze, RawTokens, Sudoku

SOLVED = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"
GIVENS = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"


def digits(text: str) -> list[int]:
    return [int(cell) for cell in text.replace(".", "0")]


def is_sudoku(grid: list[int], size: int, height: int, width: int) -> bool:
    """Say in the plainest way whether each row, column and box has each digit once."""
    for digit in range(1, size + 1):
        cells = [(at // size, at % size) for at, cell in enumerate(grid) if cell == digit]
        rows = {row for row, _ in cells}
        columns = {column for _, column in cells}
        boxes = {(row // height, column // width) for row, column in cells}
        if not len(cells) == len(rows) == len(columns) == len(boxes) == size:
            return False
    return True


def test_all_grids_of_four() -> None:
    """Exactly the 288 Sudokus of size 4 are valid, among all grids whose rows are permutations."""
    num_valid = 0
    for number, rows in enumerate(product(list(permutations((1, 2, 3, 4))), repeat=4)):
        grid = [cell for row in rows for cell in row]
        expected = is_sudoku(grid, 4, 2, 2)
        num_valid += expected
        if expected or number % 97 == 0:
            assert check_sudoku([0] * 16, grid, 4) == Verdict(expected)
    assert num_valid == 288


def test_a_sudoku_that_is_broken() -> None:
    """A solution is valid; a changed given, two swapped cells, a blank and a wrong digit are not."""
    solved = digits(SOLVED)
    givens = digits(GIVENS)
    assert check_sudoku(givens, solved, 9) == Verdict(True)
    assert check_sudoku([0] * 81, solved, 9) == Verdict(True)
    for at in range(81):
        for wrong in (0, solved[at] % 9 + 1, -1, 10):
            broken = [*solved[:at], wrong, *solved[at + 1 :]]
            assert check_sudoku(givens, broken, 9) == Verdict(False)
    relabelled = [digit % 9 + 1 for digit in solved]
    assert check_sudoku([0] * 81, relabelled, 9) == Verdict(True)
    assert check_sudoku(givens, relabelled, 9) == Verdict(False)


@pytest.mark.parametrize(
    ("size", "shape"),
    [(1, (1, 1)), (4, (2, 2)), (5, (1, 5)), (6, (2, 3)), (8, (2, 4)), (9, (3, 3)), (10, (2, 5))],
)
def test_boxes(size: int, shape: tuple[int, int]) -> None:
    """Boxes tile the grid, and a grid made by shifting rows by boxes is a Sudoku of any size."""
    assert box_shape(size) == shape
    height, width = shape
    grid = []
    for row in range(size):
        shift = row % height * width + row // height
        for column in range(size):
            grid.append((column + shift) % size + 1)
    assert is_sudoku(grid, size, height, width)
    assert check_sudoku([0] * size**2, grid, size) == Verdict(True)
    if size > 1:
        assert check_sudoku([0] * size**2, [*grid[size:], *grid[:size]], size) == Verdict(
            is_sudoku([*grid[size:], *grid[:size]], size, height, width)
        )


def simple_ways(maze: str, width: int) -> list[frozenset[int]]:
    """Return the cells between start and goal of every way without a detour through itself."""
    start = maze.index("S")
    goal = maze.index("G")
    ways = []

    def walk(cell: int, seen: tuple[int, ...]) -> None:
        row = cell // width
        column = cell % width
        for down, right in ((0, 1), (1, 0), (0, -1), (-1, 0)):
            if not (0 <= row + down < len(maze) // width and 0 <= column + right < width):
                continue
            other = cell + down * width + right
            if other == goal:
                ways.append(frozenset(seen) - {start})
            elif maze[other] == " " and other not in seen:
                walk(other, (*seen, other))

    walk(start, (start,))
    return ways


@given(st.integers(0, 10**9))
def test_mazes_against_all_ways(seed: int) -> None:
    """A maze's verdict is that of a search through all ways, for random markings of small mazes.

    A marking is valid if some way that cannot be cut short within it has exactly its cells.
    """
    chosen = random.Random(seed)
    width = 4
    cells = chosen.choices(" #", weights=(3, 1), k=16)
    start, goal = chosen.sample(range(16), 2)
    cells[start] = "S"
    cells[goal] = "G"
    maze = "".join(cells)
    ways = simple_ways(maze, width)
    markings = [chosen.choice(ways)] if ways else []
    free = [cell for cell, sign in enumerate(maze) if sign == " "]
    markings.append(frozenset(chosen.sample(free, chosen.randint(0, len(free)))))
    for marked in markings:
        answer = "".join("o" if cell in marked else sign for cell, sign in enumerate(maze))
        within = [len(way) for way in ways if way <= marked]
        is_valid = bool(within) and min(within) == len(marked)
        is_shortest = len(marked) == min(map(len, ways)) if is_valid else None
        assert check_maze(maze, answer, width) == Verdict(is_valid, is_shortest)


def test_mazes_that_are_answered_with_another() -> None:
    """No wall, start or goal may change, and a maze without one of each has no verdict."""
    maze = "S #  #  G"
    assert check_maze(maze, "So#oo#  G", 3) == Verdict(False)
    assert check_maze(maze, "S #oo# oG", 3) == Verdict(True, True)
    for at in (0, 2, 5, 8):
        answer = "S #oo# oG"
        for sign in "# SGo?":
            if sign != answer[at]:
                broken = answer[:at] + sign + answer[at + 1 :]
                assert check_maze(maze, broken, 3) == Verdict(False), broken
    assert check_maze("S #  #   ", "S #oo# oo", 3) == UNKNOWN
    assert check_maze("S #S #  G", "S #S # oG", 3) == UNKNOWN
    # A path that the puzzle shows may stay or go.
    assert check_maze("So#oo#  G", "S #oo# oG", 3) == Verdict(True, True)
    # A start beside the goal needs no path.
    assert check_maze("SG  ", "SG  ", 2) == Verdict(True, True)
    assert check_maze("SG  ", "SGoo", 2) == Verdict(False)
    # Left of a row's first cell is not the row before.
    assert check_maze("# SG #", "# SG #", 3) == Verdict(False)


def test_a_longer_way_is_valid_but_not_shortest() -> None:
    maze = "S   " + " #  " + "    " + "G## "
    straight = "S   " + "o#  " + "o   " + "G## "
    around = "Sooo" + " # o" + "oooo" + "G## "
    with_a_stray_cell = "S  o" + "o#  " + "o   " + "G## "
    assert check_maze(maze, straight, 4) == Verdict(True, True)
    assert check_maze(maze, around, 4) == Verdict(True, False)
    assert check_maze(maze, with_a_stray_cell, 4) == Verdict(False)


def test_kinds_check_their_tokens() -> None:
    """Each kind gives the verdict on its own tokens; ARC grids and unknown tokens have none."""
    assert SUDOKU.check(SUDOKU.encode(GIVENS), SUDOKU.encode(SOLVED)) == Verdict(True)
    assert SUDOKU.check(SUDOKU.encode(GIVENS), SUDOKU.encode(GIVENS)) == Verdict(False)
    assert SUDOKU.check(SUDOKU.encode(GIVENS), [0] * 81) == Verdict(False)
    four = Sudoku(4)
    assert four.check(four.encode("." * 16), four.encode("1234341221434321")) == Verdict(True)
    small = Maze(3)
    puzzle = small.encode(("S #", "  #", "  G"))
    assert small.check(puzzle, small.encode(("S #", "oo#", " oG"))) == Verdict(True, True)
    assert small.check(puzzle, [0] * 9) == Verdict(False)
    assert MAZE.check(MAZE.encode(MAZE.blank), MAZE.encode(MAZE.blank)) == UNKNOWN
    assert ARC.check(ARC.encode(((1,),)), ARC.encode(((1,),))) == UNKNOWN
    raw = RawTokens(294, 100)
    assert raw.check(raw.encode(raw.blank), [5] * 100) == UNKNOWN
