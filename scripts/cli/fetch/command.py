"""`aios models fetch`: the flags, the list of models and the lines to print."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from scripts.cli.fetch.fetcher import fetch
from scripts.cli.fetch.starter_models import STARTER_MODELS, StarterModel
from scripts.cli.fleet_tool import EXIT_FAILED, ToolError
from shared.settings.command_line import EXIT_OK
from shared.settings.paths import fetched_models_folder

PROG = "aios models fetch"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command to its parser."""
    parser.add_argument("name", nargs="*", help="models to fetch (none: list those that there are)")
    parser.add_argument(
        "--folder",
        type=Path,
        help="where they are kept (default: aios/models in $XDG_CACHE_HOME or ~/.cache)",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        default=argparse.SUPPRESS,
        help="print JSON, one document a line",
    )


def run(args: argparse.Namespace) -> int:
    """Fetch the models and print their directories, or list all. Return the exit status."""
    folder = args.folder or Path(fetched_models_folder())
    if not args.name:
        for model in STARTER_MODELS.values():
            print(_line(model, folder, as_json=args.json))
        return EXIT_OK

    try:
        for name in args.name:
            if name not in STARTER_MODELS:
                known = ", ".join(STARTER_MODELS)
                raise ToolError(f"there is no model {name!r} to fetch; expected one of {known}")
        for name in args.name:
            path = fetch(STARTER_MODELS[name], folder.absolute(), _tell)
            if args.json:
                print(json.dumps({"name": name, "path": str(path)}), flush=True)
            else:
                print(path, flush=True)
    except ToolError as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_OK


def _tell(line: str) -> None:
    # Only paths go to stdout: `--model-path "$(aios models fetch minilm)"`.
    print(line, file=sys.stderr, flush=True)


def _line(model: StarterModel, folder: Path, *, as_json: bool) -> str:
    """Return the line of a model in the list, as JSON or for people."""
    path = folder / model.name
    is_fetched = path.exists()
    if as_json:
        values: dict[str, Any] = {
            "name": model.name,
            "task": model.task,
            "title": model.title,
            "licence": model.licence,
            "download_mb": model.download_mb,
            "disk_mb": model.disk_mb,
            "path": str(path) if is_fetched else None,
        }
        return json.dumps(values)
    state = str(path) if is_fetched else f"{model.download_mb} MB to download"
    return f"{model.name}  {model.task}  {model.licence}  {state}"
