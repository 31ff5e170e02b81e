"""Grids as tokens and tokens as grids, for each kind of puzzle."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import InvalidRequest
from worker.text.puzzles import ARC, KINDS, MAZE, SUDOKU, PuzzleKind

digits = st.integers(0, 9)


@given(st.lists(digits, min_size=81, max_size=81))
def test_sudoku_round_trip(cells: list[int]) -> None:
    """T8: digit d is token d + 1, blank included; rows, and strings with 0 or dots, are the same
    puzzle."""
    rows = tuple(tuple(cells[start : start + 9]) for start in range(0, 81, 9))
    tokens = SUDOKU.encode(rows)
    assert tokens == tuple(cell + 1 for cell in cells)
    assert SUDOKU.decode(tokens) == rows
    text = "".join(map(str, cells))
    assert SUDOKU.encode(text) == SUDOKU.encode(text.replace("0", ".")) == tokens


@given(st.lists(st.text("# SGo", min_size=30, max_size=30), min_size=30, max_size=30))
def test_maze_round_trip(rows: list[str]) -> None:
    tokens = MAZE.encode(tuple(rows))
    assert tokens == tuple(1 + "# SGo".index(cell) for cell in "".join(rows))
    assert MAZE.decode(tokens) == tuple(rows)


@given(st.integers(1, 30), st.integers(1, 30), st.data())
def test_arc_round_trip(height: int, width: int, data: st.DataObject) -> None:
    """A grid of any size is back as it was: its end marks are what the crop ends at."""
    row = st.lists(digits, min_size=width, max_size=width).map(tuple)
    grid = tuple(data.draw(row) for _ in range(height))
    tokens = ARC.encode(grid)
    assert len(tokens) == 900
    assert ARC.decode(tokens) == grid


def test_arc_marks() -> None:
    """Format notes section 2: colours are 2 to 11, ends are 1 below and to the right, the corner
    and the rest 0."""
    lines = [ARC.encode(((0, 9, 3), (5, 0, 0)))[start : start + 30] for start in range(0, 900, 30)]
    assert [line[:5] for line in lines[:4]] == [
        (2, 11, 5, 1, 0),
        (7, 2, 2, 1, 0),
        (1, 1, 1, 0, 0),
        (0, 0, 0, 0, 0),
    ]
    assert sum(map(sum, lines)) == 2 + 11 + 5 + 7 + 2 + 2 + 5
    assert 1 not in ARC.encode(((4,) * 30,) * 30)


@given(st.lists(st.lists(st.integers(0, 11), min_size=6, max_size=6), min_size=6, max_size=6))
def test_arc_crop_is_the_largest_rectangle_of_colours(corner: list[list[int]]) -> None:
    """T8: against every rectangle from the top left corner, one by one."""
    tokens = [0] * 900
    for at, line in enumerate(corner):
        tokens[at * 30 : at * 30 + 6] = line
    sizes = [
        (height * width, -height)
        for height in range(1, 7)
        for width in range(1, 7)
        if all(cell >= 2 for line in corner[:height] for cell in line[:width])
    ]
    area, height = max(sizes, default=(0, 0))
    grid = ARC.decode(tokens)
    assert len(grid) == -height
    assert grid == tuple(
        tuple(cell - 2 for cell in line[: area // -height]) for line in corner[:-height]
    )


def test_answers_that_are_no_cells() -> None:
    """An untrained network may answer with padding, or leave a cell blank."""
    assert SUDOKU.decode([0, 1, 2, 10] + [1] * 77)[0][:4] == (0, 0, 1, 9)
    assert MAZE.decode([0, 1, 5] + [2] * 897)[0][:4] == "?#o "
    assert ARC.decode([1] * 900) == ()


def test_blank_grids_and_vocabularies() -> None:
    for kind in KINDS:
        tokens = kind.encode(kind.blank)
        assert len(tokens) == kind.num_cells
        assert max(tokens) < kind.vocab_size
    assert len({kind.vocab_size for kind in KINDS}) == len(KINDS)


NINE = ((0,) * 9,) * 9
WALLS = ("#" * 30,) * 30


@pytest.mark.parametrize(
    ("kind", "puzzle", "complaint"),
    [
        (SUDOKU, "1" * 80, "grid: expected 9 rows of 9 numbers"),
        (SUDOKU, "1" * 80 + "x", "grid: expected 9 rows"),
        (SUDOKU, "1" * 80 + "²", "grid: expected 9 rows"),
        (SUDOKU, "-" + "1" * 80, "grid: expected 9 rows"),
        (SUDOKU, (), "grid: expected 9 rows"),
        (SUDOKU, NINE[:8], "grid: expected 9 rows"),
        (SUDOKU, (*NINE[:8], (0,) * 8), "grid: expected 9 rows"),
        (SUDOKU, (*NINE[:8], "000000000"), "grid: expected 9 rows"),
        (
            SUDOKU,
            (*NINE[:8], (0, 0, 10, 0, 0, 0, 0, 0, -1)),
            "grid[8]: expected numbers from 0 to 9, got 10",
        ),
        (MAZE, "#" * 900, "grid: expected 30 strings of 30 characters"),
        (MAZE, WALLS[:29], "grid: expected 30 strings"),
        (MAZE, (*WALLS[:29], "#" * 31), "grid: expected 30 strings"),
        (MAZE, (*WALLS[:29], (1,) * 30), "grid: expected 30 strings"),
        (
            MAZE,
            (*WALLS[:29], "#" * 29 + "g"),
            "grid[29]: expected characters out of '# SGo', got 'g'",
        ),
        (ARC, "0", "grid: expected 1 to 30 rows"),
        (ARC, (), "grid: expected 1 to 30 rows"),
        (ARC, ((),), "grid: expected 1 to 30 rows"),
        (ARC, ((0,),) * 31, "grid: expected 1 to 30 rows"),
        (ARC, ((0,) * 31,), "grid: expected 1 to 30 rows"),
        (ARC, ((0, 1), (0,)), "grid: expected 1 to 30 rows of equal length"),
        (ARC, ((0, 1), (0, -1)), "grid[1]: expected numbers from 0 to 9, got -1"),
    ],
)
def test_what_is_no_such_puzzle_is_refused(kind: PuzzleKind, puzzle: Any, complaint: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        kind.encode(puzzle)
    assert complaint in caught.value.message
    assert caught.value.field == "grid"
