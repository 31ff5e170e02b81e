"""The output of a run of puzzles: lines that it goes on from, their sums, and the progress."""

import io
import json
from collections.abc import Callable, Mapping
from contextlib import closing
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest

from scripts.cli.fleet_tool import ToolError
from scripts.cli.runs.output import Output, RunHeader
from scripts.cli.runs.progress import Progress, progress_line
from scripts.cli.solving.groups import Answer, Group, Refused, answers_of, groups_of, line_of
from scripts.cli.solving.puzzle_files import Id, PuzzleRecord
from scripts.cli.solving.tally import PuzzleTally, summary

HEADER = RunHeader("abc", {"model": None, "max_steps": 4})


def line(id: int | str, **fields: object) -> dict[str, Any]:
    return {"id": id, "puzzle": "1...", **fields}


def opened(
    path: Path, header: RunHeader, tally: PuzzleTally | None = None, *, restarts: bool = False
) -> Output[Id]:
    """Return an output whose lines have ids, as those of `aios puzzles solve`."""
    id_of: Callable[[Mapping[str, Any]], Id] = itemgetter("id")
    return Output(path, header, tally or PuzzleTally(), id_of, restarts=restarts)


def lines_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]


def test_a_run_goes_on_from_its_output(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with closing(opened(path, HEADER)) as output:
        output.write([line(1, is_right=True, steps=2), line("x", error="é")])
        # The lines are there before the run ends.
        assert lines_in(path) == [line(1, is_right=True, steps=2), line("x", error="é")]

    same = RunHeader("abc", {"max_steps": 4})
    tally = PuzzleTally()
    with closing(opened(path, same, tally)) as output:
        assert output.header == HEADER, "its requests are named as before"
        assert output.done == {1, "x"}
        output.write([line(2, is_right=False, steps=3)])
        assert output.done == {1, "x", 2}
        assert tally.num_done == 3
        assert (tally.num_right, tally.num_judged) == (1, 2)
        assert tally.num_errors == 1
    assert [one["id"] for one in lines_in(path)] == [1, "x", 2]


@pytest.mark.parametrize("torn", [b'{"id": 2, "puz', b'{"id": 2, "puzzle": "\xc3', b"{"])
def test_a_torn_last_line_is_removed(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "out.jsonl"
    with closing(opened(path, HEADER)) as output:
        output.write([line(1)])
    with path.open("ab") as stream:
        stream.write(torn)

    with closing(opened(path, HEADER)) as output:
        assert output.done == {1}
        output.write([line(2)])
    assert lines_in(path) == [line(1), line(2)]


def test_a_whole_last_line_without_its_end_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with closing(opened(path, HEADER)) as output:
        output.write([line(1), line(2)])
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))

    with closing(opened(path, HEADER)) as output:
        assert output.done == {1, 2}
        output.write([line(3)])
    assert lines_in(path) == [line(1), line(2), line(3)]


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        (RunHeader("abc", {"max_steps": 8}), "with max_steps 4, and this one has max_steps 8"),
        (RunHeader("abc", {}), "with max_steps 4, and this one has no max_steps"),
        (
            RunHeader("abc", {"max_steps": 4, "halt": "max"}),
            "with no halt, and this one has halt max",
        ),
        (RunHeader("def", HEADER.options), "another input"),
    ],
)
def test_another_run_is_refused_unless_it_begins_anew(
    tmp_path: Path, header: RunHeader, problem: str
) -> None:
    path = tmp_path / "out.jsonl"
    with closing(opened(path, HEADER)) as output:
        output.write([line(1)])
    with pytest.raises(ToolError, match=problem):
        opened(path, header)
    assert lines_in(path) == [line(1)]

    with closing(opened(path, header, restarts=True)) as output:
        assert output.done == set()
        assert output.header == header
    assert lines_in(path) == []
    with closing(opened(path, header)) as output:
        assert output.header == header


def test_a_file_that_is_no_output_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("precious\n")
    with pytest.raises(ToolError, match=r"but not mine\.jsonl\.run with"):
        opened(path, HEADER)
    assert path.read_text() == "precious\n"

    other = tmp_path / "other.jsonl"
    opened(other, HEADER).close()
    other.write_text("[1]\nprecious\n")
    with pytest.raises(ToolError, match="line 1: expected a line of an answer"):
        opened(other, HEADER)
    with pytest.raises(ToolError, match="Is a directory"):
        opened(tmp_path, HEADER)


