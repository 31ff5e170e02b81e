"""The puzzle runner: segments, halting, refilling and answers.

The oracle is a plain reference that solves one puzzle at a time.
"""

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from shared.errors import FleetError, InvalidRequest
from shared.messages import (
    Done,
    Failed,
    Generate,
    Halt,
    NoisyLatents,
    Sample,
    Sampling,
    Score,
    Solution,
    Solve,
)
from tests.fixtures.worker.options import options_for
from tests.fixtures.worker.puzzle_nets import (
    Net,
    Step,
    Weights,
    as_arrays,
    embedded,
    initial,
    one_segment,
    random_weights,
    read_out,
    reference,
    write_checkpoint,
)
from tests.fixtures.worker.stepping import end_of, run, solve_all
from worker.engine.engine import Emission, Engine, SequenceWork
from worker.engine.noise import fold, position_key
from worker.engine.runner import RunnerOptions
from worker.engine.sequence import Slice, StepResult
from worker.engine.tensor_noise import normal_noise
from worker.host.loading import warm_up
from worker.models import linear
from worker.native.library import library
from worker.puzzles.checks import Verdict
from worker.puzzles.kinds import ARC, MAZE, SUDOKU, Sudoku
from worker.runners.echo import Echo
from worker.runners.hrm_puzzle import PuzzleRunner
from worker.runners.registry import load_runner

NET = Net(halt_max_steps=5)
TRM = Net("trm", l_layers=2, prefix=2, halt_max_steps=5)
MIXING = Net("trm", l_layers=2, mixing=20, positions="none", h_cycles=1, halt_max_steps=3)
URM = Net("urm", l_layers=2, halt_max_steps=5)
PUZZLES = [
    "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79",
    "." * 81,
    "123456789" * 9,
    "....8..79...419..5.6....28.7...2...64..8.3..18...6...3.98....6.6..195...53..7....",
    "9" * 40 + "." * 41,
]


def truth(
    weights: Weights, puzzle: str, segments: int = NET.halt_max_steps, identifier: int = 0
) -> list[Step]:
    """Return the reference's logits and q values after each segment."""
    # Digit d is token d + 1; a blank cell is the digit 0.
    tokens = [int(cell) + 1 for cell in puzzle.replace(".", "0")]
    return reference(weights, NET, tokens, identifier, segments)


def halts_at(steps: list[Step], bias: float = 0.0) -> int:
    """Return the first segment whose q head says halt, or the last segment."""
    for segment, (_, halt, go) in enumerate(steps, start=1):
        if halt > go + bias:
            return segment
    return len(steps)


def undecided(weights: Weights) -> Weights:
    """Return the weights with another bias of the q head.

    With that bias the puzzles halt at as many different segments as possible.
    """
    runs = []
    gaps = []
    for puzzle in PUZZLES:
        steps = truth(weights, puzzle)
        runs.append(steps)
        for _, halt, go in steps:
            gaps.append(halt - go)

    best_bias = 0.0
    most_segments = 0
    for low, high in pairwise(sorted(gaps)):
        # A narrower gap could be crossed by rounding.
        if high - low <= 0.05:
            continue
        bias = (low + high) / 2
        segments = {halts_at(steps, bias) for steps in runs}
        if len(segments) > most_segments:
            best_bias = bias
            most_segments = len(segments)

    return weights | {"q_head.bias": weights["q_head.bias"] - torch.tensor([best_bias, 0.0])}


@pytest.fixture(scope="module")
def weights() -> Weights:
    return undecided(random_weights(NET, seed=5))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, weights: Weights) -> Path:
    directory = tmp_path_factory.mktemp("sudoku")
    write_checkpoint(directory, NET, weights=weights)
    (directory / "identifiers.json").write_text(json.dumps(["<blank>", "one", "two"]))
    return directory


def load(
    path: Path, max_batch: int = 8, segments: str = "compat", device: str = "cpu"
) -> PuzzleRunner:
    options = options_for(path, max_batch=max_batch, segments=segments, device=device)
    runner = load_runner("auto", options)
    assert isinstance(runner, PuzzleRunner)
    return runner


def solve_each(puzzles: Sequence[str]) -> list[Solve]:
    """Return one plain task for each puzzle."""
    return [Solve(puzzle) for puzzle in puzzles]


