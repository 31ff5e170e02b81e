"""`aios ab`: compare models, by questions of one's own or by the traffic of a fleet."""

import asyncio
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click

from scripts.cli.ab import report, traffic_report
from scripts.cli.ab.asking import ask_sides
from scripts.cli.ab.comparison import Comparison, compare
from scripts.cli.ab.questions import graders, read_questions
from scripts.cli.ab.sides import Sampling, Side, side_of
from scripts.cli.colours import without_markup
from scripts.cli.fleet_tool import (
    EXIT_FAILED,
    FLEET,
    FleetFlags,
    ToolError,
    fleet_flags,
    run_tool,
    told,
)
from scripts.cli.local_fleet import PORT_HELP, choose_fleet
from shared.commands import EXIT_OK, Argument, Command, Flag, Group

PROG = "aios ab"
KEY_ENV = "AB_API_KEY"
_SHOWN_ERRORS = 5


def run(**given: Any) -> int:
    """Ask, print and write the comparison, and return the exit status.

    It is 1 if a request failed or the comparison could not be made.
    """
    return told(PROG, partial(_run, SimpleNamespace(**given)))


@click.pass_obj
def live_report(flags: FleetFlags, name: str) -> int:
    """Print how the arms of an experiment do, and return the exit status."""
    return run_tool(PROG, flags, partial(traffic_report.answer, name, as_json=flags.json))


def _run(args: SimpleNamespace) -> int:
    sides = _sides(args)
    questions = read_questions(args.questions)[: args.limit]
    sampling = Sampling(
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        seed=args.seed,
    )
    found = asyncio.run(
        ask_sides(
            sides,
            questions,
            sampling,
            concurrency=args.concurrency,
            key=os.environ.get(KEY_ENV),
        )
    )
    comparison = compare(
        questions, found, sampling, concurrency=args.concurrency, grader=args.grader
    )
    _write(args.json, report.as_json, comparison)
    _write(args.markdown, report.as_markdown, comparison)
    _write(args.html, report.as_html, comparison)
    print(without_markup(report.as_markdown(comparison)), end="")
    return _tell_errors(comparison)


def _sides(args: SimpleNamespace) -> list[Side]:
    """Return the sides with their templates and costs. Raise ToolError for less than two."""
    sides: list[Side] = list(args.sides)
    if args.models:
        url = args.url
        if url is None:
            url = choose_fleet(args.port, setting="url", given_by="--url").url
        for model in args.models.split(","):
            sides.append(Side(model, "aios", url.rstrip("/"), model))
    names = [side.name for side in sides]
    if len(sides) < 2 or len(set(names)) < len(names):
        raise ToolError(f"expected at least two sides with names of their own, got {names}")

    templates = _by_side(args.template, names, "--template")
    costs = _by_side(args.cost, names, "--cost")
    complete = []
    for side in sides:
        template = templates.get(side.name, side.template)
        if "{problem}" not in template:
            raise ToolError(f"--template: expected {{problem}} in {template!r}")
        cost = None
        if side.name in costs:
            try:
                cost = float(costs[side.name])
            except ValueError:
                raise ToolError(f"--cost: expected a number, got {costs[side.name]!r}") from None
        complete.append(replace(side, template=template, cost=cost))
    return complete


def _by_side(values: Sequence[str], names: Sequence[str], flag: str) -> dict[str, str]:
    """Return the values of a flag that is given as SIDE=VALUE, by the name of the side."""
    by_side = {}
    for value in values:
        name, equals, rest = value.partition("=")
        if not equals or name not in names:
            raise ToolError(f"{flag}: expected NAME=VALUE with one of {', '.join(names)}")
        by_side[name] = rest.replace("\\n", "\n")
    return by_side


def _write(path: Path | None, write: "report.Writer", comparison: Comparison) -> None:
    if path is None:
        return
    try:
        path.write_text(write(comparison), encoding="utf-8")
    except OSError as error:
        raise ToolError(f"{path}: {error}") from error


