"""The puzzle runner: segments, halting, refilling and answers, against the plain reference of one
puzzle at a time."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from shared.errors import FleetError, InvalidRequest
from shared.messages import Done, Failed, Generate, Halt, Sampling, Score, Solution, Solve
from tests.fixtures.worker.options import options_for
from tests.fixtures.worker.sapient_fixtures import (
    Net,
    Weights,
    random_weights,
    reference,
    write_checkpoint,
)
from tests.fixtures.worker.stepping import run, solve_all
from worker.engine.engine import Emission, Engine, SequenceWork
from worker.engine.runner import RunnerOptions
from worker.engine.sequence import Slice, StepResult
from worker.host.loading import warm_up
from worker.runners.echo import Echo
from worker.runners.hrm_puzzle import PuzzleRunner
from worker.runners.registry import load_runner
from worker.text.puzzles import ARC, MAZE, SUDOKU

NET = Net(halt_max_steps=5)
PUZZLES = [
    "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79",
    "." * 81,
    "123456789" * 9,
    "....8..79...419..5.6....28.7...2...64..8.3..18...6...3.98....6.6..195...53..7....",
    "9" * 40 + "." * 41,
]
Step = tuple[torch.Tensor, float, float]


def truth(
    weights: Weights, puzzle: str, segments: int = NET.halt_max_steps, identifier: int = 0
) -> list[Step]:
    """What the reference says after each segment."""
    return reference(
        weights, NET, [int(cell) + 1 for cell in puzzle.replace(".", "0")], identifier, segments
    )


def halts_at(steps: list[Step], bias: float = 0.0) -> int:
    return next(
        (at for at, (_, halt, go) in enumerate(steps, start=1) if halt > go + bias), len(steps)
    )


def undecided(weights: Weights) -> Weights:
    """The same weights with a q head that halts these puzzles at as many different segments as it
    can."""
    runs = [truth(weights, puzzle) for puzzle in PUZZLES]
    gaps = sorted(halt - go for steps in runs for _, halt, go in steps)
    between = [(low + high) / 2 for low, high in pairwise(gaps) if high - low > 0.05]
    chosen = max(between, key=lambda bias: len({halts_at(steps, bias) for steps in runs}))
    return weights | {"q_head.bias": weights["q_head.bias"] - torch.tensor([chosen, 0.0])}


@pytest.fixture(scope="module")
def weights() -> Weights:
    return undecided(random_weights(NET, seed=5))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, weights: Weights) -> Path:
    place = tmp_path_factory.mktemp("sudoku")
    write_checkpoint(place, NET, weights=weights)
    (place / "identifiers.json").write_text(json.dumps(["<blank>", "one", "two"]))
    return place


def load(path: Path, max_batch: int = 8, segments: str = "compat") -> PuzzleRunner:
    runner = load_runner("auto", options_for(path, max_batch=max_batch, segments=segments))
    assert isinstance(runner, PuzzleRunner)
    return runner


def check(solution: Solution, step: Step, steps: int) -> None:
    """The answer is what the reference says after that many segments."""
    logits, halt, go = step
    assert solution.grid == SUDOKU.decode(logits.argmax(-1).tolist())
    assert solution.confidence == pytest.approx(float(torch.tensor(halt).sigmoid()), abs=1e-4)
    assert (solution.steps, solution.is_halted) == (steps, halt > go)


@pytest.mark.parametrize("segments", ["compat", "max"])
def test_evaluation_runs_all_segments(path: Path, weights: Weights, segments: str) -> None:
    """T8, format notes section 2: as upstream evaluates, each row runs halt_max_steps whatever its
    q head says."""
    assert any(halts_at(truth(weights, puzzle)) < 5 for puzzle in PUZZLES)
    for puzzle, solution in zip(
        PUZZLES, solve_all(load(path, segments=segments), [*map(Solve, PUZZLES)]), strict=True
    ):
        check(solution, truth(weights, puzzle)[-1], 5)


class Watched:
    """A runner that notes which rows each step ran, and which of them it ended."""

    def __init__(self, runner: PuzzleRunner) -> None:
        self._runner = runner
        self.spec = runner.spec
        self.eos_ids = runner.eos_ids
        self.encode = runner.encode
        self.release = runner.release
        self.decode = runner.decode
        self.steps: list[tuple[list[str], list[str]]] = []

    def step(self, slices: Sequence[Slice]) -> list[StepResult | FleetError]:
        results = self._runner.step(slices)
        keys = [part.sequence.key for part in slices]
        self.steps.append(
            (keys, [key for key, result in zip(keys, results, strict=True) if result is not None])
        )
        return results


def test_rows_halt_and_are_refilled_independently(path: Path, weights: Weights) -> None:
    """Five puzzles in two places: each halts at its own segment, as alone, and its place is filled
    in the next step."""
    expected = [halts_at(truth(weights, puzzle)) for puzzle in PUZZLES]
    assert len(set(expected)) >= 3, "the puzzles halt alike, so this proves little"
    runner = Watched(load(path, max_batch=2, segments="q_halt"))
    tasks = [*map(Solve, PUZZLES)]
    together = solve_all(runner, tasks)
    for puzzle, solution, steps in zip(PUZZLES, together, expected, strict=True):
        check(solution, truth(weights, puzzle)[steps - 1], steps)
        assert solution.grid == solve_all(load(path, segments="q_halt"), [Solve(puzzle)])[0].grid
    assert len(runner.steps) < sum(expected) and max(len(keys) for keys, _ in runner.steps) == 2
    waiting = iter("234")
    for (keys, ended), (following, _) in pairwise(runner.steps):
        fresh = [key for key in (next(waiting, None) for _ in ended) if key]
        assert sorted(following) == sorted([*(key for key in keys if key not in ended), *fresh])


def test_batch_of_eight_equals_batch_of_one(path: Path) -> None:
    """Style 14; and the same again gives the same bits."""
    tasks = [Solve(PUZZLES[at % 5], identifier=at % 3) for at in range(8)]
    eight = solve_all(load(path), tasks)
    for one, other in zip(solve_all(load(path, max_batch=1), tasks), eight, strict=True):
        assert (one.grid, one.steps, one.is_halted) == (other.grid, other.steps, other.is_halted)
        assert one.confidence == pytest.approx(other.confidence, abs=1e-5)
    assert solve_all(load(path), tasks) == eight


@pytest.mark.parametrize(
    ("halt", "max_steps"), [("q_halt", None), ("max", 3), ("q_halt", 2), (None, 20)]
)
def test_a_request_may_choose_for_itself(
    path: Path, weights: Weights, halt: Halt | None, max_steps: int | None
) -> None:
    """Each row by its own rule in one batch; running on beyond the trained segments included."""
    tasks = [
        Solve(PUZZLES[0]),
        *(Solve(puzzle, halt=halt, max_steps=max_steps) for puzzle in PUZZLES),
    ]
    first, *others = solve_all(load(path), tasks)
    assert first.steps == 5
    for puzzle, solution in zip(PUZZLES, others, strict=True):
        steps = truth(weights, puzzle, max_steps or 5)
        stop = halts_at(steps) if halt == "q_halt" else len(steps)
        assert (solution.steps, solution.is_halted) == (
            stop,
            steps[stop - 1][1] > steps[stop - 1][2],
        )
    over = solve_all(
        load(path, segments="q_halt"), [Solve(puzzle, halt="max") for puzzle in PUZZLES]
    )
    assert {solution.steps for solution in over} == {5}


@pytest.mark.parametrize(("identifier", "number"), [(None, 0), (2, 2), ("two", 2), ("<blank>", 0)])
def test_identifiers(
    path: Path, weights: Weights, identifier: int | str | None, number: int
) -> None:
    solution = solve_all(load(path), [Solve(PUZZLES[0], identifier)])[0]
    check(solution, truth(weights, PUZZLES[0], identifier=number)[-1], 5)


@pytest.mark.parametrize(
    ("task", "field", "complaint"),
    [
        (Solve(PUZZLES[0], 3), "identifier", "expected a number from 0 to 2, got 3"),
        (Solve(PUZZLES[0], -1), "identifier", "expected a number from 0 to 2, got -1"),
        (Solve(PUZZLES[0], "three"), "identifier", "one that identifiers.json names"),
        (Solve(PUZZLES[0], max_steps=21), "max_steps", "expected 1 to 20, got 21"),
        (Solve(PUZZLES[0], max_steps=0), "max_steps", "expected 1 to 20, got 0"),
        (Solve("1"), "grid", "81 digits"),
        (Generate("1", Sampling(1, 0)), "model", "knows no text"),
        (Score("1", ("2",)), "model", "knows no text"),
    ],
)
def test_what_it_cannot_do_is_refused(
    path: Path, task: Solve | Generate | Score, field: str, complaint: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        load(path).encode(task)
    assert caught.value.field == field and complaint in caught.value.message


def test_names_without_a_list_of_names(tmp_path: Path) -> None:
    """A network without puzzle embedding knows only the blank identifier; one without the file
    knows numbers only."""
    write_checkpoint(tmp_path)
    with pytest.raises(InvalidRequest, match=r"it has no identifiers\.json"):
        load(tmp_path).encode(Solve(PUZZLES[0], "one"))
    write_checkpoint(tmp_path, Net(puzzle_ndim=0))
    assert load(tmp_path).encode(Solve(PUZZLES[0], 0)).identifier == 0
    with pytest.raises(InvalidRequest, match="expected a number from 0 to 0, got 1"):
        load(tmp_path).encode(Solve(PUZZLES[0], 1))


def test_a_model_of_text_solves_no_puzzles() -> None:
    with pytest.raises(InvalidRequest, match="solves no puzzles"):
        Echo(RunnerOptions(path="echo")).encode(Solve(PUZZLES[0]))


def test_nothing_is_kept_of_rows_that_have_left(path: Path) -> None:
    """P6: an aborted row's carry goes at once, as does that of a row that ended; the others are as
    before."""
    runner = load(path, max_batch=3)
    emissions = list[Emission]()
    engine = Engine(runner, emissions.extend)
    for key, puzzle in enumerate(PUZZLES):
        engine.submit(SequenceWork(str(key), runner.encode(Solve(puzzle)), None))
    engine.step()
    engine.abort("0")
    engine.step()
    assert sorted(runner._progress) == ["1", "2", "3"]
    while engine.has_work:
        engine.step()
    assert runner._progress == {}
    solved = {item.key: item.ended for item in emissions}
    assert sorted(solved) == ["1", "2", "3", "4"]
    for key, expected in zip(
        "1234", solve_all(load(path), [*map(Solve, PUZZLES[1:])]), strict=True
    ):
        end = solved[key]
        assert isinstance(end, Done) and (end.finish_reason, end.num_prompt_tokens) == ("solve", 81)
        assert isinstance(end.result, Solution) and end.result.grid == expected.grid


def test_a_step_that_failed_is_repeated_not_skipped(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P7 in the small: the rows of a batch that broke go on alone, by the same number of
    segments."""
    expected = solve_all(load(path), [*map(Solve, PUZZLES)])
    runner = load(path)
    logits = runner._model.logits

    def fragile(z_h: torch.Tensor) -> torch.Tensor:
        if len(z_h) > 1:
            raise RuntimeError("bad luck")
        return logits(z_h)

    monkeypatch.setattr(runner._model, "logits", fragile)
    for one, other in zip(solve_all(runner, [*map(Solve, PUZZLES)]), expected, strict=True):
        assert (one.grid, one.steps) == (other.grid, other.steps)


