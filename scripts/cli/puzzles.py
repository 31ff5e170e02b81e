"""`aios puzzles solve`: a file of puzzles in, a line of JSON for each of them out.

A fleet solves them, or a model that is loaded into this process. A run that was ended goes on when
the same command is given again.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, get_args

from scripts.cli.flag_types import count, http_url
from scripts.cli.fleet_tool import EXIT_FAILED, ToolError
from scripts.cli.local_fleet import PORT_HELP, choose_fleet
from scripts.cli.runs.output import Output, RunHeader
from scripts.cli.runs.progress import Progress
from scripts.cli.solving.fleet_solver import FleetSolver
from scripts.cli.solving.groups import Group, Solved, groups_of, line_of
from scripts.cli.solving.puzzle_files import Id, open_puzzles
from scripts.cli.solving.tally import PuzzleTally, summary
from shared.messages import Halt, Select
from shared.settings.command_line import EXIT_BAD_SETTINGS, EXIT_INTERRUPTED, EXIT_OK
from shared.settings.settings import SettingsError

PROG = "aios puzzles"
_OUT_SUFFIX = ".solved.jsonl"


class Solver(Protocol):
    """Solves groups of puzzles, by a fleet or in this process."""

    def solve_all(self, groups: Iterator[Group]) -> Iterator[Solved]:
        """Yield the groups as they are solved, in any order."""
        ...


def main(argv: Sequence[str]) -> int:
    """Run the command named by `argv` and return its exit status.

    It is 1 if a puzzle was not solved or the run could not go on, and 130 after Ctrl-C.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    if args.path is not None and (args.server_url or args.port or args.model or args.api_key):
        parser.error("--path solves in this process, without a fleet and its models and keys")
    try:
        return _solve(args)
    except SettingsError as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return EXIT_BAD_SETTINGS
    except ToolError as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return EXIT_FAILED


def _solve(args: argparse.Namespace) -> int:
    """Solve the puzzles that have no line in the output yet, and return the exit status."""
    puzzles = open_puzzles(args.file, args.identifier_format)
    out = args.out
    if out is None:
        # The directory `.` has its name only when it is resolved.
        out = args.file.parent / f"{args.file.resolve().name}{_OUT_SUFFIX}"
    if out.resolve() == args.file.resolve():
        raise ToolError(f"{out}: expected another file for the answers")
    header = RunHeader(puzzles.digest(), _options_of_run(args))
    # A mistake in the file is found before anything is solved.
    total = puzzles.count(args.limit)

    with ExitStack() as stack:
        tally = PuzzleTally()
        opened = Output(out, header, tally, _id_of, restarts=args.restart)
        output = stack.enter_context(closing(opened))
        progress = Progress(sys.stderr, total, is_shown=not args.no_progress)
        solver = _solver(args, output.header.id, progress, stack)
        num_before = tally.num_done
        started_s = time.monotonic()
        groups = groups_of(islice(puzzles.records(), args.limit), args.batch)
        progress.draw(tally, num_new=0)
        try:
            for group, answers in solver.solve_all(_open_groups(groups, output.done)):
                pairs = zip(group, answers, strict=True)
                output.write([line_of(record, answer) for record, answer in pairs])
                progress.draw(tally, tally.num_done - num_before)
        except (KeyboardInterrupt, ToolError) as error:
            progress.clear()
            done = f"{tally.num_done} of {total} puzzles are in {out}"
            print(f"{PROG}: {done}; the same command goes on from there", file=sys.stderr)
            if isinstance(error, KeyboardInterrupt):
                return EXIT_INTERRUPTED
            raise
        progress.clear()

    num_new = tally.num_done - num_before
    print(*summary(tally, num_new, time.monotonic() - started_s), out, sep="\n")
    return EXIT_FAILED if tally.num_errors else EXIT_OK


def _id_of(line: Mapping[str, Any]) -> Id:
    return line["id"]  # type: ignore[no-any-return]


def _open_groups(groups: Iterator[Group], done: Set[Id]) -> Iterator[Group]:
    """Yield the groups without the puzzles that are done.

    They are divided first, so that the others are asked for in the same requests as before.
    """
    for group in groups:
        is_open = [record for record in group if record.id not in done]
        if is_open:
            yield is_open


