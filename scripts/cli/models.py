"""`aios models`: list the fleet's models, change its catalogue while it runs, find some to serve."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import click
from pydantic import ValidationError

from scripts.cli import known_checkpoints
from scripts.cli.colours import listing
from scripts.cli.fetch import command as fetch
from scripts.cli.fleet_tool import FleetFlags, ToolError, fleet_flags, json_flag, run_tool
from scripts.cli.watch.table import Heading
from shared.commands import EXIT_OK, Argument, Command, Flag, Group, completing
from shared.fleet.catalogue import Catalogue
from shared.fleet.presence import Presence
from shared.queue import keys
from shared.queue.broker import Broker, open_broker
from shared.settings.command_line import redis_url
from shared.settings.hub_names import SCHEME
from shared.settings.layers import SettingsError
from shared.settings.models import GivenOption, ModelEntry
from shared.settings.settings import Settings
from shared.settings.text import choices_of
from shared.settings.types import Dtype, Quantize
from shared.tasks.model_options import check_options, with_options
from shared.tasks.runner_table import AUTO, RUNNERS

PROG = "aios models"


@click.pass_obj
def known(flags: FleetFlags) -> int:
    """Print the public checkpoints, and return the exit status."""
    lines = known_checkpoints.lines()
    if flags.json:
        lines = [json.dumps(asdict(checkpoint)) for checkpoint in known_checkpoints.CHECKPOINTS]
    print(*lines, sep="\n")
    return EXIT_OK


@click.pass_obj
def list_all(flags: FleetFlags) -> int:
    """Print the fleet's models, and return the exit status."""

    async def answer(settings: Settings) -> list[str]:
        async with open_broker(redis_url(settings), settings.redis_shards) as broker:
            models = await _listing(broker)
        if flags.json:
            return [json.dumps(model) for model in models]
        rows = [_row(model) for model in models]
        lines = [_line(model) for model in models]
        return listing(_HEADINGS, rows, lines, none="no model is known")

    return run_tool(PROG, flags, answer)


@click.pass_obj
def add(flags: FleetFlags, /, **described: Any) -> int:
    """Add a model to the catalogue or change it there, and return the exit status."""

    async def answer(settings: Settings) -> list[str]:
        entry = entry_of(**described)
        async with open_broker(redis_url(settings), settings.redis_shards) as broker:
            is_new = await Catalogue(broker.client(keys.PRESENCE)).add(entry)
        return [_done(entry.id, "added" if is_new else "changed", flags)]

    return run_tool(PROG, flags, answer)


@dataclass(frozen=True)
class Change:
    """A change of one model: what its command says of it, before and after, and its section.

    Workers load and unload models later, so those commands are only ordered.
    """

    help: str
    done: str = "ordered"
    section: str = "Memory"


_CHANGES = {
    "remove": Change(
        "Let workers forget it, once its jobs in hand have ended.", "removed", "Catalogue"
    ),
    "pin": Change("Keep it in memory once it is there.", "pinned"),
    "unpin": Change("Let it make room for others again.", "unpinned"),
    "load": Change("Load it now on every worker that knows it."),
    "unload": Change("Give its memory back; the next request loads it again."),
}


def change(name: str, flags: FleetFlags, id: str) -> int:
    """Make one of the changes to a model, and return the exit status."""

    async def answer(settings: Settings) -> list[str]:
        async with open_broker(redis_url(settings), settings.redis_shards) as broker:
            await _change(broker, name, id)
        return [_done(id, _CHANGES[name].done, flags)]

    return run_tool(PROG, flags, answer)


def _done(model_id: str, done: str, flags: FleetFlags) -> str:
    if flags.json:
        return json.dumps({"id": model_id, "done": done})
    return f"{model_id} {done}"


def entry_of(path: str, option: Sequence[str] = (), **fields: Any) -> ModelEntry:
    """Return the model that the flags describe.

    Raise ToolError if a value is not valid, for a model of the hub, or if no runner has an option.
    """
    if path.startswith(SCHEME):
        raise ToolError(
            "workers fetch only models of the hub that are named when they start; "
            "`hf download org/name` on their machine prints the path to add"
        )
    try:
        options = [GivenOption.model_validate(text) for text in option]
        entry = ModelEntry.model_validate({"path": path, **fields})
        [entry] = with_options([entry], options)
        check_options([entry], {})
    except SettingsError as error:
        raise ToolError(str(error)) from None
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        # An option itself has no field.
        field = ".".join(str(part) for part in problem["loc"]) or "option"
        message = problem["msg"].removeprefix("Value error, ")
        raise ToolError(f"{field}: {message}") from None
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


