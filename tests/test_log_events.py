"""The catalogue of log events in docs/logs.md agrees with the code."""

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
    """Call of a logger, as the source has it.

    `levels` are written as in the catalogue. `fields` are those that can be read off the call, None
    if none can.
    """

    where: str
    event: str
    logger: str
    levels: str
    fields: frozenset[str] | None
    num_arguments: int


def calls_of(source: str, where: str = "") -> Iterator[LogCall]:
    """Read every call of a logger that this source names."""
    tree = ast.parse(source)
    loggers = loggers_of(tree)

    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue

        method = node.func.attr
        variable = ast.unparse(node.func.value)
        if variable not in loggers:
            continue

        if method in LEVELS:
            levels = LEVELS[method]
            arguments = node.args
        elif method == "log":
            levels = _levels(node.args[0])
            arguments = node.args[1:]
        else:
            continue

        position = f"{where}:{node.lineno}"
        event = arguments[0]
        assert isinstance(event, ast.Constant), (
            f"{position}: the event of a log line must be a constant"
        )

        yield LogCall(
            where=position,
            event=event.value,
            logger=loggers[variable],
            levels=levels,
            fields=_fields(node),
            num_arguments=len(arguments) - 1,
        )


def loggers_of(tree: ast.Module) -> dict[str, str]:
    """Return the name of each logger by the variable that holds it."""
    loggers = {}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Call):
            continue

        [variable, *_] = node.targets
        if not isinstance(variable, ast.Name):
            continue

        if ast.unparse(node.value.func) != "logging.getLogger":
            continue

        [name, *_] = node.value.args
        if isinstance(name, ast.Constant):
            loggers[variable.id] = str(name.value)

    return loggers


def _levels(level: ast.expr) -> str:
    """Return the levels that this expression can have, worst first."""
    names = set()
    for part in ast.walk(level):
        if isinstance(part, ast.Attribute):
            names.add(part.attr.lower())
    return ", ".join(name for name in ("error", "warning", "info", "debug") if name in names)


def _fields(call: ast.Call) -> frozenset[str] | None:
    extra = None
    for keyword in call.keywords:
        if keyword.arg == "extra":
            extra = keyword.value

    if extra is None:
        return frozenset()

    if not isinstance(extra, ast.Call):
        return None

    fields = set()
    if ast.unparse(extra.func) == "job_fields":
        fields = {"job_id", "request_id", "trace_id"}

    for keyword in extra.keywords:
        if keyword.arg:
            fields.add(keyword.arg)

    return frozenset(fields)


def all_calls() -> list[LogCall]:
    calls: list[LogCall] = []
    for room in ROOMS:
        for file in sorted((ROOT / room).rglob("*.py")):
            calls += calls_of(file.read_text(), str(file.relative_to(ROOT)))
    return calls


def catalogue() -> dict[tuple[str, str, str], str]:
    """Return the fields of each event by its name, logger and levels."""
    fields_of = {}
    for line in (ROOT / "docs" / "logs.md").read_text().splitlines():
        if "| aios." not in line:
            continue
        _, event, logger, levels, fields, *_ = [cell.strip() for cell in line.split("|")]
        fields_of[event.strip("`"), logger, levels] = fields
    return fields_of


def test_code_and_catalogue_agree() -> None:
    in_code = {(call.event, call.logger, call.levels) for call in all_calls()}
    assert in_code == set(catalogue())


def test_what_varies_is_in_fields() -> None:
    """The message of a log call is a constant name without arguments."""
    for call in all_calls():
        if call.event in EMBEDS:
            continue
        assert call.num_arguments == 0, call.where
        assert "%" not in call.event, call.where


def test_fields_are_listed() -> None:
    fields_of = catalogue()
    for call in all_calls():
        listed = fields_of[call.event, call.logger, call.levels]
        for name in call.fields or ():
            assert name in listed, f"{call.where}: docs/logs.md has no {name} for {call.event!r}"


def test_a_logger_that_is_not_ours_by_name_is_not_used() -> None:
    """Every logger has a name of ours.

    The catalogue lists it by that name, and `logging.yaml` can set its level.
    """
    for room in ROOMS:
        for file in (ROOT / room).rglob("*.py"):
            source = file.read_text()
            assert "logging.info(" not in source, file
            assert "logging.warning(" not in source, file
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
    assert call.event == "it broke"
    assert call.logger == "aios.x"
    assert call.levels == "warning"
    assert call.fields == {"job_id", "request_id", "trace_id", "model"}
