"""The augmentations of an ARC puzzle: their tasks, and the vote over their solutions."""

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from shared.messages import Augmentation, Solution, Solve
from shared.tasks.augmentations import Attempt, attempts_of, augmented


def solution(colour: int, confidence: float) -> Solution:
    return Solution(((colour,),), confidence, steps=4, is_halted=False)


def test_one_task_for_each_augmentation() -> None:
    puzzle = ((1, 2),)
    assert augmented(Solve(puzzle, max_steps=3), "abc", 2) == [
        Solve(puzzle, max_steps=3, augmentation=Augmentation("abc", 0)),
        Solve(puzzle, max_steps=3, augmentation=Augmentation("abc", 1)),
    ]


def test_votes_come_before_confidence() -> None:
    solutions = [solution(1, 0.9), None, solution(2, 0.25), solution(2, 0.5), solution(3, 0.95)]
    expected = [Attempt(((2,),), 2, 0.375), Attempt(((3,),), 1, 0.95), Attempt(((1,),), 1, 0.9)]
    assert attempts_of(solutions, most=10) == expected
    assert attempts_of(solutions, most=2) == expected[:2]


def test_of_equal_grids_the_first_that_was_found_comes_first() -> None:
    solutions = [solution(2, 0.5), solution(1, 0.5)]
    assert [attempt.grid for attempt in attempts_of(solutions, most=2)] == [((2,),), ((1,),)]


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from((0.125, 0.25, 0.5, 0.75))),
        min_size=1,
        max_size=30,
    ),
    st.integers(1, 5),
)
def test_the_vote_equals_a_count_by_hand(drawn: list[tuple[int, float]], most: int) -> None:
    """For each attempt its grid is counted anew, and no grid that is left out beats it."""
    attempts = attempts_of([solution(colour, value) for colour, value in drawn], most)

    def merit(colour: int) -> tuple[int, Fraction]:
        own = [Fraction(value) for other, value in drawn if other == colour]
        return len(own), sum(own, Fraction(0)) / len(own)

    left = {colour for colour, _ in drawn}
    assert len(attempts) == min(most, len(left))
    for attempt in attempts:
        [[colour]] = attempt.grid
        assert isinstance(colour, int)
        num_votes, mean = merit(colour)
        assert attempt.num_votes == num_votes
        assert abs(attempt.mean_confidence - float(mean)) < 1e-12
        assert merit(colour) == max(merit(other) for other in left)
        left.remove(colour)
