"""`aios usage`: what the keys of a fleet have used, by day, tenant, key and model."""

import argparse
import json
from collections.abc import Sequence
from datetime import date, timedelta

from scripts.cli.fleet_tool import ToolError, parser_of, run_tool
from shared.access import check_name
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


def main(argv: Sequence[str]) -> int:
    """Print the usage and return the exit status, which is 1 without Redis."""
    return run_tool(PROG, _parser().parse_args(argv), _answer)


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(
        PROG, "What keys have used: jobs count on the day, in UTC, on which they end."
    )
    parser.add_argument(
        "--days", type=int, default=_DAYS, help=f"how many, up to the end (default: {_DAYS})"
    )
    parser.add_argument("--end", type=date.fromisoformat, metavar="DAY", help="default: today")
    parser.add_argument("--tenant", type=check_name, help="the keys of this tenant alone")
    parser.add_argument(
        "--by",
        type=_fields,
        default=_DEFAULT_FIELDS,
        metavar="FIELD,FIELD",
        help=f"default: {_DEFAULT_FIELDS}",
    )
    parser.add_argument("--csv", action="store_true", help="print CSV")
    return parser


def _fields(text: str) -> list[UsageField]:
    try:
        return usage_fields(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


async def _answer(args: argparse.Namespace, settings: Settings) -> list[str]:
    """Read the usage, and return the lines to print. Raise ToolError for no days at all."""
    if args.days < 1:
        raise ToolError(f"--days: expected at least 1, got {args.days}")
    async with open_unsettled(redis_url(settings)) as unsettled:
        # How Redis is divided is read there.
        ledger = UsageLedger(await unsettled.as_settled())
        last = args.end or await ledger.today()
        first = last - timedelta(days=args.days - 1)
        rows = await ledger.read(first, last, tenant=args.tenant)
    groups = grouped(rows, args.by)
    if args.csv:
        return as_csv(groups, args.by).splitlines()
    if args.json:
        lines = []
        for group in groups:
            values = dict(zip(args.by, group.values, strict=True))
            lines.append(json.dumps({**values, **group.usage.as_json()}))
        return lines
    if not groups:
        return [f"no job has ended from {first} to {last}"]
    cells = [[*group.values, *_cells(group.usage)] for group in groups]
    sums = ["total", *[""] * (len(args.by) - 1), *_cells(total(rows))]
    return _table([*args.by, *USAGE_COLUMNS], [*cells, sums], num_names=len(args.by))


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
