"""Files of puzzles are read in the formats that people have, one puzzle at a time."""

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.cli.fleet_tool import ToolError
from scripts.cli.solving.puzzle_files import PuzzleRecord, open_puzzles

SUDOKU = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
SOLVED = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"
TINY = "1..." + "0340" + "2143" + "...1"
MAZE = ["S #", "  #", "#oG"]


def read(path: Path, identifier_format: str | None = None) -> list[PuzzleRecord]:
    return list(open_puzzles(path, identifier_format).records())


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_lines_of_sudokus(tmp_path: Path) -> None:
    """Comments and empty lines are skipped, and the size of each is its own."""
    text = (
        f"# hard ones\n\n{SUDOKU}\r\n  {TINY}\n{'6' + '.' * 35}\n# ####\n{SUDOKU.replace('.', '0')}"
    )
    assert read(written(tmp_path / "a.txt", text)) == [
        PuzzleRecord(3, SUDOKU),
        PuzzleRecord(4, TINY),
        PuzzleRecord(5, "6" + "." * 35),
        PuzzleRecord(7, SUDOKU.replace(".", "0")),
    ]


def test_the_csv_of_sudoku_extreme(tmp_path: Path) -> None:
    text = f"source,question,answer,rating\npuzzles0_kaggle,{SUDOKU},{SOLVED},41\n,{SUDOKU},,0\n"
    assert read(written(tmp_path / "test.csv", text)) == [
        PuzzleRecord(2, SUDOKU, SOLVED, notes={"source": "puzzles0_kaggle", "rating": "41"}),
        PuzzleRecord(3, SUDOKU, notes={"rating": "0"}),
    ]


@pytest.mark.parametrize(
    "header", ["quizzes,solutions", "Puzzle,Solution", "\ufeffquiz, answer", '"puzzles","solution"']
)
def test_other_columns(tmp_path: Path, header: str) -> None:
    records = read(written(tmp_path / "a.csv", f"{header}\n\n{SUDOKU},{SOLVED}\n"))
    assert records == [PuzzleRecord(3, SUDOKU, SOLVED)]


def test_mazes_of_a_csv_are_rows(tmp_path: Path) -> None:
    maze = [("S" + " " * 29)] + ["#" * 30] * 28 + [" " * 29 + "G"]
    text = f"source,question,answer,rating\nx,{''.join(maze)},{''.join(MAZE)},110\n"
    (record,) = read(written(tmp_path / "test.csv", text))
    assert record.puzzle == maze
    assert record.solution == MAZE
    assert record.notes == {"source": "x", "rating": "110"}


def test_mazes_as_text(tmp_path: Path) -> None:
    text = "\n" + "\n".join(MAZE) + "\n\n\n" + "\n".join(["###", "SoG"])
    assert read(written(tmp_path / "mazes.txt", text)) == [
        PuzzleRecord(2, MAZE),
        PuzzleRecord(7, ["###", "SoG"]),
    ]


def test_a_comment_and_a_wall_are_told_apart(tmp_path: Path) -> None:
    assert read(written(tmp_path / "a.txt", f"####\n{SUDOKU}\n")) == [PuzzleRecord(2, SUDOKU)]
    assert read(written(tmp_path / "b.txt", "####\nS oG\n")) == [PuzzleRecord(1, ["####", "S oG"])]


TASK = {
    "train": [{"input": [[1]], "output": [[2]]}],
    "test": [{"input": [[0, 1], [2, 3]], "output": [[3, 2]]}, {"input": [[9]]}],
}


@pytest.mark.parametrize("indent", [None, 2])
def test_an_arc_task(tmp_path: Path, indent: int | None) -> None:
    path = written(tmp_path / "007bbfb7.json", json.dumps(TASK, indent=indent))
    assert read(path) == [
        PuzzleRecord("007bbfb7/0", [[0, 1], [2, 3]], [[3, 2]]),
        PuzzleRecord("007bbfb7/1", [[9]]),
    ]
    assert [record.identifier for record in read(path, "{task}")] == ["007bbfb7"] * 2
    named = read(path, "{task}|||t0|||0123456789")
    assert named[0].identifier == "007bbfb7|||t0|||0123456789"


def test_many_arc_tasks(tmp_path: Path) -> None:
    """They are in one file by name, or in the files of a directory, in the order of their names."""
    one = written(tmp_path / "challenges.json", json.dumps({"b": TASK, "a": TASK}))
    assert [record.id for record in read(one)] == ["b/0", "b/1", "a/0", "a/1"]

    folder = tmp_path / "evaluation"
    folder.mkdir()
    written(folder / "b.json", json.dumps(TASK))
    written(folder / "a.json", json.dumps(TASK))
    assert [record.id for record in read(folder)] == ["a/0", "a/1", "b/0", "b/1"]
    assert read(folder, "{task}")[2].identifier == "b"


