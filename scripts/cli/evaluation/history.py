"""The file of reports, by default `cache/eval_reports.json`: the newest first."""

import os
from pathlib import Path

import msgspec

from api.evaluation.report import Report
from scripts.cli.fleet_tool import ToolError

_MOST_KEPT = 50


class _File(msgspec.Struct):
    reports: list[Report]


def read_history(file: Path) -> list[Report]:
    """Return the reports of a file, none if there is no file. Raise ToolError for another file."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=_File).reports
    except FileNotFoundError:
        return []
    except (OSError, msgspec.DecodeError) as error:
        raise ToolError(f"{file}: {error}") from error


def add_to_history(file: Path, report: Report, history: list[Report]) -> None:
    """Write a report in front of the earlier ones, of which the oldest are left out."""
    content = _File([report, *history][:_MOST_KEPT])
    # Written beside its place first: whoever reads meanwhile finds the old file whole.
    unfinished = file.with_name(f"{file.name}.{os.getpid()}.new")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=1))
        unfinished.replace(file)
    except OSError as error:
        raise ToolError(f"{file}: {error}") from error
