"""`aios status`: a snapshot of the fleet, with an exit status that tells whether it serves."""

import asyncio
from functools import partial
from shutil import get_terminal_size

import click
import msgspec

from scripts.cli.colours import painted
from scripts.cli.fleet_tool import FleetFlags, fleet_flags
from scripts.cli.local_fleet import with_local_fleet
from scripts.cli.watch.screen import View, screen
from shared.commands import Command
from shared.fleet.snapshot import Snapshot, Status, look
from shared.queue.broker import open_unsettled
from shared.settings.command_line import redis_url, run_with_settings
from shared.settings.settings import Settings

PROG = "aios status"
EXITS: dict[Status, int] = {"ready": 0, "not_ready": 1, "redis_away": 2}


def _run(flags: FleetFlags, settings: Settings) -> int:
    """Print one snapshot and return the exit status."""
    settings, _ = with_local_fleet(settings, flags.port)
    now = asyncio.run(_look(redis_url(settings)))
    if flags.json:
        print(msgspec.json.encode(now).decode())
    else:
        print(*painted(screen(View(now, hints=()), get_terminal_size().columns)), sep="\n")
    return EXITS[now.status]


async def _look(url: str) -> Snapshot:
    async with open_unsettled(url) as broker:
        return await look(broker)


@click.pass_obj
def run(flags: FleetFlags) -> int:
    """Print a snapshot and return the exit status.

    It is 0 if a worker is ready, 1 if none is, and 2 without Redis or if the flags make no sense.
    """
    return run_with_settings(PROG, partial(_run, flags), {"redis_url": flags.redis_url})


command = Command(
    "status",
    callback=run,
    params=fleet_flags(shards=False, json_help="print one JSON document"),
    help="""The fleet as Redis knows it.

Exits with 0 if a worker is ready, 1 if none is, and 2 without Redis.""",
    examples=("aios status", "aios status --port 8000", "aios status --json | jq .workers"),
)
