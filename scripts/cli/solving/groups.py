"""Groups of puzzles that are solved together, and the lines that tell of their answers."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from scripts.cli.solving.puzzle_files import Puzzle, PuzzleRecord

Group = list[PuzzleRecord]
"""Puzzles in the order of their file, all with the same identifier."""
Answer = dict[str, Any]
"""The fields of a solution, or `error` with the reason why there is none."""
Solved = tuple[Group, list[Answer]]

PUZZLE_FIELDS = ("grid", "grids", "puzzles", "identifier")
"""The fields of a request that are of its puzzles. The others are of all requests of a run."""


class Refused(Exception):
    """Raised if a group cannot be solved because of one of its puzzles. The message says why."""


def groups_of(records: Iterable[PuzzleRecord], most: int) -> Iterator[Group]:
    """Yield groups of at most `most` puzzles."""
    group: Group = []
    for record in records:
        if len(group) == most or (group and group[0].identifier != record.identifier):
            yield group
            group = []
        group.append(record)
    if group:
        yield group


def answers_of(group: Group, solve: Callable[[Group], list[Answer]]) -> list[Answer]:
    """Return an answer for each puzzle.

    A group that is refused is divided, until the puzzle at fault is alone: its answer is an error.
    """
    try:
        return solve(group)
    except Refused as refusal:
        if len(group) == 1:
            return [{"error": str(refusal)}]
    middle = len(group) // 2
    return answers_of(group[:middle], solve) + answers_of(group[middle:], solve)


def line_of(record: PuzzleRecord, answer: Answer) -> dict[str, Any]:
    """Return the line of a puzzle in the output. Fields that an answer gains are in it, too."""
    line = {"id": record.id, "puzzle": record.puzzle, **answer}
    if record.solution is not None and "grid" in answer:
        line["is_right"] = _is_same(answer["grid"], record.solution)
    if record.notes:
        line["notes"] = dict(record.notes)
    return line


def _is_same(grid: Puzzle, solution: Puzzle) -> bool:
    if isinstance(grid, str) or isinstance(solution, str):
        return _cells(grid) == _cells(solution)
    return grid == solution


def _cells(grid: Puzzle) -> str:
    """Return the cells of a grid in one string, with 0 for the blank ones of a Sudoku."""
    if isinstance(grid, str):
        return grid.replace(".", "0")
    cells = ""
    for row in grid:
        cells += "".join(map(str, row))
    return cells
