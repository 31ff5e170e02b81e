"""Several samples of one puzzle: the tasks that compute them, and the answer among their solutions.

A recurrent network that fails at a puzzle may solve it from a slightly different state. Source: PTRM
(arXiv 2605.19943).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from shared.tasks.results import Solution
from shared.tasks.specs import Grid, NoisyLatents, Sample, Select, Solve


@dataclass(frozen=True)
class Sampled:
    """The samples of a puzzle: their number, their noise, and which of them is the answer.

    `noise` is a standard deviation, `seed` the seed of all samples.
    """

    count: int = 1
    noise: float = 0.0
    latents: NoisyLatents = "high"
    select: Select = "first"
    seed: int = 0

    def fault(self) -> tuple[str, str] | None:
        """Return the field of a request that does not fit the others, and what is expected there."""
        if self.count > 1 and not self.noise:
            return "noise", "expected more than 0, as all samples would be equal"
        if self.count > 1 and self.select == "first":
            return "samples", "expected 1, as the first of them is asked for"
        if self.count == 1 and self.noise:
            return "samples", "expected more than 1, as the first has no noise"
        return None


ONE_SAMPLE = Sampled()


def usual_select(count: int) -> Select:
    """Return the rule of a request that names none."""
    return "first" if count == 1 else "best_q"


def tasks_of(task: Solve, sampled: Sampled) -> list[Solve]:
    """Return a task for each sample of a puzzle."""
    settles = sampled.select == "verified"
    if sampled.count == 1:
        return [msgspec.structs.replace(task, settles=settles)]
    tasks: list[Solve] = []
    for number in range(sampled.count):
        sample = Sample(number, sampled.seed, sampled.noise, sampled.latents)
        tasks.append(msgspec.structs.replace(task, sample=sample, settles=settles))
    return tasks


def leaders_of(num_puzzles: int, sampled: Sampled) -> list[int | None]:
    """Return for each task of so many puzzles the index of the one that it waits for.

    Where solutions are verified, all samples of a puzzle wait for its first. Else none waits.
    """
    leaders: list[int | None] = [None] * (num_puzzles * sampled.count)
    if sampled.select != "verified":
        return leaders
    for first in range(0, len(leaders), sampled.count):
        for index in range(first + 1, first + sampled.count):
            leaders[index] = first
    return leaders


class Answer(NamedTuple):
    """The answer among the samples of a puzzle.

    `sample` is the number of the chosen one, `num_run` counts the samples that were computed, and
    `num_votes` those with the same grid. `is_refused` holds where solutions had to be verified and
    none is valid: then `solution` is the one that the network is surest of.
    """

    solution: Solution
    sample: int
    num_run: int
    num_votes: int
    is_refused: bool = False


def answer_of(solutions: Sequence[Solution | None], select: Select) -> Answer:
    """Return the answer among the solutions of all samples, in order. None is a needless one."""
    done: list[tuple[int, Solution]] = []
    for number, solution in enumerate(solutions):
        if solution is not None:
            done.append((number, solution))
    votes = Counter(solution.grid for _, solution in done)

    number, solution = done[0]
    is_refused = False
    if select == "best_q":
        number, solution = _surest(done)
    elif select == "mode":
        number, solution = _commonest(done, votes)
    elif select == "verified":
        valid = [item for item in done if item[1].is_valid]
        is_refused = not valid
        number, solution = valid[0] if valid else _surest(done)
    return Answer(solution, number, len(done), votes[solution.grid], is_refused)


def _surest(done: Sequence[tuple[int, Solution]]) -> tuple[int, Solution]:
    """Return the solution with the highest confidence, the first of equal ones."""
    return max(done, key=lambda item: (item[1].confidence, -item[0]))


def _commonest(
    done: Sequence[tuple[int, Solution]], votes: Mapping[Grid, int]
) -> tuple[int, Solution]:
    """Return the surest solution of the commonest grid.

    Of grids with equally many votes it is the one with the higher mean confidence, then the first.
    """
    sums: dict[Grid, float] = {}
    for _, solution in done:
        sums[solution.grid] = sums.get(solution.grid, 0.0) + solution.confidence
    best = max(votes, key=lambda grid: (votes[grid], sums[grid]))
    return _surest([item for item in done if item[1].grid == best])