def check(solution: Solution, step: Step, steps: int) -> None:
    """Assert that the answer is the reference's after `steps` segments."""
    logits, halt, go = step
    assert solution.grid == SUDOKU.decode(logits.argmax(-1).tolist())
    assert solution.confidence == pytest.approx(float(torch.tensor(halt).sigmoid()), abs=1e-4)
    assert (solution.steps, solution.is_halted) == (steps, halt > go)


@pytest.mark.parametrize("segments", ["compat", "max"])
def test_evaluation_runs_all_segments(
    path: Path, weights: Weights, segments: str, device: str
) -> None:
    """Each row runs halt_max_steps segments, no matter what its q head says.

    Upstream evaluates in this way (T8, format notes section 2).
    """
    assert any(halts_at(truth(weights, puzzle)) < 5 for puzzle in PUZZLES)

    solutions = solve_all(load(path, segments=segments, device=device), solve_each(PUZZLES))

    for puzzle, solution in zip(PUZZLES, solutions, strict=True):
        check(solution, truth(weights, puzzle)[-1], steps=5)


class Watched:
    """A runner that records each step: the keys of its rows, and those of the rows that ended."""

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
        keys = []
        ended = []
        for part, result in zip(slices, results, strict=True):
            keys.append(part.sequence.key)
            if result is not None:
                ended.append(part.sequence.key)
        self.steps.append((keys, ended))
        return results


def test_rows_halt_and_are_refilled_independently(path: Path, weights: Weights) -> None:
    """Five puzzles share a batch of two rows, and each halts at its own segment, as it does alone.

    The next puzzle takes the free row in the next step.
    """
    expected = [halts_at(truth(weights, puzzle)) for puzzle in PUZZLES]
    assert len(set(expected)) >= 3, "the puzzles halt alike, so this proves little"

    runner = Watched(load(path, max_batch=2, segments="q_halt"))
    together = solve_all(runner, solve_each(PUZZLES))

    for puzzle, solution, steps in zip(PUZZLES, together, expected, strict=True):
        check(solution, truth(weights, puzzle)[steps - 1], steps)
        [alone] = solve_all(load(path, segments="q_halt"), [Solve(puzzle)])
        assert solution.grid == alone.grid

    assert len(runner.steps) < sum(expected)
    assert max(len(keys) for keys, _ in runner.steps) == 2
    # Rows 0 and 1 start at once; these three wait for a row to end.
    waiting = ["2", "3", "4"]
    for (keys, ended), (next_keys, _) in pairwise(runner.steps):
        expected_keys = []
        for key in keys:
            if key not in ended:
                expected_keys.append(key)
            elif waiting:
                expected_keys.append(waiting.pop(0))
        assert sorted(next_keys) == sorted(expected_keys)


def test_batch_of_eight_equals_batch_of_one(path: Path) -> None:
    """A batch gives each puzzle the answer that it gets alone, and a second run the same bits."""
    tasks = [Solve(PUZZLES[row % 5], identifier=row % 3) for row in range(8)]

    eight = solve_all(load(path), tasks)
    single = solve_all(load(path, max_batch=1), tasks)

    for alone, batched in zip(single, eight, strict=True):
        assert alone.grid == batched.grid
        assert alone.steps == batched.steps
        assert alone.is_halted == batched.is_halted
        assert alone.confidence == pytest.approx(batched.confidence, abs=1e-5)
    assert solve_all(load(path), tasks) == eight


@pytest.mark.parametrize(
    ("halt", "max_steps"), [("q_halt", None), ("max", 3), ("q_halt", 2), (None, 20)]
)
def test_a_request_may_choose_for_itself(
    path: Path, weights: Weights, halt: Halt | None, max_steps: int | None
) -> None:
    """Each row of a batch stops by its own request's rule.

    A request may also run more segments than the network was trained with.
    """
    tasks = [Solve(PUZZLES[0])]
    for puzzle in PUZZLES:
        tasks.append(Solve(puzzle, halt=halt, max_steps=max_steps))

    first, *others = solve_all(load(path), tasks)

    assert first.steps == 5
    for puzzle, solution in zip(PUZZLES, others, strict=True):
        steps = truth(weights, puzzle, segments=max_steps or 5)
        stop = len(steps)
        if halt == "q_halt":
            stop = halts_at(steps)
        _, q_halt, q_continue = steps[stop - 1]
        assert solution.steps == stop
        assert solution.is_halted == (q_halt > q_continue)

    # The request outranks the runner's own option, too.
    tasks = [Solve(puzzle, halt="max") for puzzle in PUZZLES]
    for solution in solve_all(load(path, segments="q_halt"), tasks):
        assert solution.steps == 5


