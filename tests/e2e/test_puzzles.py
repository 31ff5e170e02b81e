"""A puzzle network served as a person would: a real front, a real worker, grids over HTTP."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from shared.messages import Solve
from tests.fixtures.e2e.dry_run import dry_run
from tests.fixtures.e2e.serving import Serving, serving
from tests.fixtures.worker.sapient_fixtures import Net, write_checkpoint
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
    place = tmp_path_factory.mktemp("sudoku")
    write_checkpoint(
        place,
        Net(halt_max_steps=3),
        filename="step_100",
        data_path="data/sudoku-extreme-1k-aug-1000",
    )
    return place


@pytest.fixture(scope="module")
def fleet(path: Path) -> Iterator[Serving]:
    flags = (
        "--model",
        f"sudoku={path}",
        "--model",
        "parrot=echo",
        "--default-model",
        "parrot",
        "--max-batch-size",
        "2",
    )
    with serving(*flags) as running:
        yield running


def solve(fleet: Serving, body: dict[str, object]) -> httpx.Response:
    return httpx.post(f"{fleet.url}/v1/puzzles/solve", json={"model": "sudoku"} | body, timeout=60)


def test_http_says_what_the_runner_says(fleet: Serving, path: Path) -> None:
    """More puzzles than places, as strings and as rows, equal the runner alone, one at a time."""
    runner = load_runner("auto", RunnerOptions(path=str(path), max_batch=1))
    expected = solve_all(runner, [*map(Solve, PUZZLES)])
    texts = solve(fleet, {"grids": PUZZLES}).json()
    assert (texts["model"], texts["usage"]["prompt_tokens"]) == ("sudoku", 3 * 81)
    for got, solution in zip(texts["solutions"], expected, strict=True):
        assert got["grid"] == "".join(str(cell) for row in solution.grid for cell in row)
        assert (got["steps"], got["is_halted"]) == (3, solution.is_halted)
        assert got["confidence"] == pytest.approx(solution.confidence, abs=1e-5)
    rows = [
        [int(cell) for cell in PUZZLES[0].replace(".", "0")][start : start + 9]
        for start in range(0, 81, 9)
    ]
    [answer] = solve(fleet, {"grid": rows, "max_steps": 5}).json()["solutions"]
    assert answer["steps"] == 5
    [answer] = solve(fleet, {"grid": rows}).json()["solutions"]
    assert answer["grid"] == [list(row) for row in expected[0].grid]


def test_the_fleet_says_what_it_serves(fleet: Serving) -> None:
    found = {
        model["id"]: model["description"]
        for model in httpx.get(f"{fleet.url}/v1/models").json()["data"]
    }
    assert found["sudoku"].startswith("Sapient HRM for sudoku (step_100)")


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
    assert (answer.status_code, answer.json()["error"]["field"]) == (400, field)


def test_text_and_puzzles_are_not_confused(fleet: Serving) -> None:
    refused = httpx.post(
        f"{fleet.url}/generate", json={"model": "sudoku", "prompts": ["a"]}, timeout=60
    )
    assert (refused.status_code, refused.json()["error"]["field"]) == (400, "model")
    refused = solve(fleet, {"model": "parrot", "grid": PUZZLES[0]})
    assert (refused.status_code, refused.json()["error"]["field"]) == (400, "model")


def test_a_dry_run_tries_a_blank_grid(path: Path) -> None:
    done = dry_run("--model-path", str(path))
    assert done.returncode == 0, done.stderr
    assert "Sapient HRM for sudoku (step_100)" in done.stdout
    assert "answered a blank grid with confidence 0." in done.stdout