def test_json_lines(tmp_path: Path) -> None:
    lines = [
        {"id": "x", "grid": SUDOKU, "solution": SOLVED, "notes": {"rating": 3}},
        {"puzzle": [[1, 2], [3, 4]], "identifier": 7},
        {"id": 9, "puzzle": MAZE, "grid": ["the", "answer"], "steps": 3},
    ]
    text = "\n".join(json.dumps(line) for line in lines[:2]) + "\n\n" + json.dumps(lines[2])
    assert read(written(tmp_path / "a.jsonl", text)) == [
        PuzzleRecord("x", SUDOKU, SOLVED, notes={"rating": 3}),
        PuzzleRecord(2, [[1, 2], [3, 4]], identifier=7),
        PuzzleRecord(9, MAZE),
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "expected lines of a Sudoku each, CSV"),
        ("hello\n", "expected lines of a Sudoku each, CSV"),
        ("a,b\n1,2\n", "expected lines of a Sudoku each, CSV"),
        (f"{SUDOKU}\n{SUDOKU}1\n", "line 2: expected 81, 36 or 16 digits, with 0 or . for a blank"),
        (f"{SUDOKU}\n\n{SUDOKU[:-1]}x\n", "line 3: expected 81, 36 or 16 digits"),
        (
            "5" + "." * 15,
            "line 1: expected 81, 36 or 16 digits, with 0 or . for a blank cell, got '5'",
        ),
        (f"question\n{SUDOKU}\n{SUDOKU},1\n", "line 3: expected 1 columns, got 2"),
        (f"question,answer\n{SUDOKU},{SOLVED[:-1]}\n", "line 2: expected 81, 36 or 16 digits"),
        ("question\nS ##G\n", "line 2: expected the rows of a square maze, got 5"),
        ("question\nSx\n", "line 2: expected 81"),
        ("###\n# G\n\n###\n#G\n", "line 5: expected 3 characters as in line 4, got 2"),
        ("###\n#xG\n", "line 2: expected a maze's row of '# SGo', got 'x'"),
        ('{"test": 3}', 'task \'a\': expected {"train": [...], "test": [{"input": rows}, ...]}'),
        ('{"t": {"train": [], "test": [{}]}}', "task 't': expected {"),
        ('{"test": [{"input": [["a"], 3]}]}', "task 'a': expected a string, or rows"),
        ('{"test": [{"input": [[1]], "output": []}]}', "task 'a': expected a string, or rows"),
        ('{\n"train": [],\n"test": x}', "line 3: not valid JSON"),
        (f'{{"grid": "{SUDOKU}"}}\n{{"grid": 3', "line 2: not valid JSON: Expecting ',' delimiter"),
        (f'{{"grid": "{SUDOKU}"}}\n[]', "line 2: expected an object with grid or puzzle"),
        (f'{{"grid": "{SUDOKU}"}}\n{{}}', "line 2: expected an object with grid or puzzle"),
        ('{"grid": [[true]]}', "line 1: expected a string, or rows"),
        ('{"grid": "."}\n{"id": 1, "grid": "."}', "line 2: a puzzle with the id 1 came before"),
        ('{"id": true, "grid": "."}', "line 1: id: expected"),
        ('{"grid": ".", "identifier": 1.5}', "line 1: identifier: expected"),
        ('{"grid": ".", "solution": 1}', "line 1: expected a string, or rows"),
        ('{"grid": ".", "notes": 1}', "line 1: notes: expected an object"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, text: str, problem: str) -> None:
    path = written(tmp_path / "a.txt", text)
    with pytest.raises(ToolError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: {problem}")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"missing: No such file"):
        open_puzzles(tmp_path / "missing")
    with pytest.raises(ToolError, match=r"expected files \*\.json"):
        read(tmp_path)
    path = tmp_path / "latin.txt"
    path.write_bytes(b"{\xff}")
    with pytest.raises(ToolError, match="expected text in UTF-8"):
        open_puzzles(path)


def test_two_tasks_of_one_name(tmp_path: Path) -> None:
    written(tmp_path / "a.json", json.dumps({"b": TASK}))
    written(tmp_path / "b.json", json.dumps(TASK))
    with pytest.raises(ToolError, match=r"b\.json: task 'b': a task of this name came before"):
        read(tmp_path)


def test_identifiers_are_of_arc_tasks(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", SUDOKU)
    with pytest.raises(ToolError, match="names ARC tasks, and the file holds none"):
        open_puzzles(path, "{task}")
    path = written(tmp_path / "a.json", json.dumps(TASK))
    with pytest.raises(ToolError, match=r"expected a text with \{task\}"):
        open_puzzles(path, "task")


def test_the_digest_is_of_the_content(tmp_path: Path) -> None:
    one = open_puzzles(written(tmp_path / "one.txt", SUDOKU)).digest()
    assert open_puzzles(written(tmp_path / "two.txt", SUDOKU)).digest() == one
    assert open_puzzles(written(tmp_path / "one.txt", SOLVED)).digest() != one

    folder = tmp_path / "tasks"
    folder.mkdir()
    written(folder / "a.json", json.dumps(TASK))
    before = open_puzzles(folder).digest()
    written(folder / "b.json", json.dumps(TASK))
    assert open_puzzles(folder).digest() != before


@pytest.mark.parametrize("kind", ["lines", "csv", "mazes", "json lines"])
def test_a_long_file_is_not_held_in_memory(tmp_path: Path, kind: str) -> None:
    """A file of more than four megabytes takes a small part of that."""
    path = tmp_path / "long"
    parts = parts_of(kind)
    with path.open("w") as stream:
        while stream.tell() < 4_000_000:
            stream.write(next(parts))

    puzzles = open_puzzles(path)
    tracemalloc.start()
    try:
        num_puzzles = puzzles.count()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert num_puzzles > 1000
    assert peak < 400_000
    assert puzzles.count(7) == 7


def parts_of(kind: str) -> Iterator[str]:
    """Yield the beginning of a file, then puzzles for ever."""
    if kind == "csv":
        yield "source,question,answer,rating\n"
    while True:
        match kind:
            case "lines":
                yield f"{SUDOKU}\n"
            case "csv":
                yield f"x,{SUDOKU},{SOLVED},1\n"
            case "mazes":
                yield ("S" + "#" * 29 + "\n") * 30 + "\n"
            case _:
                yield json.dumps({"grid": [[0] * 30] * 30}) + "\n"
