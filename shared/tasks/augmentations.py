"""Several augmentations of one ARC puzzle: the tasks that compute them, and the vote.

A network is trained with many augmentations of each task, and solves some of them better than
others. Source of the vote: the ARC evaluations of the HRM and TRM repositories.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from shared.tasks.results import Solution
from shared.tasks.specs import Augmentation, Grid, Solve


def augmented(task: Solve, task_id: str, count: int) -> list[Solve]:
    """Return a task for each of the first `count` augmentations of a puzzle."""
    tasks: list[Solve] = []
    for number in range(count):
        augmentation = Augmentation(task_id, number)
        tasks.append(msgspec.structs.replace(task, augmentation=augmentation))
    return tasks


class Attempt(NamedTuple):
    """A grid that `num_votes` augmentations agree on, and their mean confidence in it."""

    grid: Grid
    num_votes: int
    mean_confidence: float


def attempts_of(solutions: Sequence[Solution | None], most: int) -> list[Attempt]:
    """Return at most `most` different grids, those with the most votes first.

    Of grids with equally many votes the one with the higher mean confidence comes first, then the
    one that was found first. None is the solution of an augmentation that the task does not have.
    """
    confidences: dict[Grid, list[float]] = {}
    for solution in solutions:
        if solution is not None:
            confidences.setdefault(solution.grid, []).append(solution.confidence)

    attempts: list[Attempt] = []
    for grid, values in confidences.items():
        attempts.append(Attempt(grid, len(values), math.fsum(values) / len(values)))
    attempts.sort(key=lambda attempt: (attempt.num_votes, attempt.mean_confidence), reverse=True)
    return attempts[:most]
