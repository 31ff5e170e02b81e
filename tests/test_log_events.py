"""The catalogue of log events in docs/logs.md and the code say the same."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("api", "shared", "worker", "scripts")
LEVELS = {
    "debug": "debug",
    "info": "info",
    "warning": "warning",
    "error": "error",
    "exception": "error",
}
EMBEDS = {"Processing request: %s"}  # C47 wants the text in the message


@dataclass(frozen=True)
class LogCall:
    """`levels` are as the catalogue has them; `fields` are those that can be read off the call,
    None if none can."""

    where: str
    event: str
    logger: str
    levels: str
    fields: frozenset[str] | None
    num_arguments: int


def calls_of(source: str, where: str = "") -> Iterator[LogCall]:
    tree = ast.parse(source)
    loggers = {
        node.targets[0].id: node.value.args[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Call)
        and ast.unparse(node.value.func) == "logging.getLogger"
        and isinstance(node.value.args[0], ast.Constant)
    }
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        name = ast.unparse(node.func.value)
        if name not in loggers or node.func.attr not in (*LEVELS, "log"):
            continue
        arguments = node.args[1:] if node.func.attr == "log" else node.args
        levels = LEVELS.get(node.func.attr) or _levels(node.args[0])
        place = f"{where}:{node.lineno}"
        assert isinstance(arguments[0], ast.Constant), (
            f"{place}: the event of a log line must be a constant"
        )
        yield LogCall(
            place, arguments[0].value, str(loggers[name]), levels, _fields(node), len(arguments) - 1
        )


def _levels(level: ast.expr) -> str:
    names = {part.attr.lower() for part in ast.walk(level) if isinstance(part, ast.Attribute)}
    return ", ".join(name for name in ("error", "warning", "info", "debug") if name in names)


def _fields(call: ast.Call) -> frozenset[str] | None:
    extra = next((keyword.value for keyword in call.keywords if keyword.arg == "extra"), None)
    if extra is None:
        return frozenset()
    if not isinstance(extra, ast.Call):
        return None
    of_job = (
        {"job_id", "request_id", "trace_id"} if ast.unparse(extra.func) == "job_fields" else set()
    )
    return frozenset(of_job | {keyword.arg for keyword in extra.keywords if keyword.arg})


def all_calls() -> list[LogCall]:
    files = (file for room in ROOMS for file in sorted((ROOT / room).rglob("*.py")))
    return [
        call for file in files for call in calls_of(file.read_text(), str(file.relative_to(ROOT)))
    ]


def catalogue() -> dict[tuple[str, str, str], str]:
    """The fields of each event, by its name, logger and levels."""
    rows = [
        line.split("|")[1:-1]
        for line in (ROOT / "docs" / "logs.md").read_text().splitlines()
        if "| aios." in line
    ]
    return {
        (row[0].strip().strip("`"), row[1].strip(), row[2].strip()): row[3].strip() for row in rows
    }


def test_code_and_catalogue_agree() -> None:
    in_code = {(call.event, call.logger, call.levels) for call in all_calls()}
    assert in_code == set(catalogue())


def test_what_varies_is_in_fields() -> None:
    """The message is a name; a call has no arguments to put into it."""
    assert [
        call.where for call in all_calls() if call.num_arguments and call.event not in EMBEDS
    ] == []
    assert [
        call.where for call in all_calls() if "%" in call.event and call.event not in EMBEDS
    ] == []


def test_fields_are_listed() -> None:
    listed = catalogue()
    for call in all_calls():
        row = listed[call.event, call.logger, call.levels]
        missing = [name for name in call.fields or () if name not in row]
        assert not missing, (
            f"{call.where}: docs/logs.md has no {', '.join(missing)} for {call.event!r}"
        )


def test_a_logger_that_is_not_ours_by_name_is_not_used() -> None:
    """Every logger is named, so that the catalogue can be held against it, and `logging.yaml` can
    set it apart."""
    for room in ROOMS:
        for file in (ROOT / room).rglob("*.py"):
            source = file.read_text()
            assert "logging.info(" not in source and "logging.warning(" not in source, file
            assert "getLogger(__name__)" not in source, file


@pytest.mark.parametrize(
    "planted", ["log.info(f'{x} is here')", "log.info('it ' + x)", "log.log(logging.INFO, name)"]
)
def test_a_planted_message_that_varies_is_caught(planted: str) -> None:
    with pytest.raises(AssertionError, match="must be a constant"):
        list(calls_of(f"log = logging.getLogger('aios.x')\n{planted}"))


def test_a_planted_call_is_read() -> None:
    source = (
        "log = logging.getLogger('aios.x')\nlog.warning('it broke', extra=job_fields(job, model=m))"
    )
    [call] = calls_of(source)
    assert (call.event, call.logger, call.levels) == ("it broke", "aios.x", "warning")
    assert call.fields == {"job_id", "request_id", "trace_id", "model"}
