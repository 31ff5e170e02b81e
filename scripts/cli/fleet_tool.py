"""The common part of the command-line tools for a fleet.

It has their flags, finds the fleet, prints their output and tells their errors.
"""

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import click

from scripts.cli.local_fleet import PORT_HELP, with_local_fleet
from shared.commands import EXIT_FAILED as EXIT_FAILED
from shared.commands import EXIT_OK, Flag
from shared.queue.broker import UNAVAILABLE
from shared.settings.command_line import EXIT_BAD_SETTINGS, run_with_settings
from shared.settings.layers import SettingsError
from shared.settings.settings import Settings

FLEET = "Fleet"

# Tools tell themselves that Redis is away. Roles configure the logs, and so log it, too.
logging.getLogger("aios.redis").addHandler(logging.NullHandler())


@dataclass
class FleetFlags:
    """The flags of every tool, which may stand before the command and behind it."""

    redis_url: str | None = None
    redis_shards: str | None = None
    port: int | None = None
    json: bool = False


Answer = Callable[[Settings], Awaitable[list[str]]]
"""Carries out a command, and returns the lines to print."""


class ToolError(Exception):
    """Raised if a command cannot be carried out; the message says why."""


def fleet_flags(
    *, shards: bool = True, json_help: str | None = "print JSON, one document a line"
) -> list[click.Parameter]:
    """Return the flags by which a fleet is chosen, for a command or for a group of commands.

    The values are gathered in a FleetFlags, the object of the context.
    """
    flags: list[click.Parameter] = [
        _kept("--redis-url", metavar="URL", help="Redis of the fleet [env: AIOS_REDIS_URL]"),
        _kept("--port", type=int, metavar="N", help=PORT_HELP),
    ]
    if shards:
        text = "as the fleet has it [env: AIOS_REDIS_SHARDS]"
        flags.insert(1, _kept("--redis-shards", metavar="N", help=text))
    if json_help is not None:
        flags.append(json_flag(json_help))
    return flags


def json_flag(help: str = "print JSON, one document a line") -> Flag:
    """Return the flag --json, whose value is kept in the FleetFlags of the context."""
    return _kept("--json", is_flag=True, help=help)


def _kept(name: str, **attributes: Any) -> Flag:
    return Flag(name, expose_value=False, callback=_keep, section=FLEET, **attributes)


def _keep(context: click.Context, param: click.Parameter, value: Any) -> None:
    flags = context.ensure_object(FleetFlags)
    # A flag that stands before the command is not reset by its absence behind it.
    if value is not None and value is not False:
        assert param.name is not None
        setattr(flags, param.name, value)


def run_tool(prog: str, flags: FleetFlags, answer: Answer) -> int:
    """Find the fleet, print the lines of `answer` and return the exit status.

    The status is 1, with a line on stderr, after a ToolError or if Redis is unavailable.
    """
    given = {"redis_url": flags.redis_url, "redis_shards": flags.redis_shards}
    return run_with_settings(prog, partial(_run, prog, flags, answer), given)


def _run(prog: str, flags: FleetFlags, answer: Answer, settings: Settings) -> int:
    settings, _ = with_local_fleet(settings, flags.port)

    async def answered() -> list[str]:
        # asyncio.run takes coroutines, but no other awaitables.
        return await answer(settings)

    def run() -> int:
        try:
            lines = asyncio.run(answered())
        except UNAVAILABLE as error:
            raise ToolError(redis_away(error)) from error
        print(*lines, sep="\n", end="\n" if lines else "")
        return EXIT_OK

    return told(prog, run)


def redis_away(error: Exception) -> str:
    """Return the line for a Redis that cannot be reached."""
    reason = " ".join(str(error).split()).rstrip(".")
    return f"{reason}; start the fleet, or name its Redis by --redis-url"


def told(prog: str, run: Callable[[], int]) -> int:
    """Return the status of `run`. Its ToolError or SettingsError is a line on stderr and 1 or 2."""
    try:
        return run()
    except SettingsError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return EXIT_BAD_SETTINGS
    except ToolError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return EXIT_FAILED
