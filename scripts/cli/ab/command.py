"""`aios ab`: compare models, by questions of one's own or by the traffic of a fleet.

`run` asks two or more models or servers the same questions:

    aios ab run --models hrm-text-math,baseline-math --questions questions.jsonl --html report.html
    aios ab run aios:http://localhost:8000#hrm vllm=openai:http://localhost:8001/v1 --prompts p.txt

A side is [NAME=]DIALECT:URL[#MODEL]. With `--models` the sides are models of one fleet, by default
of the one that runs on this machine.

`report NAME` tells how the arms of an experiment (the setting `ab`) have done in live traffic.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from scripts.cli.ab import report, traffic_report
from scripts.cli.ab.asking import ask_sides
from scripts.cli.ab.comparison import Comparison, compare
from scripts.cli.ab.questions import graders, read_questions
from scripts.cli.ab.sides import Sampling, Side, side_of
from scripts.cli.fleet_tool import EXIT_FAILED, ToolError, flags, run_tool
from scripts.cli.local_fleet import PORT_HELP, choose_fleet
from shared.settings.command_line import EXIT_BAD_SETTINGS, EXIT_OK
from shared.settings.settings import SettingsError

PROG = "aios ab"
KEY_ENV = "AB_API_KEY"
_SHOWN_ERRORS = 5


def main(argv: Sequence[str]) -> int:
    """Run the command named by `argv` and return its exit status.

    It is 1 if a request failed or the comparison could not be made.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        status: int = args.run(args)
        return status
    except SettingsError as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return EXIT_BAD_SETTINGS
    except ToolError as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return EXIT_FAILED


def _report(args: argparse.Namespace) -> int:
    return run_tool(PROG, args, traffic_report.answer)


def _run(args: argparse.Namespace) -> int:
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
    print(report.as_markdown(comparison), end="")
    return _tell_errors(comparison)


def _sides(args: argparse.Namespace) -> list[Side]:
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="ask the same questions, and compare the answers")
    run.add_argument("sides", type=side_of, nargs="*", metavar="[NAME=]DIALECT:URL[#MODEL]")
    run.add_argument("--models", help="models of one fleet, with commas between")
    run.add_argument("--url", help="the front of that fleet, instead of the local one")
    run.add_argument("--port", type=int, help=PORT_HELP)
    run.add_argument(
        "--questions",
        "--prompts",
        type=Path,
        required=True,
        help="a question a line: text, or in a .jsonl objects of prompt, answer, reference, kind",
    )
    run.add_argument("--limit", type=int, help="ask only so many of them")
    run.add_argument("--grader", choices=graders(), default="answer", help="how answers are judged")
    run.add_argument("--template", action="append", default=[], metavar="NAME=TEXT with {problem}")
    run.add_argument("--cost", action="append", default=[], metavar="NAME=COST of an hour")
    run.add_argument("--max-tokens", type=int, default=128)
    run.add_argument("--temperature", type=float, default=0.0)
    run.add_argument("--top-p", type=float, default=1.0)
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--concurrency", type=int, default=1, help="requests under way at a time")
    run.add_argument("--json", type=Path, metavar="FILE")
    run.add_argument("--markdown", type=Path, metavar="FILE")
    run.add_argument("--html", type=Path, metavar="FILE")
    run.set_defaults(run=_run)

    live = commands.add_parser(
        "report", help="the arms of an experiment in live traffic", parents=[flags()]
    )
    live.add_argument("name", metavar="NAME", help="of the experiment")
    live.set_defaults(run=_report, redis_url=None, redis_shards=None, port=None, json=False)
    return parser
