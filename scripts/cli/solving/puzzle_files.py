"""Files of puzzles in the formats that people have, read one puzzle at a time.

- Sudoku: a line for each puzzle, of n x n characters (n is 4, 6 or 9), with `.` or 0 for a blank
  cell. Lines that begin with # are comments.
- CSV with a header, such as that of sapientinc/sudoku-extreme (`source,question,answer,rating`).
- Mazes: blocks of rows of `# SGo`, with empty lines between them.
- ARC: a task as `{"train": [...], "test": [...]}`, a file with many tasks by name, or a directory
  of such files. Each test input is a puzzle.
- JSON Lines of our own: `{"id", "grid" or "puzzle", "solution", "identifier", "notes"}`.
"""

import csv
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from math import isqrt
from pathlib import Path
from typing import Any, TextIO

from scripts.cli.fleet_tool import ToolError

Id = int | str
Puzzle = str | list[str] | list[list[int]]
"""A Sudoku in one string, or the rows of a grid, as `/v1/puzzles/solve` takes them."""

_SUDOKU_CELLS = {
    16: frozenset(".01234"),
    36: frozenset(".0123456"),
    81: frozenset(".0123456789"),
}
"""The characters of a Sudoku, by the number of its cells."""
_MAZE_CELLS = frozenset("# SGo")
_COMMENT = "#"
_PUZZLE_COLUMNS = ("question", "puzzle", "puzzles", "quiz", "quizzes", "grid")
_SOLUTION_COLUMNS = ("answer", "solution", "solutions")
_TASK = "{task}"
_HEAD_LINES = 100
_EXPECTED_FILE = (
    "expected lines of a Sudoku each, CSV with a column question or puzzle, mazes of '# SGo', an ARC "
    "task, or JSON Lines with grid or puzzle"
)
_EXPECTED_SUDOKU = "expected 81, 36 or 16 digits, with 0 or . for a blank cell"
_EXPECTED_GRID = "expected a string, or rows of numbers or of text"
_EXPECTED_TASK = 'expected {"train": [...], "test": [{"input": rows}, ...]}'


class PuzzleFileError(ToolError):
    """Raised for a file that is not in its format. The message names the file and the line."""

    def __init__(self, path: Path, problem: str, line: int | None = None) -> None:
        where = str(path) if line is None else f"{path}: line {line}"
        super().__init__(f"{where}: {problem}")


@dataclass(frozen=True)
class PuzzleRecord:
    """A puzzle of a file.

    `id` is the number of its line, a name from the file, or for ARC `task/index`. It is the same
    whenever the file is read. `notes` are what else the file says of the puzzle, such as a rating.
    """

    id: Id
    puzzle: Puzzle
    solution: Puzzle | None = None
    identifier: int | str | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Format:
    """A format. `read` yields the puzzles of a file; it gets the format of identifiers, too."""

    name: str
    read: Callable[[Path, str | None], Iterator[PuzzleRecord]]


@dataclass(frozen=True)
class PuzzleFile:
    """A file, or a directory of ARC tasks, whose format was found by its content.

    `identifier_format` names ARC tasks to the network: `{task}` in it stands for the task's name.
    """

    path: Path
    format: Format
    identifier_format: str | None = None

    def records(self) -> Iterator[PuzzleRecord]:
        """Yield the puzzles in their order. Raise PuzzleFileError at the first mistake."""
        return self.format.read(self.path, self.identifier_format)

    def count(self, most: int | None = None) -> int:
        """Read all puzzles, or as many as `most`, and return their number.

        Raise PuzzleFileError at the first mistake.
        """
        return sum(1 for _ in islice(self.records(), most))

    def digest(self) -> str:
        """Return the SHA-256 of the content, in hex."""
        if not self.path.is_dir():
            return _digest(self.path)
        digest = hashlib.sha256()
        for file in _json_files(self.path):
            digest.update(f"{file.name} {_digest(file)}\n".encode())
        return digest.hexdigest()


def open_puzzles(path: Path, identifier_format: str | None = None) -> PuzzleFile:
    """Find the format of a file. Raise PuzzleFileError if it is none that is known."""
    if identifier_format is not None and _TASK not in identifier_format:
        raise ToolError(
            f"--identifier-format: expected a text with {_TASK} for the task's name, got "
            f"{identifier_format!r}"
        )
    chosen = _format_of(path)
    if identifier_format is not None and chosen is not ARC:
        raise ToolError("--identifier-format: names ARC tasks, and the file holds none")
    return PuzzleFile(path, chosen, identifier_format)


def _format_of(path: Path) -> Format:
    if path.is_dir():
        return ARC
    head = []
    for _, line in _lines(path):
        if line.strip():
            head.append(line)
        if len(head) == _HEAD_LINES:
            break

    if head and head[0].lstrip().startswith("{"):
        return _json_format_of(head[0])
    if head and _column_of(head[0].split(","), _PUZZLE_COLUMNS) is not None:
        return CSV
    if any(_is_digits(line.strip()) for line in head):
        return SUDOKU
    if any(_MAZE_CELLS.issuperset(line) for line in head):
        return MAZE
    raise PuzzleFileError(path, _EXPECTED_FILE)


