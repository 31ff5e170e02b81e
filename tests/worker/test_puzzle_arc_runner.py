"""ARC tasks in the puzzle runner: augmented, solved, undone, and voted on.

The oracle does the same by hand, with numpy and a plain reference of the network.
"""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from shared.errors import InvalidRequest
from shared.messages import SKIPPED, Augmentation, Done, Solution, Solve
from shared.tasks.augmentations import Attempt, attempts_of, augmented
from tests.fixtures.worker.arc_nets import (
    ALIKE,
    NUM_AUGMENTED,
    TASK,
    arc_net,
    identifiers,
    write_arc,
)
from tests.fixtures.worker.puzzle_nets import Net, Weights, reference, write_checkpoint
from tests.fixtures.worker.stepping import run, solve_all
from worker.engine.runner import RunnerOptions
from worker.runners.hrm_puzzle import PuzzleRunner
from worker.runners.registry import load_runner

Array = npt.NDArray[np.int64]
Rows = tuple[tuple[int, ...], ...]
NET = arc_net()
GRIDS: list[Rows] = [((1, 2, 3), (4, 5, 6)), ((7, 0), (0, 7)), ((9, 1, 0, 2),)]
HRM = Net(
    "hrm", vocab=12, cells=900, h_layers=1, h_cycles=1, l_cycles=1, halt_max_steps=2, identifiers=25
)


def load(path: Path, max_batch: int = 4) -> PuzzleRunner:
    runner = load_runner("auto", RunnerOptions(path=str(path), max_batch=max_batch))
    assert isinstance(runner, PuzzleRunner)
    return runner


def turned(grid: Array, number: int) -> Array:
    if number < 4:
        return np.rot90(grid, number)
    if number == 4:
        return np.fliplr(grid)
    if number == 5:
        return np.flipud(grid)
    if number == 6:
        return grid.T
    return np.fliplr(np.rot90(grid, 1))


def tokens_of(grid: Array) -> list[int]:
    """Return the field of a grid: colours begin at 2, with 1 behind its last row and column."""
    field = np.zeros((31, 31), dtype=np.int64)
    height, width = grid.shape
    field[height, :width] = 1
    field[:height, width] = 1
    field[:height, :width] = grid + 2
    return [int(token) for token in field[:30, :30].flatten()]


def cropped(field: Array) -> Array:
    """Return the largest rectangle of colours from the top left, by trying all."""
    best = field[:0, :0]
    for height in range(1, 31):
        for width in range(1, 31):
            part = field[:height, :width]
            if (part >= 2).all() and part.size > best.size:
                best = part
    return best - 2


def parts_of(name: str) -> tuple[int, list[int]]:
    """Return the orientation and the colours of an identifier's name."""
    words = name.replace("|||", "_").split("_")
    if len(words) == 1:
        return 0, list(range(10))
    return int(words[1][1:]), [int(digit) for digit in words[2]]


def by_hand(weights: Weights, net: Net, name: str, number: int, grid: Rows) -> tuple[Rows, float]:
    """Return the solution under the identifier with this name and number, and its confidence."""
    orientation, colours = parts_of(name)
    augmented_grid = turned(np.array(colours)[np.array(grid)], orientation)
    steps = reference(weights, net, tokens_of(augmented_grid), number, net.halt_max_steps)
    logits, q_halt, _ = steps[-1]
    answer = cropped(logits.argmax(-1).reshape(30, 30))

    inverse = [0, 3, 2, 1, 4, 5, 6, 7][orientation]
    undone = np.argsort(colours)[turned(answer, inverse)]
    return tuple(tuple(row) for row in undone.tolist()), float(1 / (1 + np.exp(-q_halt)))


def vote_by_hand(weights: Weights, net: Net, names: list[str], grid: Rows) -> list[Attempt]:
    """Return all grids of the task, by their votes and their mean confidence."""
    found: dict[Rows, list[float]] = {}
    for number, name in enumerate(names):
        if name == TASK or name.startswith((f"{TASK}_", f"{TASK}|||")):
            solution, confidence = by_hand(weights, net, name, number, grid)
            found.setdefault(solution, []).append(confidence)
    attempts = []
    for solution, confidences in found.items():
        attempts.append(Attempt(solution, len(confidences), float(np.mean(confidences))))
    return sorted(attempts, key=lambda attempt: attempt[1:], reverse=True)


