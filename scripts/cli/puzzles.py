"""`aios puzzles solve`: a file of puzzles in, a line of JSON for each of them out.

A fleet solves them, or a model that is loaded into this process. A run that was ended goes on when
the same command is given again.
"""

import sys
import time
from collections.abc import Iterator, Mapping, Set
from contextlib import ExitStack, closing
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol, get_args

import click

from scripts.cli.flag_types import count, http_url
from scripts.cli.fleet_tool import EXIT_FAILED, ToolError, told
from scripts.cli.local_fleet import PORT_HELP, choose_fleet
from scripts.cli.runs.output import Output, RunHeader
from scripts.cli.runs.progress import Progress, waiting
from scripts.cli.solving.fleet_solver import FleetSolver
from scripts.cli.solving.groups import Group, Solved, groups_of, line_of
from scripts.cli.solving.puzzle_files import Id, open_puzzles
from scripts.cli.solving.tally import PuzzleTally, summary
from shared.commands import EXIT_INTERRUPTED, EXIT_OK, Argument, Command, Flag
from shared.commands import Group as CommandGroup
from shared.messages import Halt, Select
from shared.settings.settings import SettingsError

PROG = "aios puzzles"
_OUT_SUFFIX = ".solved.jsonl"


class Solver(Protocol):
    """Solves groups of puzzles, by a fleet or in this process."""

    def solve_all(self, groups: Iterator[Group]) -> Iterator[Solved]:
        """Yield the groups as they are solved, in any order."""
        ...


def run(**given: Any) -> int:
    """Solve a file of puzzles and return the exit status.

    It is 1 if a puzzle was not solved or the run could not go on, and 130 after Ctrl-C.
    """
    args = SimpleNamespace(**given)
    if args.path is not None and (args.server_url or args.port or args.model or args.api_key):
        raise click.UsageError(
            "--path solves in this process, without a fleet and its models and keys",
            click.get_current_context(),
        )
    return told(PROG, partial(_solve, args))


def _solve(args: SimpleNamespace) -> int:
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


def _options_of_run(args: SimpleNamespace) -> dict[str, Any]:
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


def _solve_options(args: SimpleNamespace) -> dict[str, Any]:
    """Return the options that are given, under their names in a request."""
    options = {}
    for flag in _SOLVE_FLAGS:
        name = flag.removeprefix("--").replace("-", "_")
        value = getattr(args, name)
        if value is not None:
            options[name] = value
    return options


def _solver(args: SimpleNamespace, run_id: str, progress: Progress, stack: ExitStack) -> Solver:
    """Return a solver. A model that it loads is freed at the end of `stack`.

    Raise SettingsError if no fleet runs here, or if the model cannot be loaded.
    """
    options = _solve_options(args)
    if args.path is not None:
        # torch is loaded only where it is needed.
        from scripts.cli.extras import require_extras

        require_extras("worker")
        from scripts.cli.solving.local_solver import LocalSolver
        from worker.llm import LLM

        with waiting(f"loading {args.path}"):
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


_SOLVE_FLAGS: dict[str, dict[str, Any]] = {
    "--halt": {
        "type": click.Choice(get_args(Halt)),
        "help": "when a network stops (default: the model's)",
    },
    "--max-steps": {"type": int, "metavar": "N", "help": "most steps (default: the model's)"},
    "--samples": {
        "type": int,
        "metavar": "N",
        "help": "times that each puzzle is solved, all but the first with noise (default 1)",
    },
    "--noise": {"type": float, "metavar": "SIGMA", "help": "standard deviation of the noise"},
    "--select": {
        "type": click.Choice(get_args(Select)),
        "help": "the answer among the samples (default: the surest)",
    },
    "--seed": {"type": int, "metavar": "N", "help": "of the noise (default: drawn by the fleet)"},
}
"""The flags that are options of the solving, named as in a request and in `LLM.solve`."""


def _params() -> list[click.Parameter]:
    params: list[click.Parameter] = [
        Argument("file", type=_FILE, help="the puzzles; their format is found out"),
        Flag(
            "--out",
            type=_FILE,
            metavar="FILE",
            help=f"where the answers are written, a line of JSON for each (default: FILE{_OUT_SUFFIX})",
        ),
        Flag("--restart", is_flag=True, help="begin anew, and drop what is there"),
        Flag("--limit", type=count, metavar="N", help="solve only the first N"),
        Flag("--no-progress", is_flag=True, help="draw no progress"),
    ]
    params += [Flag(flag, section="Solving", **kind) for flag, kind in _SOLVE_FLAGS.items()]
    return [*params, *_DIVIDED, *_BY_A_FLEET, _HERE]


_FILE = click.Path(path_type=Path)
_DIVIDED = (
    Flag(
        "--identifier-format",
        metavar="TEXT",
        help="tell the network which ARC task a puzzle is of, by this name, in which {task} is the "
        "task's (default: by none); HRM and TRM call a task that is not augmented {task}",
        section="Solving",
    ),
    Flag(
        "--batch",
        type=count,
        default="16",
        metavar="N",
        help="puzzles in one request (default 16)",
        section="Solving",
    ),
)
_BY_A_FLEET = (
    Flag(
        "--model",
        metavar="ID",
        help="which of its models (default: its default one)",
        section="By a fleet",
    ),
    Flag(
        "--server-url",
        type=http_url,
        metavar="URL",
        help="its front (default: the fleet that runs here)",
        section="By a fleet",
    ),
    Flag("--port", type=int, metavar="N", help=PORT_HELP, section="By a fleet"),
    Flag("--api-key", metavar="KEY", help="a key that it gave out", section="By a fleet"),
    Flag(
        "--concurrency",
        type=count,
        default="4",
        metavar="N",
        help="requests at a time (default 4)",
        section="By a fleet",
    ),
    Flag(
        "--patience",
        type=count,
        default="300",
        metavar="SECONDS",
        help="how long it may be away before the run ends (default 300)",
        section="By a fleet",
    ),
)
_HERE = Flag(
    "--path",
    type=_FILE,
    metavar="MODEL",
    help="directory or file of a model",
    section="In this process",
)

command = CommandGroup(
    "puzzles",
    help="Puzzles for the networks that solve them.",
    examples=("aios puzzles solve sudokus.txt",),
    commands={
        "solve": Command(
            "solve",
            callback=run,
            params=_params(),
            help="""Solve a file of puzzles, by a fleet or by a model in this process.

The file has lines of a Sudoku each, CSV with a column question or puzzle, mazes of '# SGo', ARC tasks
(a file or a directory), or JSON Lines with grid or puzzle. The same command goes on with a run that was
ended.""",
            examples=(
                "aios puzzles solve sudokus.txt",
                "aios puzzles solve arc/ --model trm --samples 8 --select vote",
                "aios puzzles solve mazes.txt --path ./maze-checkpoint --out solved.jsonl",
            ),
        )
    },
)
