"""`aios puzzles solve` as a person types it, with a front that solves what it is told to."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.cli.aios import main
from scripts.cli.local_fleet import LocalFleet, announced
from tests.fixtures.scripted_front import Scripted, ScriptedFront, scripted_front

TINY = "1...034021430..1"
OTHER = "2...034021430..1"

Aios = Callable[..., tuple[int, str, str]]


@pytest.fixture
def front() -> Iterator[ScriptedFront]:
    with scripted_front() as running:
        yield running


@pytest.fixture
def solve(front: ScriptedFront, capsys: pytest.CaptureFixture[str]) -> Aios:
    """Run `aios puzzles solve ...` and return its exit status, its stdout and its stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        flags = ["--server-url", front.url, "--concurrency", "1"]
        status = main(["puzzles", "solve", *map(str, words), *flags])
        out, err = capsys.readouterr()
        return status, out, err

    return run


def written(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def lines_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().splitlines()]


def test_a_file_is_solved_and_summed_up(tmp_path: Path, solve: Aios, front: ScriptedFront) -> None:
    puzzles = written(
        tmp_path / "a.csv",
        "question,answer,rating",
        f"{TINY},{TINY.replace('.', '0')},5",
        f"{OTHER},{TINY},6",
        f"{TINY},,7",
    )
    status, out, err = solve(puzzles, "--batch", "2", "--halt", "max", "--max-steps", "4")
    assert (status, err) == (0, "")
    solved = tmp_path / "a.csv.solved.jsonl"
    answer = {"confidence": 0.5, "steps": 3, "is_halted": True}
    assert lines_in(solved) == [
        {
            "id": 2,
            "puzzle": TINY,
            "grid": TINY,
            **answer,
            "is_right": True,
            "notes": {"rating": "5"},
        },
        {
            "id": 3,
            "puzzle": OTHER,
            "grid": OTHER,
            **answer,
            "is_right": False,
            "notes": {"rating": "6"},
        },
        {"id": 4, "puzzle": TINY, "grid": TINY, **answer, "notes": {"rating": "7"}},
    ]
    first, *_, last = out.splitlines()
    assert first == "3 puzzles  1 right (50.0 %)"
    assert "steps: 3.00 on average" in out
    assert last == str(solved)
    options = {"halt": "max", "max_steps": 4}
    assert front.bodies == [options | {"grids": [TINY, OTHER]}, options | {"grids": [TINY]}]


def test_a_run_goes_on(tmp_path: Path, solve: Aios, front: ScriptedFront) -> None:
    puzzles = written(tmp_path / "a.txt", *[TINY] * 5)
    out = tmp_path / "out.jsonl"
    assert solve(puzzles, "--out", out, "--batch", "2", "--limit", "3")[0] == 0
    assert [line["id"] for line in lines_in(out)] == [1, 2, 3]
    status, printed, _ = solve(puzzles, "--out", out, "--batch", "2")
    assert status == 0
    assert "2 in " in printed
    assert "; 3 were done before" in printed
    assert [line["id"] for line in lines_in(out)] == [1, 2, 3, 4, 5]
    assert [len(body["grids"]) for body in front.bodies] == [2, 1, 1, 1]

    # Nothing is left to ask for.
    assert solve(puzzles, "--out", out)[0] == 0
    assert len(front.bodies) == 4

    status, _, err = solve(puzzles, "--out", out, "--model", "other")
    assert status == 1
    assert "of a run with no model, and this one has model other" in err
    assert solve(puzzles, "--out", out, "--model", "other", "--restart")[0] == 0
    assert [line["id"] for line in lines_in(out)] == [1, 2, 3, 4, 5]
    assert front.bodies[4:] == [{"model": "other", "grids": [TINY] * 5}]
    assert len(set(front.keys)) == 5


def test_a_refused_puzzle_is_an_error_in_its_line(
    tmp_path: Path, solve: Aios, front: ScriptedFront
) -> None:
    front.bad = OTHER
    puzzles = written(tmp_path / "a.txt", TINY, OTHER, TINY)
    status, out, _ = solve(puzzles)
    assert status == 1
    assert out.startswith("3 puzzles  1 failed\n")
    lines = lines_in(tmp_path / "a.txt.solved.jsonl")
    assert lines[1] == {"id": 2, "puzzle": OTHER, "error": "invalid_request."}
    assert [line["id"] for line in lines] == [1, 2, 3]

    # It has its line, so it is not asked for again.
    num_asked = len(front.bodies)
    assert solve(puzzles)[0] == 1
    assert len(front.bodies) == num_asked


