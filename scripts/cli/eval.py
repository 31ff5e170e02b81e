"""`aios eval`: how many answers of models are right, and how soon they come, told beside earlier times.

`run` asks a fleet the sets of `assets/eval` and writes a report:

    aios eval run --tasks text-classification,mathematics --strict
    aios eval run --model hrm-text-math --url http://localhost:8000 --html report.html

A figure that is worse than the last baseline allows is a regression: a median latency that is more
than a fifth longer, or an accuracy below the interval of the earlier one. `latest` and `history` show
reports that were written before.
"""

import argparse
import asyncio
import os
import secrets
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import httpx
import msgspec

from api.evaluation.regressions import compared, sentence_of
from api.evaluation.report import Report
from api.evaluation.sets import EvalSet, chosen_sets, read_sets
from scripts.cli.evaluation.asking import FleetClient, evaluate
from scripts.cli.evaluation.history import add_to_history, read_history
from scripts.cli.evaluation.pages import as_html, as_markdown, listed
from scripts.cli.fleet_tool import EXIT_FAILED, ToolError
from scripts.cli.local_fleet import PORT_HELP, choose_fleet
from shared.errors import InvalidRequest
from shared.settings.command_line import EXIT_BAD_SETTINGS, EXIT_OK
from shared.settings.settings import SettingsError

PROG = "aios eval"
KEY_ENV = "EVAL_API_KEY"
EXIT_REGRESSED = 3
REPORTS = Path("cache/eval_reports.json")
_TIMEOUT_S = 600


def main(argv: Sequence[str]) -> int:
    """Run the command named by `argv` and return its exit status.

    It is 1 if a request failed or nothing could be asked, and 3 with `--strict` after a regression.
    """
    args = _parser().parse_args(argv)
    try:
        status: int = args.run(args)
        return status
    except SettingsError as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return EXIT_BAD_SETTINGS
    except (ToolError, InvalidRequest) as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return EXIT_FAILED


def _run(args: argparse.Namespace) -> int:
    sets = _sets(args)
    history = read_history(args.reports)
    baselines = history if args.baseline is None else read_history(args.baseline)
    if args.baseline is not None and not baselines:
        raise ToolError(f"--baseline: no report in {args.baseline}")
    url = args.url or choose_fleet(args.port, setting="url", given_by="--url").url

    report = compared(asyncio.run(_asked(args, url, sets)), baselines)
    report = replace(report, is_accepted=args.accept)
    if not report.results:
        print(as_markdown(report), end="")
        raise ToolError("no set was asked: no model is served that can do them")
    add_to_history(args.reports, report, history)
    _write(args.json, msgspec.json.format(msgspec.json.encode(report), indent=1).decode())
    _write(args.html, as_html(report, history) if args.html is not None else "")
    print(as_markdown(report), end="")
    return _tell(report, is_strict=args.strict)


async def _asked(args: argparse.Namespace, url: str, sets: Sequence[EvalSet]) -> Report:
    key = os.environ.get(KEY_ENV)
    # Answers that were given before take no time.
    headers = {"Cache-Control": "no-store"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    async with httpx.AsyncClient(base_url=url, timeout=_TIMEOUT_S, headers=headers) as client:
        return await evaluate(
            FleetClient(client),
            sets,
            id=f"{datetime.now(UTC):eval-%Y%m%d-%H%M%S}-{secrets.token_hex(2)}",
            model=args.model,
            concurrency=args.concurrency,
            note=lambda line: print(f"{PROG}: {line}", file=sys.stderr),
        )


def _sets(args: argparse.Namespace) -> list[EvalSet]:
    """Return the sets to ask. Raise ToolError and InvalidRequest."""
    try:
        found = read_sets(args.sets)
    except ValueError as error:
        raise ToolError(str(error)) from error
    tasks = None if args.tasks is None else args.tasks.split(",")
    sets = []
    for one in chosen_sets(found, tasks):
        sets.append(msgspec.structs.replace(one, items=one.items[: args.limit]))
    return sets


def _write(path: Path | None, text: str) -> None:
    if path is None:
        return
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ToolError(f"{path}: {error}") from error


def _tell(report: Report, *, is_strict: bool) -> int:
    """Warn of regressions and errors on stderr, and return the exit status."""
    for result, regression in report.regressions:
        print(f"{PROG}: warning: {sentence_of(result, regression)}", file=sys.stderr)
    for skipped in report.refused:
        name = f"{skipped.task} by {skipped.model}"
        print(f"{PROG}: warning: {name}: answered in {skipped.baseline}", file=sys.stderr)
    has_errors = False
    for result in report.results:
        for item in result.items:
            if item.error is not None:
                has_errors = True
                print(f"{PROG}: {result.task}, {item.id}: {item.error}", file=sys.stderr)
    is_worse = bool(report.regressions or report.refused)
    if is_worse and is_strict and not report.is_accepted:
        return EXIT_REGRESSED
    return EXIT_FAILED if has_errors else EXIT_OK


def _latest(args: argparse.Namespace) -> int:
    history = read_history(args.reports)
    if not history:
        raise ToolError(f"no report in {args.reports}")
    print(as_markdown(history[0]), end="")
    return EXIT_OK


def _history(args: argparse.Namespace) -> int:
    print(listed(read_history(args.reports)), end="")
    return EXIT_OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    kept = argparse.ArgumentParser(add_help=False)
    kept.add_argument(
        "--reports",
        type=Path,
        default=REPORTS,
        metavar="FILE",
        help=f"the file of all reports (default: {REPORTS})",
    )
    run = commands.add_parser("run", help="ask, and write a report", parents=[kept])
    run.add_argument("--tasks", metavar="TASK,TASK", help="of these sets only (default: all)")
    run.add_argument("--model", help="the only model to ask (default: all that can do a task)")
    run.add_argument("--url", help="the front of the fleet, instead of the local one")
    run.add_argument("--port", type=int, help=PORT_HELP)
    run.add_argument("--sets", type=Path, metavar="FOLDER", help="of sets, instead of ours")
    run.add_argument("--limit", type=int, metavar="N", help="only the first N items of each set")
    run.add_argument("--concurrency", type=int, default=1, help="requests under way at a time")
    run.add_argument("--baseline", type=Path, metavar="FILE", help="compare with these reports")
    run.add_argument("--strict", action="store_true", help=f"exit with {EXIT_REGRESSED} if worse")
    run.add_argument("--accept", action="store_true", help="let this one be the next baseline")
    run.add_argument("--json", type=Path, metavar="FILE")
    run.add_argument("--html", type=Path, metavar="FILE")
    run.set_defaults(run=_run)
    latest = commands.add_parser("latest", help="show the last report", parents=[kept])
    latest.set_defaults(run=_latest)
    history = commands.add_parser("history", help="list the reports", parents=[kept])
    history.set_defaults(run=_history)
    return parser
