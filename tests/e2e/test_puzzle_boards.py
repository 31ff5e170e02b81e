"""The boards of the web app in a browser: what a person draws is sent, and what comes is drawn.

The fleet has tiny random networks. The answers of the API are what the boards must show.
"""

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from playwright.async_api import Locator, Page, expect

from scripts.ui.puzzles.maze import drawn_maze
from tests.fixtures.browser import DESKTOP, PHONE, expect_no_overflow, opened
from tests.fixtures.e2e.drawn_puzzles import MAZE_ROWS, puzzle_flags
from tests.fixtures.e2e.serving import Serving, serving
from tests.fixtures.polling import until
from tests.fixtures.redis_server import free_port

TOLERATED = (
    "Password field is not contained in a form",
    "Failed to load resource: the server responded with a status of 404",
)

# In one call for a whole board, so that no part of it is of another.
_ROWS = """grids => grids
    .flatMap((grid) => [...grid.querySelectorAll("[role=row]")])
    .map((row) => [...row.querySelectorAll(".cell")].map((cell) => cell.dataset.sign).join(""))"""
_LABELS = 'cells => cells.map((cell) => cell.getAttribute("aria-label"))'


@pytest.fixture(scope="module")
def app_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def fleet(app_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    flags = puzzle_flags(tmp_path_factory.mktemp("puzzles"))
    flags += ["--threads", "1", "--ui", "--ui-port", str(app_port)]
    with serving(*flags, "--default-model", "maze") as running:
        yield running


async def expect_rows(grid: Locator, rows: list[str]) -> None:
    """Wait until a board shows these rows of signs.

    One look would not do: Streamlit may be putting a new board in the place of the last just then.
    """

    async def are_shown() -> bool:
        shown: list[str] = await grid.evaluate_all(_ROWS)
        return shown == rows

    await until(are_shown, f"the board shows {rows}")


async def expect_changed(grid: Locator, labels: set[str]) -> None:
    """Wait until the changed cells of a board are those with these labels, up to the sign."""

    async def are_shown() -> bool:
        shown: list[str] = await grid.locator(".cell.changed").evaluate_all(_LABELS)
        return {label.partition(":")[0] for label in shown} == labels

    await until(are_shown, f"these cells are marked: {sorted(labels)}")


def label_of(cell: list[int]) -> str:
    return f"row {cell[0] + 1}, column {cell[1] + 1}"


async def segments(fleet: Serving, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the segments of an answer, as the API streams them."""
    found = []
    async with httpx.AsyncClient(base_url=fleet.url, timeout=60) as client:
        body = body | {"stream": True}
        async with client.stream("POST", "/v1/puzzles/solve", json=body) as answer:
            async for line in answer.aiter_lines():
                if '"solve.segment"' in line:
                    found.append(json.loads(line.removeprefix("data: ")))
    return found


async def test_a_maze_is_painted_and_filled_in(fleet: Serving, app_port: int) -> None:
    """The stroke of a moment before goes with the request, and each segment is as the API's."""
    url = f"http://127.0.0.1:{app_port}"
    async with opened(f"{url}/puzzles?kind=Maze", DESKTOP, tolerated=TOLERATED) as page:
        board = page.get_by_role("grid")
        await expect(board).to_be_visible(timeout=30_000)
        maze = drawn_maze(MAZE_ROWS, seed=3, num_doors=3 * MAZE_ROWS)
        await page.get_by_role("radio", name="Many ways").click()
        await expect(board.locator('[data-sign="#"]')).to_have_count("".join(maze).count("#"))
        await expect_rows(board, maze)

        await page.get_by_role("button", name="draw start").click()
        await page.get_by_role("gridcell", name="row 8, column 8").click()
        await page.keyboard.press("ArrowLeft")
        await page.keyboard.press("o")
        await page.get_by_role("button", name="draw path").click()
        await _stroke(page, "row 8, column 2", "row 8, column 5")
        await page.get_by_role("button", name="Solve", exact=True).click()

        drawn = [row.replace("S", " ") for row in maze[:-1]]
        drawn.append("#oooo#oS")
        await expect(page.get_by_text("Response time")).to_be_visible()
        frames = await segments(fleet, {"model": "maze", "grid": drawn, "halt": "max"})
        await expect_rows(board, frames[-1]["grid"])
        link = {"maze": ["\n".join(drawn)]}
        await page.wait_for_url(lambda url: link.items() <= parse_qs(urlsplit(url).query).items())

        slider = page.get_by_role("slider", name="Segment")
        await slider.press("Home")
        await expect(page.get_by_test_id("stMetricValue").first).to_have_text("1 of 3")
        await expect_rows(board, frames[0]["grid"])
        assert frames[0]["changed"], "the network changes something"
        await expect_changed(board, {label_of(cell) for cell in frames[0]["changed"]})

        await page.get_by_role("button", name="Back to the puzzle").click()
        await expect(page.locator(".board.editable")).to_be_visible()
        await expect_rows(board, drawn)
        await page.get_by_text("More", exact=True).click()
        await page.get_by_role("slider", name="Samples Samples").press("ArrowRight")
        await page.get_by_role("button", name="Solve", exact=True).click()
        await expect(page.get_by_text("of 2 votes")).to_be_visible()
        await expect(page.get_by_text("Not a solution")).to_be_visible()


async def _stroke(page: Page, begin: str, end: str) -> None:
    """Draw from the middle of a cell to the middle of another, with the mouse held down."""
    await _move_to(page, begin, steps=1)
    await page.mouse.down()
    await _move_to(page, end, steps=20)
    await page.mouse.up()


async def _move_to(page: Page, name: str, steps: int) -> None:
    cell = page.get_by_role("gridcell", name=name)
    await cell.scroll_into_view_if_needed()
    box = await cell.bounding_box()
    assert box is not None
    x = box["x"] + box["width"] / 2
    y = box["y"] + box["height"] / 2
    await page.mouse.move(x, y, steps=steps)


async def test_an_arc_task_is_drawn_and_attempted(fleet: Serving, app_port: int) -> None:
    """The attempts are those of the API, and each is compared with the output that was drawn."""
    url = f"http://127.0.0.1:{app_port}"
    async with opened(f"{url}/puzzles?kind=ARC", DESKTOP, tolerated=TOLERATED) as page:
        board = page.locator(".board.editable").get_by_role("grid")
        await expect(board).to_be_visible(timeout=30_000)
        await page.get_by_role("radio", name="Mirrored").click()
        await expect(board.get_by_role("gridcell")).to_have_count(20)
        await page.get_by_label("Task", exact=True).fill("007bbfb7")
        await page.get_by_label("Task", exact=True).press("Enter")

        await board.get_by_role("gridcell", name="row 1, column 2").click()
        await page.keyboard.press("9")
        await page.get_by_role("button", name="draw green").click()
        await board.get_by_role("gridcell", name="row 4, column 1").click()
        drawn = ["49040", "44090", "00004", "31116"]
        await page.get_by_role("button", name="Solve", exact=True).click()
        await expect(page.get_by_text("Response time")).to_be_visible(timeout=30_000)

        grid = [[int(cell) for cell in row] for row in drawn]
        output = [[0, 4, 0, 0, 4], [0, 9, 0, 4, 4], [4, 0, 0, 0, 0], [6, 1, 1, 1, 6]]
        body = {"model": "arc", "task_id": "007bbfb7", "augmentations": 8}
        body["test"] = [{"input": grid, "output": output}]
        async with httpx.AsyncClient(base_url=fleet.url, timeout=60) as client:
            answer = (await client.post("/v1/puzzles/arc", json=body)).json()
        [tested] = answer["answers"]
        for number, attempt in enumerate(tested["attempts"], start=1):
            grid_shown = page.get_by_role("grid", name=f"Attempt {number} at 1")
            await expect_rows(grid_shown, ["".join(map(str, row)) for row in attempt["grid"]])
            await expect(page.get_by_text(f"{attempt['votes']} of 8 votes").first).to_be_visible()
        await expect(page.get_by_text("Wrong")).to_have_count(len(tested["attempts"]))
        assert tested["right"] is False

        # The segments of one answer, to the task as it is.
        await page.get_by_role("button", name="Show segments").click()
        await expect(page.get_by_role("grid", name="Answer to test 1")).to_be_visible()
        await expect(page.get_by_text("2 of 2")).to_be_visible()
        asked = {"model": "arc", "grid": grid, "halt": "max", "identifier": "007bbfb7"}
        frames = await segments(fleet, asked)
        expected = ["".join(map(str, row)) for row in frames[-1]["grid"]]
        await expect_rows(page.get_by_role("grid", name="Answer to test 1"), expected)


async def test_large_boards_fit_a_phone(fleet: Serving, app_port: int) -> None:
    maze = drawn_maze(30, seed=1, num_doors=0)
    url = f"http://127.0.0.1:{app_port}"
    query = httpx.QueryParams(kind="Maze", maze="\n".join(maze))
    async with opened(f"{url}/puzzles?{query}", PHONE, tolerated=TOLERATED) as page:
        board = page.get_by_role("grid")
        await expect(board).to_be_visible(timeout=30_000)
        await expect_rows(board, maze)
        box = await board.bounding_box()
        assert box is not None
        assert 300 < box["width"] <= PHONE
        await expect_no_overflow(page)

        # Larger cells are wide enough for a finger, and are scrolled inside of the page.
        await page.get_by_role("button", name="larger cells").click()
        cell = await board.get_by_role("gridcell").first.bounding_box()
        assert cell is not None
        assert cell["width"] >= 24
        await expect_no_overflow(page)

        await page.get_by_role("radio", name="ARC").click()
        await expect(page.locator(".board.arc").first).to_be_visible()
        await expect_no_overflow(page)
