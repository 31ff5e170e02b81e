"""`/v1/puzzles/solve`: its fields, its answers, and its refusals.

Answers come in order, each in the shape of its grid."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from shared.errors import InvalidRequest
from shared.messages import Halt, Sample, Solve
from tests.fixtures.api.echo_worker import EchoWorker, model_info

PATH = "/v1/puzzles/solve"
SUDOKU = "53..7...." * 9
ONE_SAMPLE = {"valid": None, "shortest": None, "sample": 0, "samples_run": 1, "votes": 1}
SOLVED = "530070000" * 9
"""The echo worker's solution, which is the puzzle itself."""


@pytest.fixture
async def solver(redis_url: str) -> AsyncIterator[EchoWorker]:
    async with EchoWorker(redis_url, model_info("sudoku", tasks=("solve",))) as worker:
        yield worker


async def test_answers_come_in_order_and_in_their_callers_shapes(
    client: httpx.AsyncClient, solver: EchoWorker
) -> None:
    grids = [SUDOKU, [[1, 2], [3, 4]], ["# S", "Go "]]
    answer = await client.post(PATH, json={"grids": grids, "max_steps": 3})

    assert answer.status_code == 200
    rest = {"confidence": 0.25, "steps": 3, "is_halted": True} | ONE_SAMPLE
    assert answer.json() == {
        "model": "sudoku",
        "solutions": [
            {"grid": SOLVED} | rest,
            {"grid": [[1, 2], [3, 4]]} | rest,
            {"grid": ["# S", "Go "]} | rest,
        ],
        "usage": {
            "prompt_tokens": 243,
            "completion_tokens": 0,
            "total_tokens": 243,
            "max_steps": 3,
        },
    }


@pytest.mark.parametrize("name", ["grid", "puzzle", "grids", "puzzles"])
async def test_each_name_for_a_grid(
    client: httpx.AsyncClient, solver: EchoWorker, name: str
) -> None:
    value = [SUDOKU] if name.endswith("s") else SUDOKU
    answer = await client.post(PATH, json={name: value})

    [solution] = answer.json()["solutions"]
    assert solution["grid"] == SOLVED
    [job] = solver.jobs
    assert job.task == Solve(SUDOKU)


async def test_everything_given_reaches_the_worker(
    client: httpx.AsyncClient, solver: EchoWorker
) -> None:
    everything = {
        "grid": [[0, 9]],
        "identifier": "007bbfb7",
        "halt": "q_halt",
        "max_steps": 7,
        "model": "sudoku",
    }
    assert (await client.post(PATH, json=everything)).status_code == 200
    little = {"grid": [[0, 9]], "identifier": 5, "halt": None}
    assert (await client.post(PATH, json=little)).status_code == 200
    lazy = {"grid": [[0, 9]], "effort": "low"}
    assert (await client.post(PATH, json=lazy)).status_code == 200

    first, second, third = solver.jobs
    assert first.task == Solve(((0, 9),), identifier="007bbfb7", halt="q_halt", max_steps=7)
    assert second.task == Solve(((0, 9),), identifier=5)
    assert third.task == Solve(((0, 9),), effort="low")


@pytest.mark.parametrize(
    ("rule", "halt", "max_steps"),
    [
        ("q", "q_halt", None),
        ("q_halt", "q_halt", None),
        ("max", "max", None),
        ("steps=5", "max", 5),
    ],
)
async def test_rules_of_halting(
    client: httpx.AsyncClient,
    solver: EchoWorker,
    rule: str,
    halt: Halt,
    max_steps: int | None,
) -> None:
    assert (await client.post(PATH, json={"grid": SUDOKU, "halt": rule})).status_code == 200
    [job] = solver.jobs
    assert job.task == Solve(SUDOKU, halt=halt, max_steps=max_steps)


async def test_samples_are_jobs_of_one_request(
    client: httpx.AsyncClient, solver: EchoWorker
) -> None:
    """Each sample is a job that knows its number and the seed of all, drawn if none is given."""
    body = {"grids": [SUDOKU, [[1]]], "samples": 3, "noise": 0.25, "noise_at": "all"}
    answer = await client.post(PATH, json=body | {"seed": 7})

    assert answer.status_code == 200
    assert [job.task for job in solver.jobs] == [
        Solve(puzzle, sample=Sample(number, 7, 0.25, "all"))
        for puzzle in (SUDOKU, ((1,),))
        for number in range(3)
    ]
    for solution in answer.json()["solutions"]:
        assert (solution["sample"], solution["samples_run"], solution["votes"]) == (0, 3, 3)

    solver.jobs.clear()
    for _ in range(2):
        await client.post(PATH, json=body)
    seeds = [job.task.sample.seed for job in solver.jobs]
    assert len(set(seeds)) == 2
    assert seeds[:6] == [seeds[0]] * 6


