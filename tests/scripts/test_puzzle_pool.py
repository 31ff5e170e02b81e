"""Pools come back from their file, and images of puzzles are puzzles on the same side."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from scripts.train.puzzle_pool import PoolSettings, PuzzleArrays, arrays_of, images, load_pool
from scripts.train.sudoku_puzzles import (
    SIZES,
    count_solutions,
    held_out,
    is_held_out,
    training_stream,
)


def some_puzzles(size: int) -> PuzzleArrays:
    stream = itertools.islice(training_stream(size, 0), 3)
    return arrays_of(list(itertools.chain.from_iterable(stream)) + held_out(size, 5))


def test_tokens_are_digits_and_one() -> None:
    (puzzle,) = held_out(6, 1)
    arrays = arrays_of([puzzle])
    assert arrays.inputs.tolist() == [[given + 1 for given in puzzle.givens]]
    assert arrays.labels.tolist() == [[digit + 1 for digit in puzzle.solution]]


@pytest.mark.parametrize("size", SIZES)
def test_images_have_the_solution_of_their_puzzle_and_its_side(size: int) -> None:
    puzzles = some_puzzles(size)
    rng = np.random.default_rng(0)
    distinct = set()
    for _ in range(4):
        shown = images(puzzles, size, rng)
        for row, inputs in enumerate(shown.inputs):
            labels = shown.labels[row]
            givens = (inputs - 1).tolist()
            assert np.all((inputs == labels) | (inputs == 1))
            assert count_solutions(size, (labels - 1).tolist()) == 1
            assert count_solutions(size, givens) == 1
            assert is_held_out(size, givens) == is_held_out(size, puzzles.inputs[row] - 1)
            distinct.add((row, tuple(givens)))
    assert len(distinct) > 3 * len(puzzles)


@pytest.mark.parametrize(("size", "is_square"), [(4, True), (6, False)])
def test_grids_are_transposed_where_boxes_are_square(size: int, is_square: bool) -> None:
    # Row 0 alone is given: it stays a row, or becomes a column.
    cells = np.ones((200, size**2), dtype=np.int64)
    cells[:, :size] = np.arange(2, size + 2)
    shown = images(PuzzleArrays(cells, cells), size, np.random.default_rng(0))
    grids = shown.inputs.reshape(-1, size, size)
    num_columns = int((grids > 1).all(axis=1).any(axis=1).sum())
    num_rows = int((grids > 1).all(axis=2).any(axis=1).sum())
    assert num_rows + num_columns == 200
    assert (num_columns > 50) == is_square
    assert (num_columns == 0) != is_square


def test_all_orders_of_rows_are_shown() -> None:
    cells = np.repeat(np.arange(1, 7), 6)[None].repeat(3000, axis=0)
    shown = images(PuzzleArrays(cells, cells), 6, np.random.default_rng(0))
    # Token 1 stays, and tells where row 0 went.
    places = (shown.inputs.reshape(-1, 6, 6)[:, :, 0] == 1).argmax(1)
    counts = np.bincount(places, minlength=6)
    assert counts.min() > 400


def test_a_pool_is_generated_once(tmp_path: Path) -> None:
    settings = PoolSettings(size=4, num_grids=7, num_held_out=5)
    pool = load_pool(settings, tmp_path, num_processes=1)
    assert len(pool.held_out) == 5
    assert 7 < len(pool.training) <= 42
    (file,) = tmp_path.iterdir()
    written = file.stat().st_mtime_ns

    again = load_pool(settings, tmp_path, num_processes=1)
    assert file.stat().st_mtime_ns == written
    assert np.array_equal(again.training.inputs, pool.training.inputs)
    assert np.array_equal(again.held_out.labels, pool.held_out.labels)
    assert (
        load_pool(PoolSettings(4, 3, 5), tmp_path, num_processes=1).training.inputs.shape[1] == 16
    )
    assert len(list(tmp_path.iterdir())) == 2