@pytest.mark.parametrize(("identifier", "number"), [(None, 0), (2, 2), ("two", 2), ("<blank>", 0)])
def test_identifiers(
    path: Path, weights: Weights, identifier: int | str | None, number: int
) -> None:
    """An identifier is a row of the network's table, by number or by name; 0 is the default."""
    [solution] = solve_all(load(path), [Solve(PUZZLES[0], identifier)])

    check(solution, truth(weights, PUZZLES[0], identifier=number)[-1], steps=5)


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
    """A request that the network cannot serve is refused; the error names the field."""
    with pytest.raises(InvalidRequest) as caught:
        load(path).encode(task)

    assert caught.value.field == field
    assert complaint in caught.value.message


def test_names_without_a_list_of_names(tmp_path: Path) -> None:
    """Without identifiers.json a network knows numbers only.

    Without a puzzle embedding it knows only the blank identifier.
    """
    write_checkpoint(tmp_path)
    with pytest.raises(InvalidRequest, match=r"it has no identifiers\.json"):
        load(tmp_path).encode(Solve(PUZZLES[0], "one"))

    write_checkpoint(tmp_path, Net(puzzle_ndim=0))
    assert load(tmp_path).encode(Solve(PUZZLES[0], 0)).identifier == 0
    with pytest.raises(InvalidRequest, match="expected a number from 0 to 0, got 1"):
        load(tmp_path).encode(Solve(PUZZLES[0], 1))


def test_a_model_of_text_solves_no_puzzles() -> None:
    """A puzzle for a model of texts is refused."""
    with pytest.raises(InvalidRequest, match="solves no puzzles"):
        Echo(RunnerOptions(path="echo")).encode(Solve(PUZZLES[0]))


def test_nothing_is_kept_of_rows_that_have_left(path: Path) -> None:
    """The carry of a row that ended or was aborted is dropped at once (P6).

    The other rows are solved as if nothing had happened.
    """
    runner = load(path, max_batch=3)
    emissions: list[Emission] = []
    engine = Engine(runner, emissions.extend)
    for number, puzzle in enumerate(PUZZLES):
        engine.submit(SequenceWork(str(number), runner.encode(Solve(puzzle)), sampling=None))

    engine.step()
    engine.abort("0")
    engine.step()
    assert sorted(runner.progress) == ["1", "2", "3"]
    while engine.has_work:
        engine.step()
    assert runner.progress == {}

    ends = {emission.key: emission.ended for emission in emissions}
    assert sorted(ends) == ["1", "2", "3", "4"]
    expected_solutions = solve_all(load(path), solve_each(PUZZLES[1:]))
    for key, expected in zip("1234", expected_solutions, strict=True):
        end = ends[key]
        assert isinstance(end, Done)
        assert end.finish_reason == "solve"
        assert end.num_prompt_tokens == 81
        assert isinstance(end.result, Solution)
        assert end.result.grid == expected.grid


