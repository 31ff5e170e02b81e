"""The GPU benchmark runs to its end without a GPU, which is too rare to test it on."""

import pytest

from scripts.bench import gpu


def test_every_part_runs_and_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--small"]) == 0
    printed = capsys.readouterr().out
    assert "Traceback" not in printed
    for line in (
        "# device: ",
        "batch   2: step",
        "2 x 64 tokens",
        "ours are transformers' in 100.0%",
    ):
        assert line in printed


def test_a_part_that_fails_is_shown_and_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(gpu, "print_decode", fail)
    assert gpu.main(["--small"]) == 1
    printed = capsys.readouterr().out
    assert printed.count("RuntimeError: out of memory") == 3
    assert "ours are transformers' in" in printed