@pytest.mark.parametrize("separator", ["_", "|||"])
@pytest.mark.parametrize("net", [NET, HRM], ids=["trm", "hrm"])
def test_the_vote_is_that_of_a_count_by_hand(tmp_path: Path, net: Net, separator: str) -> None:
    weights = write_arc(tmp_path, separator, net)
    runner = load(tmp_path)

    most_votes = []
    for grid in GRIDS:
        solutions = solve_all(runner, augmented(Solve(grid), TASK, NUM_AUGMENTED + 1))
        attempts = attempts_of(solutions, most=100)
        expected = vote_by_hand(weights, net, identifiers(separator), grid)

        assert [attempt[:2] for attempt in attempts] == [one[:2] for one in expected]
        for attempt, one in zip(attempts, expected, strict=True):
            assert attempt.mean_confidence == pytest.approx(one.mean_confidence, abs=1e-4)
        most_votes.append(expected[0].num_votes)
    assert len(set(most_votes)) > 1, "every vote is alike, so this proves little"


def test_an_augmentation_is_the_same_alone_and_by_its_identifier(tmp_path: Path) -> None:
    """The number counts from the task as it is; no number is lost or there twice."""
    write_arc(tmp_path)
    runner = load(tmp_path)
    names = [name for name in identifiers("|||") if name.split("|||")[0] == TASK]
    rows = []
    for number in range(len(names)):
        encoded = runner.encode(Solve(GRIDS[0], augmentation=Augmentation(TASK, number)))
        rows.append(encoded.identifier)
    assert rows == [identifiers("|||").index(name) for name in names]

    together = solve_all(runner, augmented(Solve(GRIDS[0]), TASK, 6))
    for number, solution in enumerate(together):
        task = Solve(GRIDS[0], augmentation=Augmentation(TASK, number))
        [alone] = solve_all(load(tmp_path, max_batch=1), [task])
        assert solution.grid == alone.grid
    [as_it_is] = solve_all(runner, [Solve(GRIDS[0], identifier=TASK)])
    assert together[0].grid == as_it_is.grid


def test_halting_and_steps_are_those_of_any_puzzle(tmp_path: Path) -> None:
    write_arc(tmp_path)
    tasks = augmented(Solve(GRIDS[0], max_steps=5, halt="max"), TASK, 2)
    for solution in solve_all(load(tmp_path), tasks):
        assert solution.steps == 5


def test_an_augmentation_that_the_task_does_not_have_costs_nothing(tmp_path: Path) -> None:
    write_arc(tmp_path)
    runner = load(tmp_path)
    past = Solve(GRIDS[0], augmentation=Augmentation(TASK, NUM_AUGMENTED + 1), max_steps=1)
    encoded = runner.encode(past)
    assert encoded.answer == SKIPPED
    assert encoded.num_prompt_tokens == 0

    [emission] = run(runner, [Solve(GRIDS[0], augmentation=Augmentation(TASK, 0))], [()])
    assert isinstance(emission.ended, Done)
    assert isinstance(emission.ended.result, Solution)


def test_what_it_cannot_do_is_refused(tmp_path: Path) -> None:
    """A task that it does not know, a network without names, and one for other puzzles."""
    write_arc(tmp_path / "arc")
    runner = load(tmp_path / "arc")
    for task_id in ("007", f"{TASK}b", f"{TASK}|||t0|||0123456789", "<blank>"):
        problem = refusal(runner, task_id)
        assert problem.field == "task_id"
        assert "was trained with" in problem.message
    assert runner.encode(Solve(((1,),), augmentation=Augmentation(ALIKE, 0))).identifier == 1

    (tmp_path / "arc" / "identifiers.json").unlink()
    problem = refusal(load(tmp_path / "arc"), TASK)
    assert problem.field == "task_id"
    assert "identifiers.json" in problem.message

    write_checkpoint(tmp_path / "sudoku", Net())
    (tmp_path / "sudoku" / "identifiers.json").write_text(json.dumps(["<blank>", TASK, "b"]))
    problem = refusal(load(tmp_path / "sudoku"), TASK)
    assert problem.field == "model"
    assert "this one is for sudoku" in problem.message


def refusal(runner: PuzzleRunner, task_id: str) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        runner.encode(Solve(((1,),), augmentation=Augmentation(task_id, 0)))
    return caught.value
