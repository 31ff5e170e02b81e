"""The table of log-likelihoods: ours are those of transformers with the prompt marked, and a causal
reading of the same prompt gives others."""

from pathlib import Path

import pytest

from scripts.bench.likelihoods import main, of_transformers, ours, pairs_of, table
from shared.settings.settings import SAMPLE_MODEL

QUESTIONS = Path(__file__).parents[2] / "assets" / "eval" / "maths.jsonl"


def test_ours_are_those_of_a_prefix_lm() -> None:
    path = Path(SAMPLE_MODEL)
    pairs = pairs_of(path, QUESTIONS, limit=4)
    found = ours(path, pairs)
    assert found == pytest.approx(of_transformers(path, pairs, is_prefix=True), abs=1e-2)
    assert found != pytest.approx(of_transformers(path, pairs, is_prefix=False), abs=1e-2)


def test_a_server_that_tells_none_is_none() -> None:
    sides = {"this fleet": [-2.0, -4.0], "one": [-2.5, None], "other": [None, None]}
    assert table(sides).splitlines()[2:] == [
        "| this fleet | -3.000 | 0 | 2 of 2 |",
        "| one | -2.500 | 0.5 | 0 of 2 |",
        "| other | tells none | | |",
    ]


def test_the_command_prints_a_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["likelihoods", str(SAMPLE_MODEL), "--questions", str(QUESTIONS), "--limit", "2"]
    monkeypatch.setattr("sys.argv", words)
    main()
    printed = capsys.readouterr().out
    assert "| this fleet | " in printed
    assert "| transformers, unmarked | " in printed