def _json_format_of(line: str) -> Format:
    """Return the format of a file that begins with this line, of one JSON object or a part of it."""
    try:
        value = json.loads(line)
    except ValueError:
        return ARC
    if "puzzle" in value or "grid" in value:
        return JSON_LINES
    return ARC


def _read_sudokus(path: Path, _: str | None) -> Iterator[PuzzleRecord]:
    for number, line in _lines(path):
        text = line.strip()
        if not text or text.startswith(_COMMENT):
            continue
        try:
            yield PuzzleRecord(number, _sudoku(text))
        except ValueError as error:
            raise PuzzleFileError(path, str(error), number) from None


def _read_csv(path: Path, _: str | None) -> Iterator[PuzzleRecord]:
    columns: _Columns | None = None
    with _text_of(path) as stream:
        rows = csv.reader(stream)
        try:
            for row in rows:
                if not row:
                    continue
                if columns is None:
                    columns = _columns_of(row)
                    continue
                yield _csv_record(rows.line_num, columns, row)
        except UnicodeDecodeError:
            raise
        except (ValueError, csv.Error) as error:
            raise PuzzleFileError(path, str(error), rows.line_num) from None


@dataclass(frozen=True)
class _Columns:
    """The columns of a CSV: its puzzle, its solution if it has one, and the others by name."""

    num_columns: int
    puzzle: int
    solution: int | None
    notes: Mapping[str, int]


def _columns_of(header: list[str]) -> _Columns:
    puzzle = _column_of(header, _PUZZLE_COLUMNS)
    assert puzzle is not None, "the header tells the format"
    solution = _column_of(header, _SOLUTION_COLUMNS)
    notes = {}
    for index, name in enumerate(header):
        if index not in (puzzle, solution):
            notes[name.strip()] = index
    return _Columns(len(header), puzzle, solution, notes)


def _csv_record(number: int, columns: _Columns, row: list[str]) -> PuzzleRecord:
    """Return the puzzle of a row. Raise ValueError if it holds none."""
    if len(row) != columns.num_columns:
        raise ValueError(f"expected {columns.num_columns} columns, got {len(row)}")
    solution = None
    if columns.solution is not None and row[columns.solution]:
        solution = _cell(row[columns.solution])
    notes = {}
    for name, index in columns.notes.items():
        if row[index]:
            notes[name] = row[index]
    return PuzzleRecord(number, _cell(row[columns.puzzle]), solution, notes=notes)


def _column_of(header: list[str], names: tuple[str, ...]) -> int | None:
    """Return the index of the first of the names that a header has, None if it has none."""
    columns = [column.strip().strip('"').lower() for column in header]
    for name in names:
        if name in columns:
            return columns.index(name)
    return None


def _cell(text: str) -> Puzzle:
    """Return the puzzle of a cell: a Sudoku, or a square maze in one line. Raise ValueError."""
    if not text or not _MAZE_CELLS.issuperset(text):
        return _sudoku(text.strip())
    size = isqrt(len(text))
    if size * size != len(text):
        raise ValueError(f"expected the rows of a square maze, got {len(text)} characters")
    return [text[start : start + size] for start in range(0, len(text), size)]


def _sudoku(text: str) -> str:
    """Return a Sudoku. Raise ValueError if it is none."""
    cells = _SUDOKU_CELLS.get(len(text))
    if cells is None:
        raise ValueError(f"{_EXPECTED_SUDOKU}, got {len(text)} characters")
    if not cells.issuperset(text):
        raise ValueError(f"{_EXPECTED_SUDOKU}, got {min(set(text) - cells)!r}")
    return text


def _is_digits(text: str) -> bool:
    """Return whether a line looks as if it were to be a Sudoku."""
    return bool(text) and set("0123456789.").issuperset(text)


def _read_mazes(path: Path, _: str | None) -> Iterator[PuzzleRecord]:
    rows: list[str] = []
    begin = 0
    for number, line in _lines(path):
        if not line:
            if rows:
                yield PuzzleRecord(begin, rows)
            rows = []
            continue

        unknown = set(line) - _MAZE_CELLS
        if unknown:
            problem = f"expected a maze's row of '# SGo', got {min(unknown)!r}"
            raise PuzzleFileError(path, problem, number)
        if not rows:
            begin = number
        elif len(line) != len(rows[0]):
            problem = f"expected {len(rows[0])} characters as in line {begin}, got {len(line)}"
            raise PuzzleFileError(path, problem, number)
        rows.append(line)
    if rows:
        yield PuzzleRecord(begin, rows)


