"""Grids become tokens and tokens become grids, for each kind of puzzle."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import InvalidRequest
from worker.puzzles.kinds import (
    ARC,
    KINDS,
    MAZE,
    SUDOKU,
    Maze,
    PuzzleKind,
    RawTokens,
    Sudoku,
    kind_of,
)

digits = st.integers(0, 9)


@given(st.lists(digits, min_size=81, max_size=81))
def test_sudoku_round_trip(cells: list[int]) -> None:
    """Digit d is token d + 1, the blank 0 included (T8).

    Rows, a string with 0 and a string with dots are the same puzzle.
    """
    rows = []
    for start in range(0, 81, 9):
        rows.append(tuple(cells[start : start + 9]))
    text = "".join(str(cell) for cell in cells)

    tokens = SUDOKU.encode(tuple(rows))

    assert tokens == tuple(cell + 1 for cell in cells)
    assert SUDOKU.decode(tokens) == tuple(rows)
    assert SUDOKU.encode(text) == tokens
    assert SUDOKU.encode(text.replace("0", ".")) == tokens


@given(st.lists(st.text("# SGo", min_size=30, max_size=30), min_size=30, max_size=30))
def test_maze_round_trip(rows: list[str]) -> None:
    """A maze's wall, space, start, goal and path are the tokens 1 to 5."""
    tokens = MAZE.encode(tuple(rows))

    assert tokens == tuple(1 + "# SGo".index(cell) for cell in "".join(rows))
    assert MAZE.decode(tokens) == tuple(rows)


@given(st.integers(1, 30), st.integers(1, 30), st.data())
def test_arc_round_trip(height: int, width: int, data: st.DataObject) -> None:
    """A grid of any size comes back as it was, because the crop ends at its end marks."""
    row = st.lists(digits, min_size=width, max_size=width)
    grid = tuple(tuple(data.draw(row)) for _ in range(height))

    tokens = ARC.encode(grid)

    assert len(tokens) == 900
    assert ARC.decode(tokens) == grid


def test_arc_marks() -> None:
    """Colours are the tokens 2 to 11; the end marks right of and below the grid are 1.

    The corner between the marks and all other cells are 0 (format notes section 2).
    """
    tokens = ARC.encode(((0, 9, 3), (5, 0, 0)))

    assert tokens[0:5] == (2, 11, 5, 1, 0)
    assert tokens[30:35] == (7, 2, 2, 1, 0)
    assert tokens[60:65] == (1, 1, 1, 0, 0)
    assert tokens[90:95] == (0, 0, 0, 0, 0)
    # Six colours and five end marks: no other cell is set.
    assert sum(tokens) == 2 + 11 + 5 + 7 + 2 + 2 + 5
    # A full grid leaves no cell for end marks.
    assert 1 not in ARC.encode(((4,) * 30,) * 30)


def is_coloured(corner: list[list[int]], height: int, width: int) -> bool:
    """Return whether the rectangle at the top left has only colours."""
    for line in corner[:height]:
        for token in line[:width]:
            if token < 2:
                return False
    return True


@given(st.lists(st.lists(st.integers(0, 11), min_size=6, max_size=6), min_size=6, max_size=6))
def test_arc_crop_is_the_largest_rectangle_of_colours(corner: list[list[int]]) -> None:
    """The crop is the largest rectangle of colours at the top left corner (T8).

    The oracle tries every rectangle; of two of one size the lower height wins.
    """
    tokens = [0] * 900
    for row, line in enumerate(corner):
        tokens[row * 30 : row * 30 + 6] = line
    best_height = 0
    best_width = 0
    for height in range(1, 7):
        for width in range(1, 7):
            is_larger = height * width > best_height * best_width
            if is_larger and is_coloured(corner, height, width):
                best_height = height
                best_width = width
    expected = []
    for line in corner[:best_height]:
        expected.append(tuple(token - 2 for token in line[:best_width]))

    assert ARC.decode(tokens) == tuple(expected)


