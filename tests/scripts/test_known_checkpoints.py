"""`aios models known` lists public checkpoints that can be named as they are listed."""

import json
import re
import shlex

import pytest

from scripts.cli.aios import main
from scripts.cli.known_checkpoints import CHECKPOINTS, READ_ON
from shared.settings.hub_names import hub_name


def test_each_can_be_served_by_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    """The printed commands are accepted, and give each model an id."""
    assert main(["models", "known"]) == 0
    printed = capsys.readouterr().out
    commands = [line.strip() for line in printed.splitlines() if "aios serve hrm" in line]
    assert len(commands) == len(CHECKPOINTS)
    for command, checkpoint in zip(commands, CHECKPOINTS, strict=True):
        _, *words = shlex.split(command)
        assert main([*words, "--print-config"]) == 0
        assert checkpoint.path in capsys.readouterr().out
        assert hub_name(checkpoint.path) is not None
    assert READ_ON in printed


def test_facts_are_told_or_said_to_be_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "known", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len({row["path"] for row in rows}) == len(rows) == len(CHECKPOINTS)
    for row in rows:
        assert row["family"] in ("HRM", "TRM", "HRM-Text")
        assert row["licence"] in ("Apache-2.0", "MIT", "not seen")
        assert re.search(r"\d (MB|GB)|not seen", row["size"])
        assert row["expect"]
        assert row["source"]
