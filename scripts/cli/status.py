"""`aios status`: a snapshot of the fleet, with an exit status that tells whether it serves."""

import argparse
import asyncio
from collections.abc import Sequence
from functools import partial
from shutil import get_terminal_size

import msgspec

from scripts.cli.local_fleet import PORT_HELP, with_local_fleet
from scripts.cli.watch.screen import View, screen
from shared.fleet.snapshot import Snapshot, Status, look
from shared.queue.broker import open_unsettled
from shared.settings.command_line import redis_url, run_role
from shared.settings.settings import Settings

PROG = "aios status"
EXITS: dict[Status, int] = {"ready": 0, "not_ready": 1, "redis_away": 2}


def main(argv: Sequence[str]) -> int:
    """Print a snapshot and return the exit status.

    It is 0 if a worker is ready, 1 if none is, and 2 without Redis or if the flags make no sense.
    """
    parser = argparse.ArgumentParser(
        prog=PROG,
        description=(
            "The fleet as Redis knows it. Exits with 0 if a worker is ready, 1 if none, 2 "
            "without Redis."
        ),
    )
    parser.add_argument("--redis-url", help="Redis of the fleet [env: AIOS_REDIS_URL]")
    parser.add_argument("--port", type=int, help=PORT_HELP)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args(argv)
    flags = ["--redis-url", args.redis_url] if args.redis_url else []
    return run_role(PROG, partial(run, args), flags)


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Print one snapshot and return the exit status."""
    settings, _ = with_local_fleet(settings, args.port)
    now = asyncio.run(_look(redis_url(settings)))
    if args.json:
        print(msgspec.json.encode(now).decode())
    else:
        print(*screen(View(now, hints=()), get_terminal_size().columns), sep="\n")
    return EXITS[now.status]


async def _look(url: str) -> Snapshot:
    async with open_unsettled(url) as broker:
        return await look(broker)