def test_answers_that_are_no_cells() -> None:
    """An untrained network may answer with padding, or leave a cell blank."""
    assert SUDOKU.decode([0, 1, 2, 10] + [1] * 77)[0][:4] == (0, 0, 1, 9)
    assert MAZE.decode([0, 1, 5] + [2] * 897)[0][:4] == "?#o "
    assert ARC.decode([1] * 900) == ()


def test_blank_grids_and_vocabularies() -> None:
    """Each kind has a blank grid of its size and a vocabulary size of its own."""
    vocab_sizes = set()
    for kind in KINDS:
        tokens = kind.encode(kind.blank)
        assert len(tokens) == kind.num_cells
        assert max(tokens) < kind.vocab_size
        vocab_sizes.add(kind.vocab_size)

    assert len(vocab_sizes) == len(KINDS)


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
    """A grid of the wrong size or with wrong cells is refused; the error names the row."""
    with pytest.raises(InvalidRequest) as caught:
        kind.encode(puzzle)

    assert complaint in caught.value.message
    assert caught.value.field == "grid"


@pytest.mark.parametrize("size", [4, 6, 9, 16])
def test_sudokus_of_other_sizes(size: int) -> None:
    """A Sudoku of n rows has n + 2 tokens; one of more than 9 is written in rows alone."""
    kind = Sudoku(size)
    rows = tuple(
        tuple((row + column) % (size + 1) for column in range(size)) for row in range(size)
    )
    tokens = kind.encode(rows)
    assert kind.vocab_size == size + 2
    assert max(tokens) == size + 1
    assert kind.decode(tokens) == rows
    text = "".join(str(cell % 10) for row in rows for cell in row)
    if size <= 9:
        assert kind.encode(text) == tokens
        with pytest.raises(InvalidRequest, match="expected" if size == 9 else f"0 to {size}, got"):
            kind.encode(text[:-1] + (":" if size == 9 else str(size + 1)))
    else:
        with pytest.raises(InvalidRequest, match="expected 16 rows of 16 numbers, with 0 for a"):
            kind.encode(text)
    with pytest.raises(InvalidRequest, match=rf"grid\[0\]: expected numbers from 0 to {size}, got"):
        kind.encode(((size + 1,) * size, *rows[1:]))


def test_tokens_that_nobody_explains() -> None:
    """Raw tokens come back as they are: a field of 100 in ten rows, one of 5 in one row."""
    kind = RawTokens(294, 100)
    flat = tuple(range(194, 294))
    assert kind.encode(tuple(flat[at : at + 10] for at in range(0, 100, 10))) == flat
    assert kind.encode((flat,)) == flat
    assert kind.decode(flat) == tuple(flat[at : at + 10] for at in range(0, 100, 10))
    assert RawTokens(7, 5).decode((1, 2, 3, 4, 5)) == ((1, 2, 3, 4, 5),)
    for puzzle, complaint in (
        ((flat[1:],), "expected rows of 100 tokens in all, from 0 to 293, got 99"),
        (((294,) * 100,), "grid[0]: expected numbers from 0 to 293, got 294"),
        ("0" * 100, "expected rows of 100 tokens"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            kind.encode(puzzle)
        assert complaint in caught.value.message


@pytest.mark.parametrize(
    ("vocab_size", "num_cells", "words", "kind"),
    [
        (11, None, set(), SUDOKU),
        (6, None, set(), MAZE),
        (12, None, set(), ARC),
        (12, 900, {"arc"}, ARC),
        (12, 100, set(), Sudoku(10)),
        (6, 16, set(), Sudoku(4)),
        (6, 16, {"maze"}, Maze(4)),
        (6, 900, set(), MAZE),
        (32, 900, set(), Sudoku(30)),
        (11, 80, set(), None),
        (13, None, set(), None),
        (7, 36, set(), None),
    ],
)
def test_sizes_tell_the_kind(
    vocab_size: int, num_cells: int | None, words: set[str], kind: PuzzleKind | None
) -> None:
    """The vocabulary and the field tell the kind; a data set's name decides between two."""
    assert kind_of(vocab_size, num_cells, words) == kind
