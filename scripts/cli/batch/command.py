"""`aios batch run`: a file of requests in, a line of JSON for each of them out.

Models in this process answer, without a server and without Redis, or the server at `--url`. A run
that was ended goes on when the same command is given again.
"""

from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
from click.core import ParameterSource

from scripts.cli.extras import require_extras
from scripts.cli.flag_types import count, http_url
from scripts.cli.fleet_tool import told
from shared.commands import Argument, Command, Flag, Group
from shared.settings.command_line import run_with_flags, settings_flags
from shared.settings.hub import with_hub_models
from shared.settings.settings import Settings, SettingsError, model_entries

PROG = "aios batch run"


def run(**given: Any) -> int:
    """Answer a file of requests and return the exit status.

    It is 1 if a line failed or the run could not go on, and 130 after Ctrl-C.
    """
    context = click.get_current_context()
    own = {param.name: given[param.name] for param in _own_params() if param.name}
    args = SimpleNamespace(**own)
    if args.url is None:
        return run_with_flags(context, partial(_run, args))
    for param in context.command.params:
        name = param.name or ""
        is_given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if name not in own and is_given:
            raise click.UsageError(f"{param.opts[0]}: no flag of a run by a server", context)
    return told(PROG, partial(_run, args, None))


def _run(args: SimpleNamespace, settings: Settings | None) -> int:
    """Answer the lines, with models of the settings or by a server. Return the exit status."""
    require_extras("api")
    if settings is not None:
        require_extras("worker")
        settings = with_hub_models(_with_model(settings, args.model), has_gpu=True, may_end=True)
    elif find_spec("httpx") is None:
        raise SettingsError("--url needs httpx; install it by `pip install httpx`")
    # The endpoint table takes a moment to load, and needs the front's packages.
    from scripts.cli.batch.batch_run import run_batch

    return told(PROG, partial(run_batch, args, settings))


def _with_model(settings: Settings, model: str | None) -> Settings:
    """Return the settings with one model, which is named by its id or path; with all for None."""
    entries = model_entries(settings)
    if model is None:
        return settings.model_copy(update={"models": entries})
    chosen = [entry for entry in entries if entry.id == model]
    if not chosen:
        by_path = settings.model_copy(update={"models": (), "model_path": model})
        chosen = list(model_entries(by_path))
    return settings.model_copy(update={"models": (chosen[0],), "default_model": chosen[0].id})


def _own_params() -> list[click.Parameter]:
    """Return the arguments and flags beside those of the settings."""
    file = click.Path(path_type=Path)
    server = "By a server"
    return [
        Argument("input", type=file, help="the requests, a line of JSON each"),
        Argument("output", type=file, help="where the answers are written"),
        Flag(
            "--model",
            metavar="MODEL",
            help="the model for lines that name none; in this process a directory, a file, org/name of "
            "a hub, or the id of a model that is configured (default: the default one)",
        ),
        Flag("--restart", is_flag=True, help="begin anew, and drop what is there"),
        Flag("--retry-failed", is_flag=True, help="do lines again that failed before"),
        Flag("--no-progress", is_flag=True, help="draw no progress"),
        Flag(
            "--url",
            type=http_url,
            metavar="URL",
            help="its base URL, as http://HOST:8000",
            section=server,
        ),
        Flag("--api-key", metavar="KEY", help="a key that it gave out", section=server),
        Flag(
            "--concurrency",
            type=count,
            default="32",
            metavar="N",
            help="lines at a time (default 32)",
            section=server,
        ),
        Flag(
            "--patience",
            type=count,
            default="300",
            metavar="SECONDS",
            help="how long it may be away before the run ends (default 300)",
            section=server,
        ),
    ]


command = Group(
    "batch",
    help="Files of requests, without a server or by one.",
    examples=("aios batch run in.jsonl out.jsonl",),
    commands={
        "run": Command(
            "run",
            callback=run,
            params=[*_own_params(), *settings_flags(taken=("--model",))],
            help="""Answer a file of requests, a line of JSON for each.

Its lines are those of OpenAI's batches, or a prompt in each line, as a JSON string or as an object with
`prompt` or `messages`. Models in this process answer, with all flags of `aios worker`, or the server at
--url. The same command goes on with a run that was ended.""",
            examples=(
                "aios batch run in.jsonl out.jsonl",
                "aios batch run in.jsonl out.jsonl --model ./my-checkpoint --device cuda",
                "aios batch run in.jsonl out.jsonl --url http://localhost:8000 --retry-failed",
            ),
        )
    },
)
