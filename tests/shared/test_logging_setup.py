"""Log lines have a format for machines and one for people.

A bad `logging.yaml` does not keep a process from starting.
"""

import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.messages import Generate, Job, Sampling
from shared.telemetry.logging_setup import chosen_style, configure_logging, fields, job_fields
from shared.telemetry.tracing import Trace


@pytest.fixture(autouse=True)
def root_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers = root.handlers[:]
    level = root.level
    yield
    root.handlers[:] = handlers
    root.level = level


def test_json_lines_carry_the_fields(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    configure_logging("info", "json", tmp_path / "none.yaml")
    logging.getLogger("x").info("hello", extra={"fields": {"request_id": "r1", "ms": 2.5}})
    line = json.loads(capsys.readouterr().err)
    assert line["message"] == "hello"
    assert line["request_id"] == "r1"
    assert line["ms"] == 2.5
    assert line["level"] == "info"


def test_console_lines_are_for_people(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    configure_logging("warning", "console", tmp_path / "none.yaml")
    logging.getLogger("x").info("not shown")
    logging.getLogger("x").warning("shown", extra={"fields": {"route": "/generate"}})
    assert capsys.readouterr().err.rstrip().endswith("WARNING x: shown route='/generate'")


@pytest.mark.parametrize(("is_terminal", "style"), [(True, "console"), (False, "json")])
def test_auto_is_for_people_on_a_terminal(
    is_terminal: bool, style: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: is_terminal)
    assert chosen_style("auto") == style
    assert chosen_style("json") == "json"
    assert chosen_style("classic") == "classic"


def test_a_warning_of_a_library_is_a_line_too() -> None:
    # In a process of its own, since pytest takes warnings for itself.
    code = """
import warnings
from shared.telemetry.logging_setup import configure_logging
configure_logging("info", "auto")
warnings.warn("odd weights")
"""
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    line = json.loads(result.stderr)
    assert line["level"] == "warning"
    assert line["logger"] == "py.warnings"
    assert "odd weights" in line["message"]


def test_a_logging_yaml_is_honoured(tmp_path: Path) -> None:
    """A66, A94: the levels of a `logging.yaml` apply."""
    config = tmp_path / "logging.yaml"
    config.write_text(
        "{version: 1, disable_existing_loggers: false, loggers: {a66: {level: ERROR}}}"
    )
    configure_logging("info", "console", config)
    assert logging.getLogger("a66").level == logging.ERROR


@pytest.mark.parametrize(
    "text", ["{version: 1, handlers: {h: {class: aios.utils.async_logging.H}}}", "[", "3"]
)
def test_a_logging_yaml_for_another_program_is_passed_over(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """X12: AI-OS's own file names classes that are not here."""
    config = tmp_path / "logging.yaml"
    config.write_text(text)
    configure_logging("info", "console", config)
    logging.getLogger("x").info("goes on")
    shown = capsys.readouterr().err
    assert "passed over" in shown
    assert "goes on" in shown


def test_the_classic_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """C46: the classic format has the fields behind the message."""
    configure_logging("info", "classic", tmp_path / "none.yaml")
    logging.getLogger("aios.x").info("it is so", extra=fields(count=2, model="m", nothing=None))
    line = capsys.readouterr().err.rstrip()
    time, rest = line.split(" - ", maxsplit=1)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}", time)
    assert rest == "aios.x - INFO - it is so count=2 model='m'"


def test_a_line_about_a_job_tells_whose_it_is() -> None:
    task = Generate("hi", Sampling(max_tokens=1, seed=0))
    trace = Trace(f"00-{'a' * 32}-{'b' * 16}-01")
    assert job_fields(Job("j", "m", task, request_id="r", trace=trace), epoch=2) == {
        "fields": {"job_id": "j", "request_id": "r", "trace_id": "a" * 32, "epoch": 2}
    }
    assert job_fields(Job("j", "m", task)) == {"fields": {"job_id": "j"}}
