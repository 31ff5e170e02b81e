"""The benches of depth, and of what is not the model."""

import json
from pathlib import Path

import pytest

from scripts.bench import depth
from scripts.bench.overhead import bookkeeping_us
from tests.fixtures.worker.puzzle_nets import Net, write_checkpoint


def rows_of(capsys: pytest.CaptureFixture[str]) -> dict[str, list[str]]:
    lines = capsys.readouterr().out.splitlines()
    return {line.split()[0]: line.split() for line in lines if " of " in line}


def test_the_default_model_solves_less_with_fewer_cycles(
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = ["--count", "3", "--alone", "1", "--depths", "2x2", "1x1"]
    kinds = ["sum", "difference", "product", "equation"]
    assert depth.main([*flags, "--kinds", *kinds]) == 0
    rows = rows_of(capsys)
    assert rows["2x2"][2:4] == rows["1x1"][2:4] == ["of", "12"]
    assert int(rows["2x2"][1]) >= 10
    assert int(rows["1x1"][1]) <= 2


def test_programs_are_right_where_they_do_what_is_asked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = ["--model", "models/hrm-text-code", "--kinds", "code", "--count", "6"]
    assert depth.main([*flags, "--alone", "1", "--depths", "2x2", "1x1"]) == 0
    rows = rows_of(capsys)
    assert rows["2x2"][2:4] == ["of", "6"]
    assert int(rows["2x2"][1]) >= 5
    assert int(rows["1x1"][1]) <= 1


def test_puzzles_are_right_where_all_cells_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_checkpoint(tmp_path / "net", Net(halt_max_steps=2))
    problems = tmp_path / "problems.jsonl"
    line = json.dumps({"puzzle": "." * 81, "solution": "1" * 81})
    problems.write_text(line + "\n" + line + "\n")
    flags = ["--model", str(tmp_path / "net"), "--problems", str(problems), "--alone", "1"]
    assert depth.main([*flags, "--depths", "2", "1"]) == 0
    assert {row[2] + row[3] for row in rows_of(capsys).values()} == {"of2"}


def test_the_bookkeeping_of_a_token_takes_time() -> None:
    assert 0 < bookkeeping_us(2, 16) < 1e6