def _read_arc(path: Path, identifier_format: str | None) -> Iterator[PuzzleRecord]:
    seen: set[str] = set()
    for file in _json_files(path):
        for name, task in _arc_tasks(file):
            if name in seen:
                raise PuzzleFileError(file, f"task {name!r}: a task of this name came before")
            seen.add(name)
            identifier = None
            if identifier_format is not None:
                identifier = identifier_format.replace(_TASK, name)
            try:
                yield from _arc_records(name, task, identifier)
            except ValueError as error:
                raise PuzzleFileError(file, f"task {name!r}: {error}") from None


def _json_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(path.glob("*.json"))
    if not files:
        raise PuzzleFileError(path, "expected files *.json of ARC tasks in this directory")
    return files


def _arc_tasks(file: Path) -> Iterator[tuple[str, Any]]:
    """Yield the tasks of a file with their names. The only task of a file has the file's name."""
    try:
        with _text_of(file) as stream:
            value = json.load(stream)
    except json.JSONDecodeError as error:
        raise PuzzleFileError(file, f"not valid JSON: {error.msg}", error.lineno) from None
    if not isinstance(value, dict):
        raise PuzzleFileError(file, _EXPECTED_TASK)
    if "train" in value or "test" in value:
        yield file.stem, value
    else:
        yield from value.items()


def _arc_records(name: str, task: Any, identifier: str | None) -> Iterator[PuzzleRecord]:
    """Yield a puzzle for each test input of a task. Raise ValueError if it is no task."""
    tests = task.get("test") if isinstance(task, dict) else None
    if not isinstance(tests, list):
        raise ValueError(_EXPECTED_TASK)
    for index, test in enumerate(tests):
        if not isinstance(test, dict) or "input" not in test:
            raise ValueError(_EXPECTED_TASK)
        solution = test.get("output")
        if solution is not None:
            solution = _grid(solution)
        yield PuzzleRecord(f"{name}/{index}", _grid(test["input"]), solution, identifier)


def _read_json_lines(path: Path, _: str | None) -> Iterator[PuzzleRecord]:
    seen: set[Id] = set()
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            record = _json_record(number, json.loads(line))
        except json.JSONDecodeError as error:
            problem = f"not valid JSON: {error.msg} at character {error.colno}"
            raise PuzzleFileError(path, problem, number) from None
        except ValueError as error:
            raise PuzzleFileError(path, str(error), number) from None
        if record.id in seen:
            raise PuzzleFileError(path, f"a puzzle with the id {record.id!r} came before", number)
        seen.add(record.id)
        yield record


def _json_record(number: int, value: Any) -> PuzzleRecord:
    """Return the puzzle of an object. Raise ValueError if it is none.

    A line of an output may be an input again. It has the answer in `grid`, beside `puzzle`.
    """
    if not isinstance(value, dict):
        raise ValueError("expected an object with grid or puzzle")
    puzzle = value.get("puzzle", value.get("grid"))
    if puzzle is None:
        raise ValueError("expected an object with grid or puzzle")
    solution = value.get("solution")
    if solution is not None:
        solution = _grid(solution)
    identifier = value.get("identifier")
    if identifier is not None and not _is_id(identifier):
        raise ValueError("identifier: expected a number or a name")
    id = value.get("id", number)
    if not _is_id(id):
        raise ValueError("id: expected a number or a text")
    notes = value.get("notes", {})
    if not isinstance(notes, dict):
        raise ValueError("notes: expected an object")
    return PuzzleRecord(id, _grid(puzzle), solution, identifier, notes)


def _is_id(value: Any) -> bool:
    return type(value) in (int, str)


def _grid(value: Any) -> Puzzle:
    """Return a grid as it stands in JSON. Raise ValueError if it is none."""
    if isinstance(value, str) and value:
        return value
    if not isinstance(value, list) or not value:
        raise ValueError(_EXPECTED_GRID)
    for row in value:
        if isinstance(row, str):
            continue
        if not isinstance(row, list) or any(type(cell) is not int for cell in row):
            raise ValueError(_EXPECTED_GRID)
    return value


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a file with their numbers, from 1, without their ends."""
    with _text_of(path) as stream:
        for number, line in enumerate(stream, start=1):
            yield number, line.rstrip("\r\n")


@contextmanager
def _text_of(path: Path) -> Iterator[TextIO]:
    """Open a file. Raise PuzzleFileError if it cannot be read, or where it is not UTF-8."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            yield stream
    except UnicodeDecodeError:
        raise PuzzleFileError(path, "expected text in UTF-8") from None
    except OSError as error:
        raise PuzzleFileError(path, error.strerror or str(error)) from None


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


SUDOKU = Format("sudoku", _read_sudokus)
CSV = Format("csv", _read_csv)
MAZE = Format("maze", _read_mazes)
ARC = Format("arc", _read_arc)
JSON_LINES = Format("json lines", _read_json_lines)