def test_a_run_that_cannot_go_on_says_how_far_it_came(
    tmp_path: Path, solve: Aios, front: ScriptedFront
) -> None:
    front.script = [None, Scripted(401, "invalid_api_key")]
    status, out, err = solve(written(tmp_path / "a.txt", TINY, TINY), "--batch", "1")
    assert (status, out) == (1, "")
    assert "1 of 2 puzzles are in " in err
    assert "the same command goes on from there" in err
    assert err.endswith(f"aios puzzles: {front.url}/v1/puzzles/solve: invalid_api_key.\n")


def test_a_mistake_in_the_file_is_found_before_anything_is_solved(
    tmp_path: Path, solve: Aios, front: ScriptedFront
) -> None:
    puzzles = written(tmp_path / "a.txt", *[TINY] * 9, "12")
    status, out, err = solve(puzzles, "--batch", "1")
    assert (status, out, front.bodies) == (1, "", [])
    assert err.startswith(f"aios puzzles: {puzzles}: line 10: expected ")
    assert not (tmp_path / "a.txt.solved.jsonl").exists()

    assert solve(puzzles, "--limit", "9")[0] == 0


def test_arc_tasks_are_named_if_that_is_asked_for(
    tmp_path: Path, solve: Aios, front: ScriptedFront
) -> None:
    task = {"train": [], "test": [{"input": [[1]]}, {"input": [[2]]}]}
    written(tmp_path / "a.json", json.dumps(task))
    written(tmp_path / "b.json", json.dumps(task))
    assert solve(tmp_path, "--out", tmp_path / "x.jsonl")[0] == 0
    assert front.bodies == [{"grids": [[[1]], [[2]], [[1]], [[2]]]}]

    named = tmp_path / "named.jsonl"
    assert solve(tmp_path, "--out", named, "--identifier-format", "{task}")[0] == 0
    assert front.bodies[1:] == [
        {"identifier": "a", "grids": [[[1]], [[2]]]},
        {"identifier": "b", "grids": [[[1]], [[2]]]},
    ]
    assert lines_in(named)[0]["puzzle"] == [[1]]
    assert [line["id"] for line in lines_in(named)] == ["a/0", "a/1", "b/0", "b/1"]


def test_the_answers_to_this_directory_have_its_name(
    tmp_path: Path, solve: Aios, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "evaluation"
    folder.mkdir()
    written(folder / "a.json", json.dumps({"train": [], "test": [{"input": [[1]]}]}))
    monkeypatch.chdir(folder)
    for _ in range(2):
        assert solve(".")[0] == 0
        assert [line["id"] for line in lines_in(folder / "evaluation.solved.jsonl")] == ["a/0"]


def test_fields_that_answers_gain_are_in_the_lines(
    tmp_path: Path, solve: Aios, front: ScriptedFront
) -> None:
    solutions = [{"grid": TINY, "steps": 1, "valid": True, "samples": 8}]
    front.script = [Scripted(200, text=json.dumps({"solutions": solutions}))]
    _, out, _ = solve(written(tmp_path / "a.txt", TINY))
    (line,) = lines_in(tmp_path / "a.txt.solved.jsonl")
    assert line == {"id": 1, "puzzle": TINY, **solutions[0]}
    assert out.startswith("1 puzzles  1 valid (100.0 %)\n")


def test_the_fleet_of_this_machine_is_found(
    tmp_path: Path, front: ScriptedFront, capsys: pytest.CaptureFixture[str]
) -> None:
    puzzles = written(tmp_path / "a.txt", TINY)
    assert main(["puzzles", "solve", str(puzzles)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(
        "aios puzzles: server_url: expected a URL in --server-url: no `aios serve"
    )

    port = int(front.url.rpartition(":")[2])
    fleet = LocalFleet(1, port, front.url, "redis://x", 1, has_open_metrics=True)
    with announced(fleet):
        assert main(["puzzles", "solve", str(puzzles)]) == 0
        assert main(["puzzles", "solve", str(puzzles), "--port", "1"]) == 2
    elsewhere = LocalFleet(1, 0, "another server's front", "redis://x", 1, has_open_metrics=False)
    with announced(elsewhere):
        assert main(["puzzles", "solve", str(puzzles)]) == 2
    assert "name its URL by --server-url" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--batch", "0"],
        ["--limit", "x"],
        ["--max-steps", "many"],
        ["--halt", "later"],
        ["--server-url", "localhost:8000"],
        ["--path", "model", "--model", "x"],
    ],
)
def test_flags_that_make_no_sense(words: list[str], tmp_path: Path) -> None:
    file = [str(tmp_path / "a.txt")] if words else []
    assert main(["puzzles", "solve", *file, *words]) == 2


def test_the_answers_go_to_another_file(tmp_path: Path, solve: Aios) -> None:
    puzzles = written(tmp_path / "a.txt", TINY)
    status, _, err = solve(puzzles, "--out", puzzles)
    assert status == 1
    assert "expected another file for the answers" in err
    assert puzzles.read_text() == f"{TINY}\n"
