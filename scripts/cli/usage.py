"""`aios usage`: what the keys of a fleet have used, by day, tenant, key and model."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import partial
from typing import Any

import click

from scripts.cli.colours import coloured, with_bold_heading
from scripts.cli.fleet_tool import FleetFlags, ToolError, fleet_flags, run_tool
from shared.access import check_name
from shared.commands import Command, Flag
from shared.queue.broker import open_unsettled
from shared.queue.usage_ledger import (
    USAGE_COLUMNS,
    Usage,
    UsageField,
    UsageLedger,
    as_csv,
    grouped,
    total,
    usage_fields,
)
from shared.settings.command_line import redis_url
from shared.settings.settings import Settings

PROG = "aios usage"
_DAYS = 30
_DEFAULT_FIELDS = "day,tenant,key,model"


@click.pass_obj
def run(flags: FleetFlags, /, **asked: Any) -> int:
    """Print the usage and return the exit status, which is 1 without Redis."""
    return run_tool(PROG, flags, partial(_answer, Asked(**asked), as_json=flags.json))


@dataclass(frozen=True)
class Asked:
    """The days up to `end`, the tenant, and the fields by which the usage is summed up."""

    days: int
    end: date | None
    tenant: str | None
    by: list[UsageField]
    csv: bool


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ValueError(f"expected a day as 2026-10-31, got {text!r}") from None


async def _answer(asked: Asked, settings: Settings, *, as_json: bool) -> list[str]:
    """Read the usage, and return the lines to print. Raise ToolError for no days at all."""
    if asked.days < 1:
        raise ToolError(f"--days: expected at least 1, got {asked.days}")
    async with open_unsettled(redis_url(settings)) as unsettled:
        # How Redis is divided is read there.
        ledger = UsageLedger(await unsettled.as_settled())
        last = asked.end or await ledger.today()
        first = last - timedelta(days=asked.days - 1)
        rows = await ledger.read(first, last, tenant=asked.tenant)
    groups = grouped(rows, asked.by)
    if asked.csv:
        return as_csv(groups, asked.by).splitlines()
    if as_json:
        lines = []
        for group in groups:
            values = dict(zip(asked.by, group.values, strict=True))
            lines.append(json.dumps({**values, **group.usage.as_json()}))
        return lines
    if not groups:
        return [f"no job has ended from {first} to {last}"]
    cells = [[*group.values, *_cells(group.usage)] for group in groups]
    sums = ["total", *[""] * (len(asked.by) - 1), *_cells(total(rows))]
    lines = _table([*asked.by, *USAGE_COLUMNS], [*cells, sums], num_names=len(asked.by))
    return [*with_bold_heading(lines[:-1]), coloured(lines[-1], bold=True)]


def _cells(usage: Usage) -> list[str]:
    return [f"{value:,}" for value in usage.as_json().values()]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, num_names: int) -> list[str]:
    """Return the lines of a table. Names stand left in their columns, numbers right."""
    heads = [head.replace("_", " ") for head in heads]
    # A column of nothing but zeros tells nothing.
    shown = [
        index
        for index in range(len(heads))
        if index < num_names or any(row[index] not in ("0", "0.0") for row in rows)
    ]
    widths = [max(len(row[index]) for row in [heads, *rows]) for index in shown]
    lines = []
    for row in [heads, *rows]:
        cells = []
        for index, width in zip(shown, widths, strict=True):
            cell = row[index]
            cells.append(cell.ljust(width) if index < num_names else cell.rjust(width))
        lines.append("  ".join(cells).rstrip())
    return lines


command = Command(
    "usage",
    callback=run,
    params=[
        Flag(
            "--days",
            type=int,
            default=_DAYS,
            metavar="N",
            help=f"how many, up to the end (default: {_DAYS})",
        ),
        Flag("--end", type=_day, metavar="DAY", help="default: today"),
        Flag("--tenant", type=check_name, metavar="NAME", help="the keys of this tenant alone"),
        Flag(
            "--by",
            type=usage_fields,
            default=_DEFAULT_FIELDS,
            metavar="FIELD,FIELD",
            help=f"default: {_DEFAULT_FIELDS}",
        ),
        Flag("--csv", is_flag=True, help="print CSV"),
        *fleet_flags(),
    ],
    help="What keys have used: jobs count on the day, in UTC, on which they end.",
    examples=(
        "aios usage",
        "aios usage --days 7 --by tenant,model",
        "aios usage --end 2026-10-31 --days 31 --csv > october.csv",
    ),
)
