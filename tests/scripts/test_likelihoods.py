"""The table of log-likelihoods: ours are those of transformers with the prompt marked, and a causal
reading of the same prompt gives others."""

from pathlib import Path

import pytest

from scripts.bench.likelihoods import Format, main, of_transformers, ours, pairs_of, table
from shared.settings.settings import DEFAULT_MODEL

MODELS = Path(__file__).parents[2] / "models"
QUESTIONS = Path(__file__).parents[2] / "assets" / "eval" / "maths.jsonl"


def test_ours_are_those_of_a_prefix_lm() -> None:
    path = Path(DEFAULT_MODEL)
    pairs = pairs_of(path, QUESTIONS, limit=4)
    found = ours(path, pairs)
    assert found == pytest.approx(of_transformers(path, pairs, "prompt"), abs=1e-3)
    assert found != pytest.approx(of_transformers(path, pairs, "nothing"), abs=1e-3)


def test_a_server_that_tells_none_is_none() -> None:
    sides: dict[str, list[float | None]] = {
        "this fleet": [-2.0, -4.0],
        "one": [-2.5, None],
        "other": [None, None],
    }
    sides["last"] = [-2.0, -4.0]
    assert table(sides).splitlines()[2:] == [
        "| this fleet | -3.000 | 0 | 2 of 2 |  |",
        "| one | -2.500 | 0.5 | 0 of 1 |  |",
        "| other | tells none | | | |",
        "| last | -3.000 | 0 | 2 of 2 | this fleet |",
    ]


def test_the_command_prints_a_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["likelihoods", str(DEFAULT_MODEL), "--questions", str(QUESTIONS), "--limit", "2"]
    monkeypatch.setattr("sys.argv", words)
    main()
    printed = capsys.readouterr().out
    assert "| this fleet | " in printed
    assert "| transformers, nothing marked | " in printed


def test_own_answers_are_scored_as_they_are_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where an answer is marked as the prompt is, each of its tokens is seen beforehand."""
    words = ["likelihoods", str(MODELS / "hrm-text-code"), "--problems", "code", "--limit", "2"]
    monkeypatch.setattr("sys.argv", words)
    main()
    rows = {}
    for line in capsys.readouterr().out.splitlines():
        if line.startswith("| "):
            name, *figures = line.strip("| ").split(" | ")
            rows[name] = figures
    assert rows["transformers, prompt marked"][-1] == "this fleet"
    assert rows["this fleet, as it writes"][-1] == "this fleet"
    assert rows["transformers, as it writes"][-1] == "this fleet"
    assert float(rows["transformers, prompt and answer marked"][0]) < -10


def test_the_format_of_a_prompt_adds_no_other_token() -> None:
    pair = Format(MODELS / "hrm-text-code").pair("Write a function", "def")
    assert pair.prompt_ids[:2] == [1, 4]
    assert pair.prompt_ids[-1] == 2