def _tell_errors(comparison: Comparison) -> int:
    errors: dict[str, None] = {}
    for row in comparison.rows:
        for side, error in zip(comparison.sides, row.errors, strict=True):
            if error is not None:
                errors[f"{side.name}: {error}"] = None
    for error in list(errors)[:_SHOWN_ERRORS]:
        print(f"{PROG}: {error}", file=sys.stderr)
    return EXIT_FAILED if errors else EXIT_OK


_FILE = click.Path(path_type=Path)
_ASKED = "Questions"
_SAMPLED = "Sampling"
_WRITTEN = "Reports"

command = Group(
    "ab",
    help="Compare models, by questions of one's own or by the traffic of a fleet.",
    examples=(
        "aios ab run --models hrm-text-math,baseline-math --questions questions.jsonl",
        "aios ab report fast-or-good",
    ),
    commands={
        "run": Command(
            "run",
            callback=run,
            params=[
                Argument(
                    "sides",
                    type=side_of,
                    nargs=-1,
                    required=False,
                    metavar="[NAME=]DIALECT:URL[#MODEL]...",
                    help="servers to compare; with --models the sides are models of one fleet",
                ),
                Flag("--models", metavar="ID,ID", help="models of one fleet", section=FLEET),
                Flag(
                    "--url",
                    metavar="URL",
                    help="the front of that fleet, instead of the local one",
                    section=FLEET,
                ),
                Flag("--port", type=int, metavar="N", help=PORT_HELP, section=FLEET),
                Flag(
                    "--questions",
                    "--prompts",
                    "questions",
                    type=_FILE,
                    required=True,
                    metavar="FILE",
                    help="a question a line: text, or in a .jsonl objects of prompt, answer, "
                    "reference, kind",
                    section=_ASKED,
                ),
                Flag(
                    "--limit",
                    type=int,
                    metavar="N",
                    help="ask only so many of them",
                    section=_ASKED,
                ),
                Flag(
                    "--grader",
                    type=click.Choice(graders()),
                    default="answer",
                    help="how answers are judged (default: answer)",
                    section=_ASKED,
                ),
                Flag(
                    "--template",
                    multiple=True,
                    metavar="NAME=TEXT",
                    help="how a side is asked, with {problem} where the question stands",
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
                    "--max-tokens",
                    type=int,
                    default=128,
                    metavar="N",
                    help="of an answer (default: 128)",
                    section=_SAMPLED,
                ),
                Flag(
                    "--temperature",
                    type=float,
                    default=0.0,
                    metavar="T",
                    help="default: 0",
                    section=_SAMPLED,
                ),
                Flag(
                    "--top-p",
                    type=float,
                    default=1.0,
                    metavar="P",
                    help="default: 1",
                    section=_SAMPLED,
                ),
                Flag(
                    "--seed",
                    type=int,
                    default=0,
                    metavar="N",
                    help="default: 0",
                    section=_SAMPLED,
                ),
                Flag(
                    "--cost",
                    multiple=True,
                    metavar="NAME=COST",
                    help="what an hour of a side costs",
                    section=_WRITTEN,
                ),
                Flag(
                    "--json",
                    type=_FILE,
                    metavar="FILE",
                    help="write the comparison there, as JSON",
                    section=_WRITTEN,
                ),
                Flag(
                    "--markdown",
                    type=_FILE,
                    metavar="FILE",
                    help="write it there, as Markdown",
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
            help="Ask two or more models or servers the same questions, and compare the answers.",
            examples=(
                "aios ab run --models hrm-text-math,baseline-math --questions questions.jsonl",
                "aios ab run aios:http://localhost:8000#hrm vllm=openai:http://localhost:8001/v1 "
                "--prompts p.txt",
            ),
        ),
        "report": Command(
            "report",
            callback=live_report,
            params=[Argument("name", help="of the experiment"), *fleet_flags()],
            help="How the arms of an experiment (the setting ab) do in live traffic.",
            examples=("aios ab report fast-or-good", "aios ab report fast-or-good --json"),
        ),
    },
)