def test_a_run_that_was_killed_at_its_start_begins_again(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.touch()
    with closing(opened(path, HEADER)) as output:
        assert output.header == HEADER

    # Its output was removed, so the run that comes is a new one.
    path.unlink()
    other = RunHeader("def", {})
    with closing(opened(path, other)) as output:
        assert output.header == other


def test_two_runs_do_not_write_one_output(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with closing(opened(path, HEADER)) as output:
        with pytest.raises(ToolError, match="another run writes it now"):
            opened(path, HEADER, restarts=True)
        output.write([line(1)])
    assert lines_in(path) == [line(1)]


def test_groups_have_one_identifier() -> None:
    records = []
    for id, identifier in enumerate("aaabba"):
        records.append(PuzzleRecord(id, "1...", identifier=identifier))
    groups = [[record.id for record in group] for group in groups_of(records, 2)]
    assert groups == [[0, 1], [2], [3, 4], [5]]
    assert list(groups_of([], 2)) == []


def test_a_puzzle_at_fault_is_found_and_the_others_are_solved() -> None:
    asked = []

    def solve(group: Group) -> list[Answer]:
        ids = [record.id for record in group]
        asked.append(ids)
        if 5 in ids:
            raise Refused("grid: wrong.")
        return [{"grid": str(id)} for id in ids]

    group = [PuzzleRecord(id, "1...") for id in range(8)]
    answers = answers_of(group, solve)
    assert answers.pop(5) == {"error": "grid: wrong."}
    assert answers == [{"grid": str(id)} for id in (0, 1, 2, 3, 4, 6, 7)]
    assert asked == [[*range(8)], [0, 1, 2, 3], [4, 5, 6, 7], [4, 5], [4], [5], [6, 7]]


@pytest.mark.parametrize(
    ("grid", "solution", "is_right"),
    [
        ("1234", "1234", True),
        ("1230", "123.", True),
        ("1234", "1243", False),
        ([[1, 2], [3, 4]], "1234", True),
        ([[1, 2], [3, 4]], [[1, 2], [3, 4]], True),
        # In ARC the shape is a part of the answer.
        ([[1, 2, 3, 4]], [[1, 2], [3, 4]], False),
        (["SoG", "###"], ["SoG", "###"], True),
        (["SoG", "###"], ["S G", "###"], False),
    ],
)
def test_an_answer_is_compared_with_the_solution(grid: Any, solution: Any, is_right: bool) -> None:
    record = PuzzleRecord("a", grid, solution)
    assert line_of(record, {"grid": grid})["is_right"] is is_right


def test_a_line_has_all_that_is_known() -> None:
    record = PuzzleRecord(3, "1...", "1234", notes={"rating": "7"})
    answer = {"grid": "1234", "confidence": 0.5, "steps": 2, "is_halted": True, "valid": None}
    assert list(line_of(record, answer).items()) == [
        ("id", 3),
        ("puzzle", "1..."),
        *answer.items(),
        ("is_right", True),
        ("notes", {"rating": "7"}),
    ]
    assert line_of(PuzzleRecord(3, "1...", "1234"), {"error": "no"}) == line(3, error="no")
    assert line_of(PuzzleRecord(3, "1..."), {"grid": "1234"}) == line(3, grid="1234")


def tally_of(*lines: dict[str, Any]) -> PuzzleTally:
    tally = PuzzleTally()
    for one in lines:
        tally.add(one)
    return tally


def test_the_summary() -> None:
    tally = tally_of(
        line(1, steps=2, is_right=True, valid=True),
        line(2, steps=2, is_right=False, valid=False),
        line(3, steps=5, is_right=True, valid=None),
        line(4, error="no"),
    )
    assert summary(tally, 3, 1.5) == [
        "4 puzzles  2 right (66.7 %)  1 valid (50.0 %)  1 failed",
        "steps: 3.00 on average",
        "      2  ##############################  2",
        "      5  ###############                 1",
        "3 in 1.5s, 2.00 puzzles/s; 1 were done before",
    ]
    assert summary(tally_of(line(1)), 1, 90.0) == ["1 puzzles", "1 in 1m30s, 0.01 puzzles/s"]


def test_many_numbers_of_steps_are_shown_as_ranges() -> None:
    tally = tally_of(line(1, steps=1), line(2, steps=4), line(3, steps=5), line(4, steps=64))
    assert summary(tally, 4, 1.0)[2:-1] == [
        "    1-4  ##############################  2",
        "    5-8  ###############                 1",
        "  61-64  ###############                 1",
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_drawn_on_a_terminal_alone() -> None:
    tally = tally_of(line(1, is_right=True), line(2, is_right=True))
    drawn = Terminal()
    progress = Progress(drawn, 2)
    progress.draw(tally, 2)
    progress.note("away")
    progress.note("away")
    assert drawn.getvalue().startswith("\r\x1b[K2/2 [########################]  2 right (100.0 %)")
    assert drawn.getvalue().endswith("\r\x1b[Kaway\n")

    for stream, is_shown in ((io.StringIO(), True), (Terminal(), False)):
        quiet = Progress(stream, 2, is_shown=is_shown)
        quiet.draw(tally, 2)
        quiet.clear()
        quiet.note("away")
        assert stream.getvalue() == "away\n"


def test_the_line_of_progress() -> None:
    tally = tally_of(line(1, is_right=True), line(2, is_right=False))
    bar = "######" + "." * 18
    assert progress_line(tally, 8, 1, 2.0) == f"2/8 [{bar}]  1 right (50.0 %)  0.50/s  12s left"
    assert progress_line(PuzzleTally(), 0, 0, 0.0) == f"0/0 [{'.' * 24}]"
