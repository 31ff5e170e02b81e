"""`aios dead`: list, show, retry and drop jobs that were given up because their workers crashed."""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from typing import Any

import msgspec

from scripts.cli.local_fleet import PORT_HELP, with_local_fleet
from shared.errors import FleetError
from shared.queue.broker import UNAVAILABLE, open_broker
from shared.queue.dead_letters import DeadLetter, DeadLetters
from shared.settings.command_line import EXIT_OK, redis_url, run_role
from shared.settings.settings import Settings

PROG = "aios dead"
EXIT_FAILED = 1
_COMMANDS = {
    "list": "all of them, the latest first",
    "show": "its task and its log",
    "retry": "queue its task again as a new job, and print that one's id",
    "drop": "forget it",
}


def main(argv: Sequence[str]) -> int:
    """Run the command named by `argv` and return its exit status."""
    parser = argparse.ArgumentParser(
        prog=PROG, description="Jobs that were given up because their workers crashed."
    )
    parser.add_argument("--redis-url", help="Redis of the fleet [env: AIOS_REDIS_URL]")
    parser.add_argument("--port", type=int, help=PORT_HELP)
    parser.add_argument("--json", action="store_true", help="print JSON, one document a line")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in _COMMANDS.items():
        command = commands.add_parser(name, help=text)
        # Each flag may stand before the command or behind it. A default here would reset a flag
        # that stands before it.
        command.add_argument("--redis-url", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        command.add_argument("--port", type=int, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        command.add_argument(
            "--json", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )
        if name != "list":
            command.add_argument("id")
    args = parser.parse_args(argv)
    flags = ["--redis-url", args.redis_url] if args.redis_url else []
    return run_role(PROG, partial(run, args), flags)


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Carry out the command and return the exit status.

    It is 1, with a line on stderr, if there is no such job or if Redis is unavailable.
    """
    settings, _ = with_local_fleet(settings, args.port)
    try:
        lines = asyncio.run(_answer(args, settings))
    except (FleetError, *UNAVAILABLE) as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return EXIT_FAILED
    print(*lines, sep="\n", end="\n" if lines else "")
    return EXIT_OK


async def _answer(args: argparse.Namespace, settings: Settings) -> list[str]:
    """Carry out the command and return the lines to print."""
    async with open_broker(redis_url(settings), settings.redis_shards) as broker:
        dead_letters = DeadLetters(broker)
        match args.command:
            case "list":
                letters = await dead_letters.all_letters()
                if args.json:
                    return [json.dumps(_as_json(letter)) for letter in letters]
                return [_line(letter) for letter in letters]
            case "show":
                letter, job, events = await dead_letters.show(args.id)
                document = _as_json(letter)
                document["task"] = msgspec.to_builtins(job.task)
                document["log"] = msgspec.to_builtins(events)
                indent = None if args.json else 2
                return [json.dumps(document, ensure_ascii=False, indent=indent)]
            case "retry":
                new_id = await dead_letters.retry(
                    args.id,
                    queue_timeout_s=settings.queue_timeout_s,
                    deadline_s=settings.request_timeout_s,
                )
                if args.json:
                    return [json.dumps({"id": new_id})]
                return [new_id]
            case _:
                await dead_letters.drop(args.id)
                if args.json:
                    return [json.dumps({"dropped": args.id})]
                return []


def _as_json(letter: DeadLetter) -> dict[str, Any]:
    """Return the fields of a dead letter without its place in Redis, and its time in ISO 8601."""
    values = asdict(letter)
    del values["entry"]
    values["at"] = _time(letter)
    return values


def _line(letter: DeadLetter) -> str:
    return (
        f"{letter.id}  {_time(letter)}  {letter.model}  {letter.tenant}  "
        f"{letter.epochs} workers, the last {letter.worker}"
    )


def _time(letter: DeadLetter) -> str:
    return datetime.fromtimestamp(letter.at_ms / 1000, UTC).isoformat(timespec="seconds")