async def test_a_stream_shows_each_segment(client: httpx.AsyncClient, solver: EchoWorker) -> None:
    """A frame for each segment of each sample, in its puzzle's shape, then the whole answer.

    A reader that comes back with the id of a frame gets those behind it.
    """
    body = {"grids": [SUDOKU, [[1, 2]]], "stream": True, "samples": 2, "noise": 1.0, "seed": 1}
    whole = (await client.post(PATH, json=body | {"stream": False})).json()
    answer = await client.post(PATH, json=body)

    assert answer.headers["content-type"].startswith("text/event-stream")
    frames = parsed(answer.text)
    segments = [data for _, data in frames if data.get("object") == "solve.segment"]
    assert len(segments) == 8
    for puzzle, grid in enumerate([SOLVED, [[1, 2]]]):
        for sample in (0, 1):
            own = [one for one in segments if (one["puzzle"], one["sample"]) == (puzzle, sample)]
            assert [one["step"] for one in own] == [1, 2]
            assert own[0] == {
                "id": frames[0][1]["id"],
                "object": "solve.segment",
                "puzzle": puzzle,
                "sample": sample,
                "step": 1,
                "max_steps": 2,
                "grid": grid,
                "q_halt": -0.5,
                "q_continue": -5.0,
                "changed": [[0, 1]],
            }
    assert frames[-1][1] == whole

    at = next(number for number, (_, data) in enumerate(frames) if data == segments[3])
    path = f"/v1/jobs/{frames[0][1]['id']}/events"
    rest = await client.get(path, headers={"Last-Event-ID": frames[at][0]})
    # Those of several jobs may come in another order.
    assert sorted(map(repr, parsed_data(rest.text))) == sorted(
        repr(data) for _, data in frames[at + 1 :]
    )
    assert parsed_data(rest.text)[-1] == whole


def parsed_data(text: str) -> list[Any]:
    return [data for _, data in parsed(text)]


def parsed(text: str) -> list[tuple[str, Any]]:
    """Return the id and the data of each frame of a stream of events, but for its last words."""
    frames = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        if fields.get("data", "[DONE]") != "[DONE]":
            frames.append((fields.get("id", ""), json.loads(fields["data"])))
    return frames


async def test_too_many_jobs_in_one_request(client: httpx.AsyncClient, solver: EchoWorker) -> None:
    """The queue's own limit counts samples."""
    body = {"grids": [SUDOKU] * 64, "samples": 256, "noise": 1.0}
    answer = await client.post(PATH, json=body)
    assert answer.status_code == 400
    assert "takes 16384 places in the queue" in answer.json()["error"]["message"]


