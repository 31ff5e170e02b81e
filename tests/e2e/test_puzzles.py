"""A real front and a real worker serve a puzzle network: grids over HTTP."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from shared.messages import Solve
from shared.tasks.results import Solution
from tests.fixtures.e2e.dry_run import dry_run
from tests.fixtures.e2e.serving import Serving, serving
from tests.fixtures.worker.puzzle_nets import Net, write_checkpoint
from tests.fixtures.worker.stepping import solve_all
from worker.engine.runner import RunnerOptions
from worker.runners.registry import load_runner

PUZZLES = [
    "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79",
    "." * 81,
    "9" * 81,
]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sudoku")
    write_checkpoint(
        folder,
        Net(halt_max_steps=3),
        filename="step_100",
        data_path="data/sudoku-extreme-1k-aug-1000",
    )
    return folder


@pytest.fixture(scope="module")
def fleet(path: Path) -> Iterator[Serving]:
    flags = ["--model", f"sudoku={path}", "--model", "parrot=echo", "--default-model", "parrot"]
    with serving(*flags, "--max-batch-size", "2") as running:
        yield running


def solve(fleet: Serving, body: dict[str, object]) -> httpx.Response:
    return httpx.post(f"{fleet.url}/v1/puzzles/solve", json={"model": "sudoku"} | body, timeout=60)


def rows_of(puzzle: str) -> list[list[int]]:
    """Return the nine rows of a puzzle, with 0 for a blank cell."""
    digits = puzzle.replace(".", "0")
    rows = []
    for start in range(0, 81, 9):
        rows.append([int(digit) for digit in digits[start : start + 9]])
    return rows


def cells_of(solution: Solution) -> str:
    text = ""
    for row in solution.grid:
        for cell in row:
            text += str(cell)
    return text


def test_http_says_what_the_runner_says(fleet: Serving, path: Path) -> None:
    """More puzzles than the batch holds have the solutions of the runner, one at a time.

    That is so for strings and for rows.
    """
    runner = load_runner("auto", RunnerOptions(path=str(path), max_batch=1))
    expected = solve_all(runner, [Solve(puzzle) for puzzle in PUZZLES])

    answer = solve(fleet, {"grids": PUZZLES}).json()
    assert answer["model"] == "sudoku"
    assert answer["usage"]["prompt_tokens"] == 3 * 81
    for solution, of_runner in zip(answer["solutions"], expected, strict=True):
        assert solution["grid"] == cells_of(of_runner)
        assert solution["steps"] == 3
        assert solution["is_halted"] == of_runner.is_halted
        assert solution["confidence"] == pytest.approx(of_runner.confidence, abs=1e-5)

    rows = rows_of(PUZZLES[0])
    [solution] = solve(fleet, {"grid": rows, "max_steps": 5}).json()["solutions"]
    assert solution["steps"] == 5
    [solution] = solve(fleet, {"grid": rows}).json()["solutions"]
    assert solution["grid"] == [list(row) for row in expected[0].grid]


def test_the_fleet_says_what_it_serves(fleet: Serving) -> None:
    models = httpx.get(f"{fleet.url}/v1/models", timeout=60).json()["data"]
    [sudoku] = [model for model in models if model["id"] == "sudoku"]
    assert sudoku["description"].startswith("Sapient HRM for sudoku (step_100)")
    statuses = httpx.get(f"{fleet.url}/api/models/status", timeout=60).json()["models"]
    puzzles = {status["model_id"]: status.get("puzzle") for status in statuses}
    assert puzzles == {"sudoku": "sudoku", "parrot": None}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"grid": "1" * 80}, "grid"),
        ({"grid": ["#" * 30] * 30}, "grid"),
        ({"grid": "." * 81, "identifier": 3}, "identifier"),
    ],
)
def test_what_the_worker_refuses_is_a_400(
    fleet: Serving, body: dict[str, object], field: str
) -> None:
    answer = solve(fleet, body)
    assert answer.status_code == 400
    assert answer.json()["error"]["field"] == field


def test_an_arc_task_for_a_network_of_sudokus_is_a_400(fleet: Serving) -> None:
    body = {"model": "sudoku", "task_id": "007bbfb7", "test": [{"input": [[1, 2]]}]}
    answer = httpx.post(f"{fleet.url}/v1/puzzles/arc", json=body, timeout=60)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["field"] == "model"
    assert error["message"].endswith("expected a network for ARC tasks, this one is for sudoku.")


def test_text_and_puzzles_are_not_confused(fleet: Serving) -> None:
    body = {"model": "sudoku", "prompts": ["a"]}
    for refused in (
        httpx.post(f"{fleet.url}/generate", json=body, timeout=60),
        solve(fleet, {"model": "parrot", "grid": PUZZLES[0]}),
    ):
        assert refused.status_code == 400
        assert refused.json()["error"]["field"] == "model"


def test_a_dry_run_tries_a_blank_grid(path: Path) -> None:
    done = dry_run("--model-path", str(path))
    assert done.returncode == 0, done.stderr
    assert "Sapient HRM for sudoku (step_100)" in done.stdout
    assert "answered a blank grid with confidence 0." in done.stdout