def test_a_step_that_failed_is_repeated_not_skipped(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows of a batch that failed go on one by one (P7).

    Each runs the same number of segments as in a batch that did not fail.
    """
    expected = solve_all(load(path), solve_each(PUZZLES))
    runner = load(path)
    logits = runner.model.logits

    def fragile(z_h: torch.Tensor) -> torch.Tensor:
        if len(z_h) > 1:
            raise RuntimeError("bad luck")
        return logits(z_h)

    monkeypatch.setattr(runner.model, "logits", fragile)
    solutions = solve_all(runner, solve_each(PUZZLES))

    for solution, whole in zip(solutions, expected, strict=True):
        assert solution.grid == whole.grid
        assert solution.steps == whole.steps


def noisy(number: int, latents: NoisyLatents = "high", noise: float = 0.7) -> Solve:
    return Solve(PUZZLES[0], sample=Sample(number, 5, noise, latents))


@pytest.mark.parametrize("latents", ["high", "all"])
def test_noise_is_that_of_the_formula(
    path: Path, weights: Weights, latents: NoisyLatents, device: str
) -> None:
    """Noise is added before each segment, to z_H or to both; the oracle adds it by hand.

    Sample 0 has none.
    """
    arrays = as_arrays(weights)
    tokens = [int(cell) + 1 for cell in PUZZLES[0].replace(".", "0")]
    x = embedded(arrays, NET, tokens, 0)
    states = initial(arrays, NET)
    for segment in range(NET.halt_max_steps):
        key = position_key(fold(5, 3), segment)
        size = x.size if latents == "high" else 2 * x.size
        noise = 0.7 * normal_noise(key, size, torch.device("cpu")).numpy()
        for number, part in enumerate(noise.reshape(-1, *x.shape)):
            states[number] = states[number] + part
        states = one_segment(arrays, NET, x, states)

    runner = load(path, device=device)
    plain, sample = solve_all(runner, [noisy(0, latents), noisy(3, latents)])

    check(sample, read_out(arrays, NET, states), steps=5)
    check(plain, truth(weights, PUZZLES[0])[-1], steps=5)
    assert sample.confidence != pytest.approx(plain.confidence, abs=1e-3)


def test_a_sample_is_the_same_in_any_batch_and_twice(path: Path) -> None:
    """The same sample has the same bits alone, among others, and on another worker.

    Samples differ from each other.
    """
    tasks = [noisy(number) for number in range(6)]
    together = solve_all(load(path), tasks)
    again = solve_all(load(path, max_batch=3), tasks[::-1])[::-1]
    alone = [solve_all(load(path, max_batch=1), [task])[0] for task in tasks]
    assert together == again == alone
    assert len({solution.confidence for solution in together}) == 6


def test_a_valid_solution_settles_and_no_other_does(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of a verified sample says whether the others are needless."""
    runner = load(path)
    tasks = [Solve(PUZZLES[0], settles=True), Solve(PUZZLES[0])]
    for is_valid in (True, False):
        verdict = Verdict(is_valid)
        monkeypatch.setattr(Sudoku, "check", lambda *_, verdict=verdict: verdict)
        emissions = run(runner, tasks, [[], []])
        ends = [emission.ended for emission in emissions if emission.ended is not None]
        assert [end.settles for end in ends if isinstance(end, Done)] == [is_valid, False]
        for end in ends:
            assert end_of(end, Solution).is_valid is is_valid


def test_segments_are_shown_where_they_are_asked_for(path: Path, weights: Weights) -> None:
    """Each segment shows the reference's grid and q values, and the cells that it changed.

    The last segment shows them, too, before the end. The answer is the same as without.
    """
    tasks = [Solve(PUZZLES[0], shows_segments=True), Solve(PUZZLES[1], max_steps=2)]
    emissions = run(load(path), tasks, [[], []])

    shown = [emission for emission in emissions if emission.progress is not None]
    assert [emission.key for emission in shown] == ["0"] * NET.halt_max_steps
    before = SUDOKU.decode(SUDOKU.encode(PUZZLES[0]))
    for number, (emission, step) in enumerate(
        zip(shown, truth(weights, PUZZLES[0]), strict=True), start=1
    ):
        assert emission.progress is not None
        assert (emission.progress.done, emission.progress.total) == (number, NET.halt_max_steps)
        segment = emission.progress.segment
        assert segment is not None
        logits, q_halt, q_continue = step
        tokens = logits.argmax(-1).tolist()
        assert segment.grid == SUDOKU.decode(tokens)
        assert segment.q_halt == pytest.approx(q_halt, abs=1e-3)
        assert segment.q_continue == pytest.approx(q_continue, abs=1e-3)
        changed = set()
        for row in range(9):
            for column in range(9):
                # Padding and blank are both 0 in a grid.
                if segment.grid[row][column] != before[row][column]:
                    changed.add((row, column))
        assert changed <= set(segment.changed)
        for row, column in set(segment.changed) - changed:
            assert segment.grid[row][column] == 0
        before = segment.grid
    assert (shown[-1].ended is None) == (NET.halt_max_steps != len(shown))

    [plain] = solve_all(load(path), [Solve(PUZZLES[0])])
    ends = {emission.key: emission.ended for emission in emissions if emission.ended is not None}
    end = ends["0"]
    assert isinstance(end, Done)
    assert end.result == plain


def test_what_cannot_be_checked_cannot_be_verified(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, Net(vocab=12, halt_max_steps=1))
    with pytest.raises(InvalidRequest, match="select: this model's solutions cannot be checked"):
        load(tmp_path).encode(Solve(((1,),), settles=True))


@pytest.mark.parametrize("net", [TRM, MIXING, URM], ids=["trm", "trm, mixing", "urm"])
def test_other_families_are_solved_and_halt_over_zero(tmp_path: Path, net: Net) -> None:
    """A TRM whose continue logit is never large runs on until q_halt is over zero.

    HRM's rule would halt its rows at once.
    """
    weights = random_weights(net, seed=2)
    weights["q_head.weight"][1] = 0
    steps = truth_of(weights, net)
    halts = sorted(halt for _, halt, _ in steps)
    # The largest q_halt is over zero, all others are not.
    bias = -(halts[-1] + halts[-2]) / 2
    weights["q_head.bias"] = weights["q_head.bias"] + torch.tensor([bias, 0.0])
    weights["q_head.bias"][1] = -1e3
    write_checkpoint(tmp_path, net, weights=weights)
    expected = next(at for at, step in enumerate(truth_of(weights, net), 1) if step[1] > 0)

    [by_rule, all_steps] = solve_all(
        load(tmp_path), [Solve(PUZZLES[0], halt="q_halt"), Solve(PUZZLES[0])]
    )

    assert by_rule.steps == expected
    assert by_rule.is_halted
    assert all_steps.steps == net.halt_max_steps
    logits, q_halt, _ = truth_of(weights, net)[expected - 1]
    assert by_rule.confidence == pytest.approx(1 / (1 + math.exp(-q_halt)), abs=1e-3)
    if not net.mixing:  # random ones amplify the rounding of fp32
        assert by_rule.grid == SUDOKU.decode(logits.argmax(-1).tolist())


def truth_of(weights: Weights, net: Net) -> list[Step]:
    tokens = [int(cell) + 1 for cell in PUZZLES[0].replace(".", "0")]
    return reference(weights, net, tokens, 0, net.halt_max_steps)


@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_layers_are_packed_or_rounded(
    path: Path, weights: Weights, quantize: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "MIN_PANEL_WEIGHTS", 0)
    monkeypatch.setattr(linear, "MIN_INT8_WEIGHTS", 0)
    runner = load_runner("hrm-puzzle", RunnerOptions(path=str(path), quantize=quantize))
    assert isinstance(runner, PuzzleRunner)
    kinds = {type(layer) for layer in runner.model.modules()}
    if library() is not None or quantize == "int8":
        assert torch.nn.Linear not in kinds
    assert runner.spec.found.endswith("int8 linear layers" if quantize == "int8" else "float32")

    tolerance = 1e-4 if quantize == "none" else 0.15
    for puzzle, solution in zip(PUZZLES, solve_all(runner, solve_each(PUZZLES)), strict=True):
        logits, q_halt, _ = truth(weights, puzzle)[-1]
        assert solution.confidence == pytest.approx(1 / (1 + math.exp(-q_halt)), abs=tolerance)
        if quantize == "none":
            assert solution.grid == SUDOKU.decode(logits.argmax(-1).tolist())


def test_mazes_and_arc_come_back_as_they_are_written(tmp_path: Path) -> None:
    """A maze comes back as characters and an ARC grid as numbers; both have 900 cells."""
    maze = Solve(("S" + "#" * 28 + "G",) * 30)
    arc = Solve(((1, 2), (3, 4)), identifier=2)
    for kind, task, identifier in ((MAZE, maze, 0), (ARC, arc, 2)):
        net = Net(vocab=kind.vocab_size, cells=900, halt_max_steps=2)
        weights = write_checkpoint(tmp_path / kind.name, net)
        runner = load(tmp_path / kind.name)
        assert runner.spec.context_window == 900
        assert runner.spec.tasks == ("solve",)

        [solution] = solve_all(runner, [task])

        cells = list(kind.encode(task.puzzle))
        logits, _, _ = reference(weights, net, cells, identifier, segments=2)[-1]
        assert solution.grid == kind.decode(logits.argmax(-1).tolist())


def test_warm_up_and_bfloat16(path: Path) -> None:
    """`--dry-run` solves a blank grid in one segment, here in bfloat16, as upstream computes."""
    runner = load_runner("hrm-puzzle", RunnerOptions(path=str(path), dtype="bfloat16"))
    assert warm_up(runner).startswith("answered a blank grid with confidence 0.")
    assert runner.spec.found.endswith("bfloat16")

    ends = []
    for emission in run(runner, [runner.spec.trial], [[]]):
        assert not isinstance(emission.ended, Failed)
        if isinstance(emission.ended, Done):
            ends.append(emission.ended)

    assert len(ends) == 1
    assert end_of(ends[0], Solution).steps == 1