GRID = {"grid": SUDOKU}
BAD: list[tuple[Any, str, str]] = [
    ({}, "grid", "exactly one of grid, puzzle, grids, puzzles, got none"),
    ({"grid": SUDOKU, "grids": [SUDOKU]}, "grid", "got grid and grids"),
    ({"grids": []}, "grids", "grids: "),
    ({"grids": SUDOKU}, "grids", "list"),
    ({"grids": [SUDOKU, 5]}, "grids", "grids[1]: expected rows of numbers or rows of text"),
    ({"puzzles": [SUDOKU] * 65}, "grids", "expected at most 64 items in one request, got 65"),
    ({"grid": []}, "grid", "grid: expected rows"),
    ({"grid": 5}, "grid", "grid: expected rows"),
    ({"puzzle": [[True]]}, "puzzle", "puzzle: expected rows"),
    ({"grid": [[1.0]]}, "grid", "grid: expected rows"),
    ({"grid": [[2**31]]}, "grid", "grid: expected rows"),
    ({"grid": [[1] * 31]}, "grid", "grid: expected rows"),
    ({"grid": [[1]] * 31}, "grid", "grid: expected rows"),
    ({"grid": ["#" * 31]}, "grid", "grid: expected rows"),
    ({"grid": "1" * 129}, "grid", "grid: expected rows"),
    ({"grid": "\ud800"}, "grid", "grid: expected rows"),
    ({"grid": {"rows": []}}, "grid", "grid: expected rows"),
    (GRID | {"identifier": -1}, "identifier", "identifier: expected a number from 0 up, or a name"),
    (GRID | {"identifier": True}, "identifier", "identifier: expected a number"),
    (GRID | {"identifier": [1]}, "identifier", "identifier: expected a number"),
    (GRID | {"identifier": "\ud800"}, "identifier", "identifier: expected a number"),
    (GRID | {"halt": "never"}, "halt", "expected q_halt (or q), max, or steps=N"),
    (GRID | {"halt": "steps=0"}, "halt", "expected q_halt (or q), max, or steps=N"),
    (GRID | {"halt": 3}, "halt", "expected q_halt (or q), max, or steps=N"),
    (GRID | {"halt": "steps=3", "max_steps": 3}, "halt", "no steps=N beside max_steps or effort"),
    (GRID | {"halt": "steps=3", "effort": "low"}, "halt", "no steps=N beside max_steps or effort"),
    (GRID | {"samples": 0}, "samples", "samples: "),
    (GRID | {"samples": 257, "noise": 1.0}, "samples", "samples: "),
    (GRID | {"samples": True, "noise": 1.0}, "samples", "samples: "),
    (GRID | {"samples": 4}, "noise", "expected more than 0, as all samples would be equal"),
    (GRID | {"samples": 4, "noise": 0.0}, "noise", "expected more than 0"),
    (GRID | {"samples": 4, "noise": -1.0}, "noise", "noise: "),
    (GRID | {"samples": 4, "noise": "1"}, "noise", "noise: "),
    (GRID | {"noise": 0.5}, "samples", "expected more than 1, as the first has no noise"),
    (GRID | {"samples": 4, "noise": 0.5, "select": "first"}, "samples", "expected 1"),
    (GRID | {"select": "last"}, "select", "select: "),
    (GRID | {"noise_at": "low"}, "noise_at", "noise_at: "),
    (GRID | {"samples": 2, "noise": 0.5, "seed": 2**64}, "seed", "seed: "),
    (GRID | {"max_steps": 0}, "max_steps", "max_steps: "),
    (GRID | {"max_steps": "3"}, "max_steps", "max_steps: "),
    (GRID | {"effort": "none"}, "effort", "effort: "),
    (GRID | {"effort": "low", "max_steps": 3}, "max_steps", "at most one of max_steps, effort"),
    (GRID | {"model": 5}, "model", "model: "),
    ([], "", "JSON object"),
]


@pytest.mark.parametrize(("body", "field", "complaint"), BAD)
async def test_a_bad_body_is_refused_by_its_field(
    client: httpx.AsyncClient, solver: EchoWorker, body: Any, field: str, complaint: str
) -> None:
    """A bad body gets an error in the seed dialect, and nothing reaches the queue.

    The path begins as OpenAI's paths do, but the shape of the error does not follow them."""
    answer = await client.post(
        PATH, content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert set(error) == {"code", "message", "field"}
    assert (error["code"], error["field"] or "") == ("invalid_request", field)
    assert complaint in error["message"]
    assert solver.jobs == []


async def test_what_only_the_worker_knows_is_a_400_as_well(
    client: httpx.AsyncClient, solver: EchoWorker
) -> None:
    solver.failure = InvalidRequest("identifier: unknown.", field="identifier").as_event()
    answer = await client.post(PATH, json=GRID)
    assert (answer.status_code, answer.json()["error"]["field"]) == (400, "identifier")


async def test_each_task_goes_to_models_that_serve_it(
    client: httpx.AsyncClient, solver: EchoWorker
) -> None:
    """Text for a puzzle model is refused before anything is queued."""
    generate = await client.post("/generate", json={"prompts": ["a"], "model": "sudoku"})
    completion = await client.post("/v1/completions", json={"prompt": "a", "model": "sudoku"})

    for answer in (generate, completion):
        assert answer.status_code == 400
        assert "'sudoku' does not serve the task 'generate'" in answer.json()["error"]["message"]
    assert solver.jobs == []


async def test_a_model_of_text_is_given_no_puzzles(
    client: httpx.AsyncClient, worker: EchoWorker
) -> None:
    answer = await client.post(PATH, json=GRID)
    assert (answer.status_code, answer.json()["error"]["field"]) == (400, "model")
    assert worker.jobs == []


async def test_the_schema_can_be_written(client: httpx.AsyncClient) -> None:
    """The OpenAPI document has the route's request and its response."""
    document = (await client.get("/openapi.json")).json()
    assert {"SolveRequest", "SolveResponse"} <= document["components"]["schemas"].keys()