_HEADINGS = (
    Heading("MODEL", is_name=True),
    Heading("PATH", rank=2, is_name=True, least=12),
    Heading("LOADED", is_name=True),
    Heading("PINNED", rank=3, is_name=True),
    Heading("", rank=1, is_name=True, least=20),
)


def _row(model: dict[str, Any]) -> list[str]:
    """Return the cells of a model from `_listing` on a terminal."""
    description = model["found"] or "not seen yet"
    if model["reason"]:
        description = f"cannot be loaded: {model['reason']}"
    return [
        model["id"],
        model["path"] or "of the settings",
        f"{model['loaded']} of {model['workers']}",
        "yes" if model["is_pinned"] else "-",
        description,
    ]


def _line(model: dict[str, Any]) -> str:
    """Return the line of a model from `_listing`."""
    state = f"loaded by {model['loaded']} of {model['workers']} workers"
    if model["reason"]:
        state = f"cannot be loaded: {model['reason']}"
    if model["is_pinned"]:
        state += ", pinned"
    path = model["path"] or "of the settings"
    description = model["found"] or "not seen yet"
    return f"{model['id']}  {path}  {state}  {description}"


def _commands() -> dict[str, click.Command]:
    commands: dict[str, click.Command] = {
        "list": Command(
            "list",
            section="Look",
            callback=list_all,
            params=fleet_flags(),
            help="All that are known, and where they stand.",
            examples=("aios models list", "aios models list --json | jq -r .id"),
        ),
        "add": Command(
            "add",
            section="Catalogue",
            callback=add,
            params=[*_ADDED, *fleet_flags()],
            help="Let workers serve a model that they can read.",
            examples=(
                "aios models add sums ./checkpoints/sums",
                "aios models add sums ./checkpoints/sums --dtype float32 --option segments=4",
            ),
        ),
    }
    for name, kind in _CHANGES.items():
        commands[name] = Command(
            name,
            section=kind.section,
            callback=click.pass_obj(partial(change, name)),
            params=[Argument("id", help="as listed"), *fleet_flags()],
            help=kind.help,
            examples=(f"aios models {name} hrm-text-math",),
        )
    commands["fetch"] = fetch.command
    commands["known"] = Command(
        "known",
        section="Find",
        callback=known,
        params=[json_flag()],
        help="""Public checkpoints of HRM, TRM and HRM-Text.

Each with its licence, its size, and what to expect of it.""",
        examples=("aios models known", "aios models known --json | jq -r .path"),
    )
    return commands


_ADDED: list[click.Parameter] = [
    Argument("id", help="the name that requests use"),
    Argument(
        "path",
        type=click.Path(),
        help="directory or file, as the workers see it, or echo; no name of a hub",
    ),
    Flag(
        "--runner",
        default=AUTO,
        metavar="NAME",
        shell_complete=completing((AUTO, *RUNNERS)),
        help="what serves it (default: by its files)",
    ),
    Flag(
        "--dtype",
        metavar="DTYPE",
        shell_complete=completing(choices_of(Dtype)),
        help="of weights and activations (default: the workers')",
    ),
    Flag(
        "--quantize",
        metavar="QUANTIZE",
        shell_complete=completing(choices_of(Quantize)),
        help="round the weights of linear layers (default: the workers')",
    ),
    Flag(
        "--context-window",
        type=int,
        metavar="N",
        help="most tokens of prompt and answer (default: the workers')",
    ),
    Flag("--option", multiple=True, metavar="NAME=VALUE", help="an option of its runner"),
]

command = Group(
    "models",
    params=fleet_flags(),
    help="The fleet's models, and some to serve.",
    examples=(
        "aios models list",
        "aios models fetch minilm",
        "aios models add minilm ~/.cache/aios/models/minilm",
        "aios models load minilm",
    ),
    commands=_commands(),
)
