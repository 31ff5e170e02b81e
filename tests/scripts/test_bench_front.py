"""The front's benchmark prints a row of answers and one of refusals, and nothing else came."""

import pytest

from scripts.bench import front


def test_answers_and_refusals_are_timed(capsys: pytest.CaptureFixture[str]) -> None:
    front.main(["--fronts", "2", "--seconds", "0.3", "--clients", "4"])
    rows = capsys.readouterr().out.splitlines()[-2:]
    assert len(rows) == 2
    for row in rows:
        assert row.startswith("2 front(s), 4 clients")
        assert "p99" in row
        assert row.endswith("others: none")
