"""The puzzles of the web app: their texts, their examples, and the models that solve them."""

import json
import uuid
from collections import deque
from typing import Any, cast

import httpx
import pytest

from scripts.ui import client as client_module
from scripts.ui.board import Rows
from scripts.ui.puzzles import sudoku
from scripts.ui.puzzles.arc_task import (
    EXAMPLES,
    GridPlace,
    grid_at,
    places,
    put_grid,
    read_task,
    resized,
    write_task,
)
from scripts.ui.puzzles.maze import MAZE, drawn_maze
from scripts.ui.puzzles.solving import SolvingState
from scripts.ui.run import Run
from tests.fixtures.e2e.app_pages import page_of


def shortest_way(rows: Rows) -> int | None:
    """Return the number of steps from the start to the goal, None if there is no way."""
    size = len(rows)
    where = {sign: divmod("".join(rows).index(sign), size) for sign in "SG"}
    steps = {where["S"]: 0}
    queue = deque(steps)
    while queue:
        row, column = queue.popleft()
        for next_row, next_column in (
            (row + 1, column),
            (row - 1, column),
            (row, column + 1),
            (row, column - 1),
        ):
            is_inside = 0 <= next_row < size and 0 <= next_column < size
            if not is_inside or (next_row, next_column) in steps:
                continue
            if rows[next_row][next_column] != "#":
                steps[next_row, next_column] = steps[row, column] + 1
                queue.append((next_row, next_column))
    return steps.get(where["G"])


@pytest.mark.parametrize("size", [5, 8, 9, 30])
def test_mazes_have_a_way(size: int) -> None:
    closed = drawn_maze(size, seed=1, num_doors=0)
    assert [len(row) for row in closed] == [size] * size
    assert set(closed[0]) == {"#"}
    assert "".join(closed).count("S") == "".join(closed).count("G") == 1
    way = shortest_way(closed)
    assert way is not None
    assert drawn_maze(size, seed=1, num_doors=0) == closed

    opened = drawn_maze(size, seed=1, num_doors=size**2)
    shorter = shortest_way(opened)
    assert shorter is not None
    assert shorter <= way


def test_examples_are_puzzles_of_their_kinds() -> None:
    for size, texts in sudoku.EXAMPLES.items():
        assert sudoku.BOXES[size][0] * sudoku.BOXES[size][1] == size
        for text in texts.values():
            assert len(sudoku.read(text)) == size
    for name, rows in MAZE.examples(64).items():
        assert len(rows) == 8
        assert MAZE.read(MAZE.write(rows)) == rows, name
    for _, task in EXAMPLES.values():
        assert read_task(write_task(task)) == task


@pytest.mark.parametrize("text", ["5" * 16, "", "123"])
def test_other_texts_are_no_sudokus(text: str) -> None:
    with pytest.raises(ValueError, match="81 or 36 or 16"):
        sudoku.read(text)


@pytest.mark.parametrize("text", ["", "##\n##", "###\n###", "# #\n#x#\n###", "#" * 31])
def test_other_texts_are_no_mazes(text: str) -> None:
    with pytest.raises(ValueError, match="as many rows as columns"):
        MAZE.read(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3",
        "[]",
        "{}",
        '{"test": []}',
        '{"test": [{"input": []}]}',
        '{"test": [{"input": [[1], [1, 2]]}]}',
        '{"test": [{"input": [[10]]}]}',
        '{"test": [{"input": [[true]]}]}',
        '{"test": [{"input": "12"}]}',
        '{"train": [{"input": [[1]]}], "test": [{"input": [[1]]}]}',
        json.dumps({"test": [{"input": [[0]] * 31}]}),
    ],
)
def test_other_texts_are_no_arc_tasks(text: str) -> None:
    with pytest.raises(ValueError, match="An ARC task is JSON like"):
        read_task(text)


def test_grids_of_a_task_are_changed_one_by_one() -> None:
    task = read_task(
        '{"train": [{"input": [[1]], "output": [[2, 3]]}], "test": [{"input": [[4]]}]}'
    )
    assert [place.title for place in places(task)] == [
        "Demonstration 1, input",
        "Demonstration 1, output",
        "Test 1, input",
        "Test 1, output",
    ]
    output = GridPlace("test", 0, "output")
    assert grid_at(task, output) == []
    put_grid(task, output, resized(["123", "456"], height=3, width=2))
    assert grid_at(task, output) == ["12", "45", "00"]
    assert read_task(write_task(task))["test"] == [
        {"input": [[4]], "output": [[1, 2], [4, 5], [0, 0]]}
    ]


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Return the models that the server of the app serves, to be filled in."""
    served: list[dict[str, Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/api/models/status":
            return httpx.Response(200, json={"models": served})
        return httpx.Response(200, json={"ready": True})

    http = httpx.Client(transport=httpx.MockTransport(answer))
    monkeypatch.setattr(client_module, "_HTTP", http)
    # What one server serves is kept for a while, so each test has another.
    monkeypatch.setenv("API_URL", f"http://front-{uuid.uuid4()}")
    return served


def served(name: str, puzzle: str | None = None) -> dict[str, Any]:
    model = {"model_id": name, "description": name, "tasks": ["solve"], "context_window": 36}
    return model if puzzle is None else {**model, "puzzle": puzzle}


@pytest.mark.parametrize(
    ("kind", "words"),
    [("Maze", "solves mazes"), ("ARC", "solves ARC tasks")],
)
def test_a_kind_that_no_model_solves_can_be_drawn(
    models: list[dict[str, Any]], kind: str, words: str
) -> None:
    """The page says so in words, and one can draw and write all the same."""
    models.append(served("small", "sudoku"))
    page = page_of("puzzles", kind=kind)
    [info] = page.info
    assert words in info.value
    [solve] = [button for button in page.button if button.label == "Solve"]
    assert solve.disabled
    assert page.get("bidi_component")

    page.button_group(key="kind").set_value("Sudoku").run()
    assert not page.info
    [solve] = [button for button in page.button if button.label == "Solve"]
    assert not solve.disabled


def test_a_model_of_another_kind_is_not_sent_puzzles(models: list[dict[str, Any]]) -> None:
    models += [served("small", "sudoku"), served("paths", "maze"), served("unknown")]
    page = page_of("puzzles", kind="Maze")
    assert not page.info
    page.selectbox(key="solve_model").set_value("small").run()
    [info] = page.info
    assert "small" in info.value
    # A model that is not loaded yet does not tell its kind.
    page.selectbox(key="solve_model").set_value("unknown").run()
    assert not page.info


def test_a_drawing_that_comes_again_ends_nothing() -> None:
    """A browser may send the drawing once more with or behind the click on *Solve*."""
    state = SolvingState("1...")
    state.take_drawing("12..")
    run = cast("Run", object())
    state.run = run
    state.take_drawing("12..")
    assert state.run is run

    state.take_drawing("13..")
    assert state.run is None
    assert state.text == "13.."