def _options_of_run(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options on which the answers depend."""
    path = None
    if args.path is not None:
        path = str(args.path.absolute())
    return {
        "model": args.model,
        "path": path,
        "identifier_format": args.identifier_format,
        **_solve_options(args),
    }


def _solve_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options that are given, under their names in a request."""
    options = {}
    for flag in _SOLVE_FLAGS:
        name = flag.removeprefix("--").replace("-", "_")
        value = getattr(args, name)
        if value is not None:
            options[name] = value
    return options


def _solver(args: argparse.Namespace, run_id: str, progress: Progress, stack: ExitStack) -> Solver:
    """Return a solver. A model that it loads is freed at the end of `stack`.

    Raise SettingsError if no fleet runs here, or if the model cannot be loaded.
    """
    options = _solve_options(args)
    if args.path is not None:
        # torch is loaded only where it is needed.
        from scripts.cli.aios import require_extras

        require_extras("worker")
        from scripts.cli.solving.local_solver import LocalSolver
        from worker.llm import LLM

        llm = stack.enter_context(LLM(args.path, max_batch_size=args.batch))
        return LocalSolver(llm, options)

    if args.model is not None:
        options["model"] = args.model
    return FleetSolver(
        args.server_url or _local_url(args.port),
        run_id,
        fields=options,
        concurrency=args.concurrency,
        patience_s=args.patience,
        note=lambda text: progress.note(f"{PROG}: {text}"),
        api_key=args.api_key,
    )


def _local_url(port: int | None) -> str:
    """Return the URL of the fleet that runs on this machine. Raise SettingsError."""
    fleet = choose_fleet(port, setting="server_url", given_by="--server-url")
    if not fleet.port:
        raise SettingsError(
            f"server_url: the front of the fleet of process {fleet.pid} is in another server; name "
            "its URL by --server-url"
        )
    return fleet.url


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG, description="Puzzles for the networks that solve them."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    solve = commands.add_parser(
        "solve",
        help="solve a file of puzzles",
        description=(
            "Solve a file of puzzles: lines of a Sudoku each, CSV with a column question or puzzle, "
            "mazes of '# SGo', ARC tasks (a file or a directory), or JSON Lines with grid or "
            "puzzle. The same command goes on with a run that was ended."
        ),
    )
    solve.add_argument("file", type=Path, help="the puzzles; their format is found out")
    solve.add_argument(
        "--out",
        type=Path,
        help=f"where the answers are written, a line of JSON for each (default: FILE{_OUT_SUFFIX})",
    )
    solve.add_argument("--restart", action="store_true", help="begin anew, and drop what is there")
    solve.add_argument("--limit", type=count, metavar="N", help="solve only the first N")
    solve.add_argument("--no-progress", action="store_true", help="draw no progress")
    for flag, kind in _SOLVE_FLAGS.items():
        solve.add_argument(flag, **kind)
    solve.add_argument(
        "--identifier-format",
        metavar="TEXT",
        help=(
            "tell the network which ARC task a puzzle is of, by this name, in which {task} is the "
            "task's (default: by none); HRM and TRM call a task that is not augmented {task}"
        ),
    )
    solve.add_argument(
        "--batch", type=count, default=16, metavar="N", help="puzzles in one request (default 16)"
    )

    fleet = solve.add_argument_group("by a fleet")
    fleet.add_argument("--model", help="which of its models (default: its default one)")
    fleet.add_argument(
        "--server-url",
        type=http_url,
        metavar="URL",
        help="its front (default: the fleet that runs here)",
    )
    fleet.add_argument("--port", type=int, help=PORT_HELP)
    fleet.add_argument("--api-key", metavar="KEY", help="a key that it gave out")
    fleet.add_argument(
        "--concurrency", type=count, default=4, metavar="N", help="requests at a time (default 4)"
    )
    fleet.add_argument(
        "--patience",
        type=count,
        default=300,
        metavar="SECONDS",
        help="how long it may be away before the run ends (default 300)",
    )

    here = solve.add_argument_group("in this process")
    here.add_argument("--path", type=Path, metavar="MODEL", help="directory or file of a model")
    return parser


_SOLVE_FLAGS: dict[str, dict[str, Any]] = {
    "--halt": {"choices": get_args(Halt), "help": "when a network stops (default: the model's)"},
    "--max-steps": {"type": int, "metavar": "N", "help": "most steps (default: the model's)"},
    "--samples": {
        "type": int,
        "metavar": "N",
        "help": "times that each puzzle is solved, all but the first with noise (default 1)",
    },
    "--noise": {"type": float, "metavar": "SIGMA", "help": "standard deviation of the noise"},
    "--select": {
        "choices": get_args(Select),
        "help": "the answer among the samples (default: the surest)",
    },
    "--seed": {"type": int, "metavar": "N", "help": "of the noise (default: drawn by the fleet)"},
}
"""The flags that are options of the solving, named as in a request and in `LLM.solve`."""
