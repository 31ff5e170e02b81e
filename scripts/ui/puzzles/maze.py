"""Mazes, as rows of the characters that networks for mazes read."""

import random
from math import isqrt
from typing import Any

from scripts.ui.board import BoardStyle, Rows, Sign
from scripts.ui.puzzles.grid_kind import GridKind

_WALL = "#"
_SPACE = " "
_START = "S"
_GOAL = "G"
_PATH = "o"
_SIGNS = _WALL + _SPACE + _START + _GOAL + _PATH
_USUAL_SIZE = 30
_LEAST_SIZE = 3
_MOST_SIZE = 30
_STYLE = BoardStyle(
    "maze",
    (
        Sign(_SPACE, "space", keys="0."),
        Sign(_WALL, "wall", keys="w"),
        Sign(_START, "start", keys="s", is_unique=True),
        Sign(_GOAL, "goal", keys="g", is_unique=True),
        Sign(_PATH, "path"),
        Sign("?", "nothing", is_only_in_answers=True),
    ),
    paints=True,
)


def read(text: str) -> Rows:
    """Return the rows of a maze. Raise ValueError for a text that is none."""
    rows = text.strip("\n").split("\n")
    size = len(rows)
    is_square = all(len(row) == size for row in rows)
    if not _LEAST_SIZE <= size <= _MOST_SIZE or not is_square or set(text) - {*_SIGNS, "\n"}:
        raise ValueError(
            f"A maze has as many rows as columns, up to {_MOST_SIZE}, of the characters '#' for a "
            "wall, a space, S for the start, G for the goal, and o for a path."
        )
    return rows


def drawn_maze(size: int, seed: int, num_doors: int) -> Rows:
    """Return a maze of so many rows, with one way from its start to its goal, or more with doors.

    Corridors are dug from one another at random, then `num_doors` walls between two of them are
    opened. The same numbers make the same maze.
    """
    draw = random.Random(f"{size} {seed} {num_doors}")
    cells = [[_WALL] * size for _ in range(size)]
    last = size - 2 - (size + 1) % 2
    cells[1][1] = _SPACE
    way = [(1, 1)]
    while way:
        row, column = way[-1]
        steps = []
        for down, right in ((0, 2), (2, 0), (0, -2), (-2, 0)):
            is_inside = 1 <= row + down <= last and 1 <= column + right <= last
            if is_inside and cells[row + down][column + right] == _WALL:
                steps.append((down, right))
        if not steps:
            way.pop()
            continue
        down, right = draw.choice(steps)
        cells[row + down // 2][column + right // 2] = _SPACE
        cells[row + down][column + right] = _SPACE
        way.append((row + down, column + right))

    walls = []
    for row in range(1, last + 1):
        for column in range(1 + row % 2, last, 2):
            if cells[row][column] == _WALL:
                walls.append((row, column))
    for row, column in draw.sample(walls, min(num_doors, len(walls))):
        cells[row][column] = _SPACE
    cells[1][1] = _START
    cells[last][last] = _GOAL
    return ["".join(row) for row in cells]


def _examples(num_cells: int) -> dict[str, Rows]:
    size = isqrt(num_cells) or _USUAL_SIZE
    return {
        "One way": drawn_maze(size, seed=1, num_doors=0),
        "Some ways": drawn_maze(size, seed=2, num_doors=size // 2),
        "Many ways": drawn_maze(size, seed=3, num_doors=3 * size),
        "Empty": [_SPACE * size] * size,
    }


def _rows_of(grid: Any, puzzle: Rows) -> Rows:
    return list(grid)


MAZE = GridKind(
    name="maze",
    title="Maze",
    plural="mazes",
    field="maze",
    style_of=lambda rows: _STYLE,
    examples=_examples,
    first="Some ways",
    read=read,
    write="\n".join,
    grid_of=list,
    rows_of=_rows_of,
    box_of=lambda rows: None,
    text_help="A line for each row: # is a wall, S the start, G the goal, o a path.",
    is_long=True,
)
