"""The puzzle networks that ship with the project solve Sudokus that their training never saw."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from scripts.train.sudoku_puzzles import Puzzle, held_out
from shared.messages import Solution
from shared.tasks.samples import Sampled
from worker.llm import LLM

MODELS = Path(__file__).parents[2] / "models"
COUNT = 200


@pytest.fixture(scope="module")
def puzzles() -> list[Puzzle]:
    return held_out(6, COUNT, seed=18)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(MODELS / "sample-trm-sudoku-6x6", max_batch_size=64, threads=1) as loaded:
        yield loaded


def texts_of(puzzles: Sequence[Puzzle]) -> list[str]:
    return [puzzle.text for puzzle in puzzles]


def is_right(solution: Solution, puzzle: Puzzle) -> bool:
    cells = tuple(int(cell) for row in solution.grid for cell in row)
    return cells == tuple(puzzle.solution)


def test_it_solves_held_out_puzzles(llm: LLM, puzzles: list[Puzzle]) -> None:
    """At least 98 of 100 are right with halting, which takes hardly more than one segment each.

    The rules judge each answer as the only solution of the puzzle does.
    """
    solutions = llm.solve(texts_of(puzzles), halt="q_halt")

    right = [is_right(*pair) for pair in zip(solutions, puzzles, strict=True)]
    assert sum(right) >= 0.98 * COUNT
    assert [solution.is_valid for solution in solutions] == right
    assert sum(solution.steps for solution in solutions) < 1.2 * COUNT


def test_an_hrm_solves_small_ones() -> None:
    """All are right after two segments, and after as many as q_halt and q_continue ask for."""
    puzzles = held_out(4, COUNT, seed=18)
    with LLM(MODELS / "sample-hrm-sudoku-4x4", max_batch_size=64, threads=1) as hrm:
        two_segments = hrm.solve(texts_of(puzzles), max_steps=2)
        halting = hrm.solve(texts_of(puzzles), halt="q_halt")

    for solutions in (two_segments, halting):
        right = [is_right(*pair) for pair in zip(solutions, puzzles, strict=True)]
        assert sum(right) >= 0.99 * COUNT
    assert 1 < sum(solution.steps for solution in halting) / COUNT < 12


def test_verified_samples_leave_nothing_unsolved(llm: LLM, puzzles: list[Puzzle]) -> None:
    sampled = Sampled(8, noise=1.0, select="verified", seed=1)
    answers = llm.solve_sampled(texts_of(puzzles), sampled, halt="q_halt")

    for answer, puzzle in zip(answers, puzzles, strict=True):
        assert is_right(answer.solution, puzzle)
    run = [answer.num_run for answer in answers]
    assert set(run) <= {1, 8}
    assert run.count(8) < 0.05 * COUNT


def test_confidence_tells_right_from_wrong(llm: LLM, puzzles: list[Puzzle]) -> None:
    """After one segment the surest half of the answers has no fewer right ones than the other."""
    solutions = llm.solve(texts_of(puzzles), max_steps=1)

    judged = sorted(
        (solution.confidence, is_right(solution, puzzle))
        for solution, puzzle in zip(solutions, puzzles, strict=True)
    )
    unsure = sum(right for _, right in judged[: COUNT // 2])
    sure = sum(right for _, right in judged[COUNT // 2 :])
    assert sure == COUNT // 2
    assert unsure <= sure
