"""The augmentations of ARC tasks: the names that data sets give them, and how grids are turned.

An augmented task is the task in another orientation, with its colours permuted. Source of the names
and of the orientations: the dataset builders of the HRM and TRM repositories.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

Rows = tuple[tuple[int, ...], ...]
"""The rows of an ARC grid, each with one colour a cell."""

# HRM joins the parts of a name with `_`, TRM with `|||`.
_AUGMENTED = re.compile(r"(.+)(_|\|\|\|)t([0-7])\2([0-9]{10})", re.DOTALL)
_COLOURS = tuple(range(10))
# The name of row 0 and of gaps, which belong to no task and were never trained.
_BLANK = "<blank>"


def _identity(grid: Rows) -> Rows:
    return grid


def _transpose(grid: Rows) -> Rows:
    return tuple(zip(*grid, strict=True))


def _flip_columns(grid: Rows) -> Rows:
    return tuple(row[::-1] for row in grid)


def _flip_rows(grid: Rows) -> Rows:
    return grid[::-1]


def _rotate_left(grid: Rows) -> Rows:
    return _flip_rows(_transpose(grid))


def _rotate_half(grid: Rows) -> Rows:
    return _flip_rows(_flip_columns(grid))


def _rotate_right(grid: Rows) -> Rows:
    return _flip_columns(_transpose(grid))


def _transpose_back(grid: Rows) -> Rows:
    """Return the grid mirrored at its other diagonal."""
    return _rotate_half(_transpose(grid))


_TURNS: tuple[Callable[[Rows], Rows], ...] = (
    _identity,
    _rotate_left,
    _rotate_half,
    _rotate_right,
    _flip_columns,
    _flip_rows,
    _transpose,
    _transpose_back,
)
"""The eight symmetries of a square, by their numbers in names."""

_INVERSE = (0, 3, 2, 1, 4, 5, 6, 7)
"""The number of the symmetry that undoes each."""


@dataclass(frozen=True)
class GridTransform:
    """An orientation, by its number, and the new colour of each colour."""

    orientation: int = 0
    colours: tuple[int, ...] = _COLOURS

    def apply(self, grid: Rows) -> Rows:
        """Return the grid as the network was trained with it."""
        return _TURNS[self.orientation](_recoloured(grid, self.colours))

    def undo(self, grid: Rows) -> Rows:
        """Return the grid in the orientation and the colours of the task itself."""
        colours = tuple(self.colours.index(colour) for colour in _COLOURS)
        return _recoloured(_TURNS[_INVERSE[self.orientation]](grid), colours)


AS_IT_IS = GridTransform()


def _recoloured(grid: Rows, colours: tuple[int, ...]) -> Rows:
    return tuple(tuple(colours[cell] for cell in row) for row in grid)


def parse_name(name: str) -> tuple[str, GridTransform]:
    """Return the task that an identifier's name belongs to, and how its grids are transformed.

    A name that does not end as those of augmented tasks do is a task's own.
    """
    match = _AUGMENTED.fullmatch(name)
    if match is None:
        return name, AS_IT_IS
    colours = tuple(map(int, match[4]))
    if sorted(colours) != list(_COLOURS):
        return name, AS_IT_IS
    return match[1], GridTransform(int(match[3]), colours)


def augmentations_of(
    task_id: str, names: Iterable[tuple[str, int]]
) -> tuple[tuple[GridTransform, int], ...]:
    """Return the augmentations of a task, each with the number of its identifier.

    `names` are those of identifiers, with their numbers. The task as it is comes first, then the
    augmentations in the order of the names, which is that in which the data set's builder has drawn
    them. So the first ones are a random choice, and the same for every reader of the names.
    """
    as_it_is: list[tuple[GridTransform, int]] = []
    others: list[tuple[GridTransform, int]] = []
    for name, number in names:
        task, transform = parse_name(name)
        if task != task_id or task == _BLANK:
            continue
        if name == task_id:
            as_it_is.append((transform, number))
        else:
            others.append((transform, number))
    return (*as_it_is, *others)
