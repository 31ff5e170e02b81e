"""Several samples of a puzzle: their tasks, and the answer among their solutions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.messages import Sample, Select, Solution, Solve
from shared.tasks.samples import Answer, Sampled, answer_of, leaders_of, tasks_of


def solution(grid: str, confidence: float = 0.5, is_valid: bool | None = None) -> Solution:
    return Solution((grid,), confidence, 4, False, is_valid)


def test_one_task_for_each_sample() -> None:
    """Each has its number; only verified ones settle; one sample is a plain task."""
    task = Solve("1", max_steps=3)
    assert tasks_of(task, Sampled()) == [task]
    assert tasks_of(task, Sampled(select="verified")) == [Solve("1", max_steps=3, settles=True)]
    assert tasks_of(task, Sampled(2, 0.5, "all", "mode", 9)) == [
        Solve("1", max_steps=3, sample=Sample(0, 9, 0.5, "all")),
        Solve("1", max_steps=3, sample=Sample(1, 9, 0.5, "all")),
    ]
    settled = tasks_of(task, Sampled(2, 0.5, select="verified", seed=9))
    assert [one.settles for one in settled] == [True, True]


def test_verified_samples_wait_for_the_first_of_their_puzzle() -> None:
    assert leaders_of(2, Sampled(3, select="verified")) == [None, 0, 0, None, 3, 3]
    assert leaders_of(2, Sampled(3, select="mode")) == [None] * 6
    assert leaders_of(2, Sampled(1, select="verified")) == [None, None]


THREE = [solution("a", 0.2), solution("b", 0.9), solution("a", 0.3), solution("c", 0.9)]
VALID = [solution("a", 0.9, False), solution("b", 0.1, True), solution("c", 0.8, True)]


@pytest.mark.parametrize(
    ("solutions", "select", "expected"),
    [
        (THREE[:1], "first", Answer(THREE[0], 0, 1, 1)),
        (THREE, "first", Answer(THREE[0], 0, 4, 2)),
        (THREE, "best_q", Answer(THREE[1], 1, 4, 1)),
        (THREE, "mode", Answer(THREE[2], 2, 4, 2)),
        # Two and two: the mean confidence decides.
        ([*THREE, solution("b", 0.1)], "mode", Answer(THREE[1], 1, 5, 2)),
        (VALID, "verified", Answer(VALID[1], 1, 3, 1)),
        ([VALID[0], None, VALID[2], None], "verified", Answer(VALID[2], 2, 2, 1)),
        ([VALID[1], None, None], "verified", Answer(VALID[1], 0, 1, 1)),
        (VALID[:1] * 2, "verified", Answer(VALID[0], 0, 2, 2, is_refused=True)),
        (
            [solution("a", 0.3, False), solution("b", 0.7, False)],
            "verified",
            Answer(solution("b", 0.7, False), 1, 2, 1, is_refused=True),
        ),
    ],
)
def test_the_answer(solutions: list[Solution | None], select: Select, expected: Answer) -> None:
    assert answer_of(solutions, select) == expected


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from((0.25, 0.5, 0.75))),
        min_size=1,
        max_size=9,
    )
)
def test_the_mode_is_the_grid_with_most_votes(drawn: list[tuple[str, float]]) -> None:
    """No other grid has more votes, nor as many with a higher mean; its surest solution is chosen."""
    solutions = [solution(grid, confidence) for grid, confidence in drawn]
    answer = answer_of(solutions, "mode")
    grids = [grid for grid, _ in drawn]

    def merit(grid: str) -> tuple[int, float]:
        own = [confidence for other, confidence in drawn if other == grid]
        return len(own), sum(own) / len(own)

    [chosen] = answer.solution.grid
    assert answer.num_votes == grids.count(str(chosen))
    assert merit(str(chosen)) == max(merit(grid) for grid in grids)
    assert answer.solution.confidence == max(c for grid, c in drawn if grid == chosen)
    assert solutions[answer.sample] == answer.solution
