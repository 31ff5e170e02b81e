"""`aios batch run`: a file of requests in, a line of JSON for each of them out.

Models in this process answer, without a server and without Redis, or the server at `--url`. A run
that was ended goes on when the same command is given again.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from scripts.cli.flag_types import count, http_url
from scripts.cli.fleet_tool import EXIT_FAILED, ToolError
from shared.settings.command_line import EXIT_BAD_SETTINGS, run_role
from shared.settings.hub import with_hub_models
from shared.settings.settings import Settings, SettingsError, model_entries

PROG = "aios batch run"


def main(argv: Sequence[str]) -> int:
    """Run the command named by `argv` and return its exit status.

    It is 1 if a line failed or the run could not go on, and 130 after Ctrl-C.
    """
    parser = _parser()
    args, flags = parser.parse_known_args(argv)
    if args.url is None:
        return run_role(PROG, partial(_run, args), flags)
    if flags:
        parser.error(f"{flags[0]}: no flag of a run by a server")
    try:
        return _run(args, None)
    except SettingsError as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return EXIT_BAD_SETTINGS


def _run(args: argparse.Namespace, settings: Settings | None) -> int:
    """Answer the lines, with models of the settings or by a server. Return the exit status."""
    from scripts.cli.aios import require_extras

    require_extras("api")
    if settings is not None:
        require_extras("worker")
        settings = with_hub_models(_with_model(settings, args.model), has_gpu=True, may_end=True)
    elif find_spec("httpx") is None:
        raise SettingsError("--url needs httpx; install it by `pip install httpx`")
    # The endpoint table takes a moment to load, and needs the front's packages.
    from scripts.cli.batch.batch_run import run_batch

    try:
        return run_batch(args, settings)
    except ToolError as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return EXIT_FAILED


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG,
        description=(
            "Answer a file of requests: lines of OpenAI's batches, or a prompt in each line, as a "
            "JSON string or as an object with `prompt` or `messages`. The same command goes on "
            "with a run that was ended. In this process, all flags of `aios worker` may follow."
        ),
        allow_abbrev=False,
    )
    parser.add_argument("input", type=Path, help="the requests, a line of JSON each")
    parser.add_argument("output", type=Path, help="where the answers are written")
    parser.add_argument(
        "--model",
        help="the model for lines that name none; in this process a directory, a file, org/name of a hub, or the id "
        "of a model that is configured (default: the default one)",
    )
    parser.add_argument("--restart", action="store_true", help="begin anew, and drop what is there")
    parser.add_argument(
        "--retry-failed", action="store_true", help="do lines again that failed before"
    )
    parser.add_argument("--no-progress", action="store_true", help="draw no progress")

    server = parser.add_argument_group("by a server")
    server.add_argument("--url", type=http_url, help="its base URL, as http://HOST:8000")
    server.add_argument("--api-key", metavar="KEY", help="a key that it gave out")
    server.add_argument(
        "--concurrency", type=count, default=32, metavar="N", help="lines at a time (default 32)"
    )
    server.add_argument(
        "--patience",
        type=count,
        default=300,
        metavar="SECONDS",
        help="how long it may be away before the run ends (default 300)",
    )
    return parser
