"""`aios eval`: how many answers of models are right, and how soon, told beside earlier times."""

import asyncio
import os
import secrets
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import httpx
import msgspec

from api.evaluation.regressions import compared, sentence_of
from api.evaluation.report import Report
from api.evaluation.sets import EvalSet, chosen_sets, read_sets
from scripts.cli.colours import without_markup
from scripts.cli.evaluation.asking import FleetClient, evaluate
from scripts.cli.evaluation.history import add_to_history, read_history
from scripts.cli.evaluation.pages import as_html, as_markdown, listed
from scripts.cli.fleet_tool import EXIT_FAILED, FLEET, ToolError, told
from scripts.cli.local_fleet import PORT_HELP, choose_fleet
from shared.commands import EXIT_OK, Command, Flag, Group
from shared.errors import InvalidRequest

PROG = "aios eval"
KEY_ENV = "EVAL_API_KEY"
EXIT_REGRESSED = 3
REPORTS = Path("cache/eval_reports.json")
_TIMEOUT_S = 600


def run(**given: Any) -> int:
    """Ask, write a report and return the exit status.

    It is 1 if a request failed or nothing could be asked, and 3 with `--strict` after a regression.
    """
    return _told(partial(_run, SimpleNamespace(**given)))


def latest(reports: Path) -> int:
    """Print the last report and return the exit status, 1 if there is none."""
    return _told(partial(_latest, reports))


def history(reports: Path) -> int:
    """Print the list of reports and return the exit status."""
    print(without_markup(listed(read_history(reports))), end="")
    return EXIT_OK


def _told(run: Callable[[], int]) -> int:
    def refusing() -> int:
        try:
            return run()
        except InvalidRequest as error:
            raise ToolError(str(error)) from error

    return told(PROG, refusing)


def _run(args: SimpleNamespace) -> int:
    sets = _sets(args)
    history = read_history(args.reports)
    baselines = history if args.baseline is None else read_history(args.baseline)
    if args.baseline is not None and not baselines:
        raise ToolError(f"--baseline: no report in {args.baseline}")
    url = args.url or choose_fleet(args.port, setting="url", given_by="--url").url

    report = compared(asyncio.run(_asked(args, url, sets)), baselines)
    report = replace(report, is_accepted=args.accept)
    if not report.results:
        print(without_markup(as_markdown(report)), end="")
        raise ToolError("no set was asked: no model is served that can do them")
    add_to_history(args.reports, report, history)
    _write(args.json, msgspec.json.format(msgspec.json.encode(report), indent=1).decode())
    _write(args.html, as_html(report, history) if args.html is not None else "")
    print(without_markup(as_markdown(report)), end="")
    return _tell(report, is_strict=args.strict)


async def _asked(args: SimpleNamespace, url: str, sets: Sequence[EvalSet]) -> Report:
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


def _sets(args: SimpleNamespace) -> list[EvalSet]:
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


def _latest(reports: Path) -> int:
    history = read_history(reports)
    if not history:
        raise ToolError(f"no report in {reports}; `{PROG} run` writes one")
    print(without_markup(as_markdown(history[0])), end="")
    return EXIT_OK


def _reports_flag() -> Flag:
    return Flag(
        "--reports",
        type=click.Path(path_type=Path),
        default=REPORTS,
        metavar="FILE",
        help=f"the file of all reports (default: {REPORTS})",
    )


_FILE = click.Path(path_type=Path)
_ASKED = "Sets and models"
_WRITTEN = "Reports"

command = Group(
    "eval",
    help="""How many answers of models are right, and how soon they come, beside earlier times.

A figure that is worse than the last baseline allows is a regression: a median latency that is more
than a fifth longer, or an accuracy below the interval of the earlier one.""",
    examples=(
        "aios eval run --tasks text-classification,mathematics --strict",
        "aios eval latest",
    ),
    commands={
        "run": Command(
            "run",
            callback=run,
            params=[
                Flag(
                    "--tasks",
                    metavar="TASK,TASK",
                    help="of these sets only (default: all)",
                    section=_ASKED,
                ),
                Flag(
                    "--model",
                    metavar="ID",
                    help="the only model to ask (default: all that can do a task)",
                    section=_ASKED,
                ),
                Flag(
                    "--sets",
                    type=_FILE,
                    metavar="FOLDER",
                    help="of sets, instead of ours",
                    section=_ASKED,
                ),
                Flag(
                    "--limit",
                    type=int,
                    metavar="N",
                    help="only the first N items of each set",
                    section=_ASKED,
                ),
                Flag(
                    "--concurrency",
                    type=int,
                    default=1,
                    metavar="N",
                    help="requests under way at a time",
                    section=_ASKED,
                ),
                Flag(
                    "--url",
                    metavar="URL",
                    help="the front of the fleet, instead of the local one",
                    section=FLEET,
                ),
                Flag("--port", type=int, metavar="N", help=PORT_HELP, section=FLEET),
                _reports_flag(),
                Flag(
                    "--baseline",
                    type=_FILE,
                    metavar="FILE",
                    help="compare with these reports",
                    section=_WRITTEN,
                ),
                Flag(
                    "--strict",
                    is_flag=True,
                    help=f"exit with {EXIT_REGRESSED} if worse",
                    section=_WRITTEN,
                ),
                Flag(
                    "--accept",
                    is_flag=True,
                    help="let this one be the next baseline",
                    section=_WRITTEN,
                ),
                Flag(
                    "--json",
                    type=_FILE,
                    metavar="FILE",
                    help="write the report there, as JSON",
                    section=_WRITTEN,
                ),
                Flag(
                    "--html",
                    type=_FILE,
                    metavar="FILE",
                    help="write a page with plots there",
                    section=_WRITTEN,
                ),
            ],
            help="Ask the sets of assets/eval, and write a report.",
            examples=(
                "aios eval run --tasks mathematics",
                "aios eval run --model hrm-text-math --url http://localhost:8000 --html report.html",
                "aios eval run --strict --baseline main.json",
            ),
        ),
        "latest": Command(
            "latest",
            callback=latest,
            params=[_reports_flag()],
            help="Show the last report.",
            examples=("aios eval latest",),
        ),
        "history": Command(
            "history",
            callback=history,
            params=[_reports_flag()],
            help="List the reports, the latest first.",
            examples=("aios eval history --reports nightly.json",),
        ),
    },
)
