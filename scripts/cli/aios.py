"""The `aios` command: a table of its commands, which are loaded when they are asked for.

docs/cli.md tells why it stands on Click, and what was measured.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module

import click

from shared.commands import EXIT_OK, Flag, Group, run_command

PROG = "aios"
SERVE = "Serve"
LOOK = "Look"
CHANGE = "Change"
RUN = "Run files and questions"
MEASURE = "Measure"
SHELL = "Shell"
_OURS = ("api", "scripts", "shared", "worker")


@dataclass(frozen=True)
class Entry:
    """A command: its section in the help, its summary, and the module that has it as `command`.

    A module with several names the one in `attribute`.
    """

    section: str
    summary: str
    module: str
    attribute: str = "command"


COMMANDS = {
    "serve": Entry(SERVE, "aios serve hrm: a whole fleet, with Redis, front and workers", "serve"),
    "api": Entry(SERVE, "one front (needs --redis-url)", "serve", "api_command"),
    "worker": Entry(SERVE, "one worker (needs --redis-url)", "serve", "worker_command"),
    "jobs": Entry(SERVE, "the background role: tidies up, advances batches, evaluates", "jobs"),
    "ui": Entry(SERVE, "the web app, for a fleet that runs here or elsewhere", "ui"),
    "doctor": Entry(LOOK, "what this machine has for a fleet, what it lacks, what helps", "doctor"),
    "status": Entry(LOOK, "the fleet now; exits with 0 if a worker is ready", "status"),
    "top": Entry(LOOK, "the fleet as it works, renewed every second", "top"),
    "usage": Entry(LOOK, "what the keys have used, by day and model", "usage"),
    "models": Entry(CHANGE, "list, add, load and fetch models", "models"),
    "keys": Entry(CHANGE, "create, list and revoke API keys, with limits", "keys"),
    "dead": Entry(CHANGE, "list, show, retry and drop jobs that were given up", "dead"),
    "batch": Entry(RUN, "aios batch run: a file of requests", "batch.command"),
    "puzzles": Entry(RUN, "aios puzzles solve: a file of puzzles", "puzzles"),
    "eval": Entry(
        MEASURE, "how many answers are right and how soon, beside earlier reports", "eval"
    ),
    "ab": Entry(MEASURE, "compare models, by questions or by live traffic", "ab.command"),
    "lm-eval": Entry(
        MEASURE, "lm-evaluation-harness, with a fleet as its model", "lm_harness.command"
    ),
    "completion": Entry(
        SHELL, "a script that lets a shell complete commands and flags", "completion"
    ),
}
EXAMPLES = (
    "aios serve hrm --model-path echo       a fleet with a model that needs no weights",
    "aios status                            is it ready?",
    "aios keys create alice --rate 10/60    a key for ten requests a minute",
    "aios top                               watch it",
)


class Commands(Group):
    """The group of all commands, which imports a command when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        try:
            module = import_module(f"scripts.cli.{entry.module}")
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] in _OURS:
                raise
            raise click.ClickException(
                f"{cmd_name} needs {error.name}, which is not installed; "
                f"pip install 'aios-hrm-fleet[all]' {error.name}"
            ) from error
        command = getattr(module, entry.attribute)
        assert isinstance(command, click.Command)
        return command

    def summaries(self, ctx: click.Context) -> Iterable[tuple[str, str, str]]:
        return [(entry.section, name, entry.summary) for name, entry in COMMANDS.items()]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command named by `argv` and return its exit status."""
    return run_command(app, sys.argv[1:] if argv is None else argv, PROG)


def _show_version(context: click.Context, param: click.Parameter, is_given: bool) -> None:
    if not is_given or context.resilient_parsing:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        print(f"{PROG} {version('aios-hrm-fleet')}")
    except PackageNotFoundError:
        print(f"{PROG} (not installed)")
    context.exit(EXIT_OK)


app = Commands(
    PROG,
    help="""A fleet for Hierarchical Reasoning Models: a front, workers and Redis.

Without --redis-url (--server-url of puzzles and ui, --url of eval) the tools, and aios jobs, find the
fleet that `aios serve hrm` runs on this machine. Where several run, --port chooses one, and for aios ui
--server-url. Each command has its own --help.""",
    examples=EXAMPLES,
    params=[
        Flag(
            "-V",
            "--version",
            is_flag=True,
            expose_value=False,
            is_eager=True,
            callback=_show_version,
            help="show the version and exit",
        )
    ],
)


if __name__ == "__main__":
    sys.exit(main())