def test_mazes_and_arc_come_back_as_they_are_written(tmp_path: Path) -> None:
    """900 cells, in each of the two alphabets."""
    for kind, task in (
        (MAZE, Solve(("S" + "#" * 28 + "G",) * 30)),
        (ARC, Solve(((1, 2), (3, 4)), 2)),
    ):
        net = Net(vocab=kind.vocab_size, cells=900, halt_max_steps=2)
        weights = write_checkpoint(tmp_path / kind.name, net)
        runner = load(tmp_path / kind.name)
        assert (runner.spec.context_window, runner.spec.tasks) == (900, ("solve",))
        cells = list(kind.encode(task.puzzle))
        logits = reference(weights, net, cells, 2 if kind is ARC else 0, 2)[-1][0]
        assert solve_all(runner, [task])[0].grid == kind.decode(logits.argmax(-1).tolist())


def test_warm_up_and_bfloat16(path: Path) -> None:
    """`--dry-run` tries a blank grid for one segment, also in the dtype that upstream computes
    in."""
    runner = load_runner("hrm-puzzle", RunnerOptions(path=str(path), dtype="bfloat16"))
    assert warm_up(runner).startswith("answered a blank grid with confidence 0.")
    assert runner.spec.found.endswith("bfloat16")
    ends = [item.ended for item in run(runner, [runner.spec.trial], [[]])]
    assert not any(isinstance(end, Failed) for end in ends)
    assert [
        end.result.steps
        for end in ends
        if isinstance(end, Done) and isinstance(end.result, Solution)
    ] == [1]
