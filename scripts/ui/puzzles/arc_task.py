"""An ARC task as text: demonstrations and tests, in the form of ARC's own files."""

import json
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from scripts.ui.board import Rows

Task = dict[str, list[dict[str, Any]]]
"""`train` and `test`: pairs of an `input` and an `output`, which a test need not have."""
Part = Literal["train", "test"]
Side = Literal["input", "output"]
_MOST_SIZE = 30
_EXPECTED = (
    'An ARC task is JSON like {"train": [{"input": [[0, 1]], "output": [[1, 0]]}], '
    '"test": [{"input": [[2, 0]]}]}'
)


class GridPlace(NamedTuple):
    """The place of a grid in a task: a side of the pair with this number, from 0, of a part."""

    part: Part
    number: int
    side: Side

    @property
    def title(self) -> str:
        name = "Demonstration" if self.part == "train" else "Test"
        return f"{name} {self.number + 1}, {self.side}"


def read_task(text: str) -> Task:
    """Return the task of a text. Raise ValueError, in words for people, for a text without one."""
    try:
        value = json.loads(text)
        task: Task = {}
        for part in ("train", "test"):
            task[part] = [_pair(pair, part) for pair in value.get(part, [])]
    except (ValueError, TypeError, AttributeError, KeyError):
        raise ValueError(
            f"{_EXPECTED}, with grids of 1 to {_MOST_SIZE} rows of equal length and numbers from 0 "
            "to 9."
        ) from None
    if not task["test"]:
        raise ValueError(f"{_EXPECTED}. This one has no test.")
    return task


def _pair(value: dict[str, Any], part: str) -> dict[str, Any]:
    pair = {"input": _checked(value["input"])}
    if part == "train" or value.get("output") is not None:
        pair["output"] = _checked(value["output"])
    return pair


def _checked(grid: Any) -> list[list[int]]:
    """Return a grid. Raise ValueError for anything else."""
    width = len(grid[0]) if grid else 0
    is_grid = isinstance(grid, list) and 0 < len(grid) <= _MOST_SIZE and 0 < width <= _MOST_SIZE
    for row in grid:
        is_grid = is_grid and isinstance(row, list) and len(row) == width
        for cell in row:
            is_grid = is_grid and type(cell) is int and 0 <= cell <= 9
    if not is_grid:
        raise ValueError
    checked: list[list[int]] = grid
    return checked


def write_task(task: Task) -> str:
    """Return the text of a task, a line for each pair."""
    parts = []
    for part, pairs in task.items():
        lines = ",\n".join(json.dumps(pair) for pair in pairs)
        parts.append(f'"{part}": [\n{lines}]')
    return "{" + ",\n".join(parts) + "}"


def places(task: Task) -> list[GridPlace]:
    """Return the places of all grids of a task, also those of outputs that are not known."""
    found: list[GridPlace] = []
    parts: tuple[Part, ...] = ("train", "test")
    sides: tuple[Side, ...] = ("input", "output")
    for part in parts:
        for number in range(len(task[part])):
            for side in sides:
                found.append(GridPlace(part, number, side))
    return found


def grid_at(task: Task, place: GridPlace) -> Rows:
    """Return the rows of a grid, none for an output that is not known."""
    grid = task[place.part][place.number].get(place.side)
    return rows_of(grid) if grid else []


def put_grid(task: Task, place: GridPlace, rows: Rows) -> None:
    """Put a grid into a task."""
    task[place.part][place.number][place.side] = grid_of(rows)


def resized(rows: Rows, height: int, width: int) -> Rows:
    """Return a grid of another size: cut off, or filled up with the colour 0."""
    fitted = []
    for row in range(height):
        line = rows[row] if row < len(rows) else ""
        fitted.append(line[:width].ljust(width, "0"))
    return fitted


def rows_of(grid: list[list[int]]) -> Rows:
    return ["".join(map(str, row)) for row in grid]


def grid_of(rows: Rows) -> list[list[int]]:
    return [[int(cell) for cell in row] for row in rows]


def _task_of(inputs: list[list[str]], rule: Callable[[Rows], Rows]) -> Task:
    """Return the task of a rule. The last input is the test."""
    pairs = []
    for rows in inputs:
        pairs.append({"input": grid_of(rows), "output": grid_of(rule(rows))})
    return {"train": pairs[:-1], "test": pairs[-1:]}


def _copies_of_itself(rows: Rows) -> Rows:
    """Return a grid of grids: the same one where it has a colour, an empty one elsewhere."""
    made = []
    for line in rows:
        for inner in rows:
            made.append("".join(inner if cell != "0" else "0" * len(inner) for cell in line))
    return made


def _mirrored(rows: Rows) -> Rows:
    return [row[::-1] for row in rows]


def _transposed(rows: Rows) -> Rows:
    return ["".join(column) for column in zip(*rows, strict=True)]


EXAMPLES: dict[str, tuple[str, Task]] = {
    "Copies of itself": (
        "007bbfb7",
        _task_of(
            [
                ["077", "777", "077"],
                ["404", "000", "040"],
                ["000", "002", "202"],
                ["660", "600", "066"],
                ["707", "707", "770"],
            ],
            _copies_of_itself,
        ),
    ),
    "Mirrored": (
        "67a3c6ac",
        _task_of(
            [["1120", "0313", "2221"], ["53", "08"], ["40040", "44090", "00004", "61116"]],
            _mirrored,
        ),
    ),
    "Rows to columns": (
        "74dd1130",
        _task_of([["123", "405", "660"], ["90", "27"], ["8180", "0318", "5500"]], _transposed),
    ),
}
"""Tasks by their names, each with an id. A network knows a task only by the id of its training."""
