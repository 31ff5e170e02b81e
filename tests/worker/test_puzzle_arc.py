"""Augmentations of ARC tasks: their names, and how grids are turned and recoloured.

The oracle is numpy, by the formulas of the format notes.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.puzzles.arc import AS_IT_IS, GridTransform, Rows, augmentations_of, parse_name

ORACLE = [
    lambda grid: grid,
    lambda grid: np.rot90(grid, 1),
    lambda grid: np.rot90(grid, 2),
    lambda grid: np.rot90(grid, 3),
    np.fliplr,
    np.flipud,
    np.transpose,
    lambda grid: np.fliplr(np.rot90(grid, 1)),
]
INVERSE = [0, 3, 2, 1, 4, 5, 6, 7]

colour = st.integers(0, 9)
grids = st.integers(1, 6).flatmap(
    lambda width: st.lists(st.tuples(*[colour] * width), min_size=1, max_size=6).map(tuple)
)
orientations = st.integers(0, 7)
permutations = st.permutations(range(1, 10)).map(lambda others: (0, *others))


def rows_of(grid: np.ndarray) -> Rows:
    return tuple(tuple(row) for row in grid.tolist())


@given(grids, orientations, permutations)
def test_a_grid_is_augmented_as_numpy_does(
    grid: Rows, orientation: int, colours: tuple[int, ...]
) -> None:
    augmented = GridTransform(orientation, colours).apply(grid)
    assert augmented == rows_of(ORACLE[orientation](np.array(colours)[np.array(grid)]))


@given(grids, orientations, permutations)
def test_an_answer_is_undone_as_numpy_does(
    grid: Rows, orientation: int, colours: tuple[int, ...]
) -> None:
    """The answer need not be a grid that was augmented before."""
    undone = GridTransform(orientation, colours).undo(grid)
    turned = ORACLE[INVERSE[orientation]](np.array(grid))
    assert undone == rows_of(np.argsort(colours)[turned])


@given(grids, orientations, permutations)
def test_undoing_gives_the_grid_back(
    grid: Rows, orientation: int, colours: tuple[int, ...]
) -> None:
    transform = GridTransform(orientation, colours)
    assert transform.undo(transform.apply(grid)) == grid
    assert transform.apply(transform.undo(grid)) == grid


@pytest.mark.parametrize("orientation", range(8))
def test_an_answer_without_a_rectangle_stays_empty(orientation: int) -> None:
    assert GridTransform(orientation).undo(()) == ()


COLOURS = (0, 3, 1, 2, 4, 5, 6, 7, 9, 8)


@pytest.mark.parametrize(
    ("name", "task", "transform"),
    [
        ("007bbfb7", "007bbfb7", AS_IT_IS),
        ("007bbfb7_t5_0312456798", "007bbfb7", GridTransform(5, COLOURS)),
        ("007bbfb7|||t5|||0312456798", "007bbfb7", GridTransform(5, COLOURS)),
        ("a_t1_b_t0_0312456798", "a_t1_b", GridTransform(0, COLOURS)),
        ("a|||t2|||0123456789", "a", GridTransform(2)),
        # These are no names of augmented tasks.
        ("a_t8_0123456789", "a_t8_0123456789", AS_IT_IS),
        ("a_t1_0123456788", "a_t1_0123456788", AS_IT_IS),
        ("a_t1_012345678", "a_t1_012345678", AS_IT_IS),
        ("a_t1|||0123456789", "a_t1|||0123456789", AS_IT_IS),
        ("_t1_0123456789", "_t1_0123456789", AS_IT_IS),
        ("", "", AS_IT_IS),
    ],
)
def test_names(name: str, task: str, transform: GridTransform) -> None:
    assert parse_name(name) == (task, transform)


@given(
    st.sampled_from(["007bbfb7", "a_t3", "AboveBelow1"]),
    st.sampled_from(["_", "|||"]),
    orientations,
    permutations,
)
def test_names_as_builders_write_them(
    task: str, separator: str, orientation: int, colours: tuple[int, ...]
) -> None:
    name = separator.join([task, f"t{orientation}", "".join(map(str, colours))])
    assert parse_name(name) == (task, GridTransform(orientation, colours))


NAMES = [
    "<blank>",
    "abc_t1_0123456789",
    "abcd",
    "abc",
    "abc|||t2|||0312456798",
    "abcd_t3_0123456789",
    "<blank>",
    "abc_t4_0123456789",
]


@pytest.mark.parametrize(
    ("task_id", "numbers"),
    [
        ("abc", [3, 1, 4, 7]),
        ("abcd", [2, 5]),
        ("ab", []),
        ("abc_t1_0123456789", []),
        ("<blank>", []),
        ("", []),
    ],
)
def test_the_augmentations_of_a_task(task_id: str, numbers: list[int]) -> None:
    """The task as it is comes first, the others stand as in the file; no other task's is there."""
    names = [(name, number) for number, name in enumerate(NAMES) if name.startswith(task_id)]
    found = augmentations_of(task_id, names)

    assert [number for _, number in found] == numbers
    for transform, number in found:
        assert transform == parse_name(NAMES[number])[1]
