"""The common part of the tools beside a fleet: their flags, how they find it, and what they
print."""

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable
from functools import partial

from scripts.cli.local_fleet import PORT_HELP, with_local_fleet
from shared.queue.broker import UNAVAILABLE
from shared.settings.command_line import EXIT_OK, run_role
from shared.settings.settings import Settings

EXIT_FAILED = 1
Answer = Callable[[argparse.Namespace, Settings], Awaitable[list[str]]]
"""Does what was asked, and returns the lines to print."""


class ToolError(Exception):
    """Raised where what was asked for cannot be done; the message tells why."""


def parser_of(prog: str, description: str) -> argparse.ArgumentParser:
    """Return a parser with the flags of every tool.

    Commands are added to it with `flags` as their parents.
    """
    parser = argparse.ArgumentParser(prog=prog, parents=[flags()], description=description)
    parser.set_defaults(redis_url=None, redis_shards=None, port=None, json=False)
    return parser


def flags() -> argparse.ArgumentParser:
    """Return a parser of the flags that may stand before the command and behind it.

    It is made anew for each parser, as parsers change their parents.
    """
    # Without defaults, so that a command does not undo a flag that stands before it.
    parser = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("--redis-url", help="Redis of the fleet [env: AIOS_REDIS_URL]")
    parser.add_argument("--redis-shards", help="as the fleet has it [env: AIOS_REDIS_SHARDS]")
    parser.add_argument("--port", type=int, help=PORT_HELP)
    parser.add_argument("--json", action="store_true", help="print JSON, one document a line")
    return parser


def run_tool(prog: str, asked: argparse.Namespace, answer: Answer) -> int:
    """Find the fleet, print the answer and return the exit status.

    The status is 1, with a line on stderr, for a ToolError or where there is no Redis.
    """
    settings_flags = []
    if asked.redis_url:
        settings_flags += ["--redis-url", asked.redis_url]
    if asked.redis_shards:
        settings_flags += ["--redis-shards", asked.redis_shards]
    return run_role(prog, partial(_run, prog, asked, answer), settings_flags)


def _run(prog: str, asked: argparse.Namespace, answer: Answer, settings: Settings) -> int:
    settings, _ = with_local_fleet(settings, asked.port)
    try:
        lines = asyncio.run(_awaited(answer(asked, settings)))
    except (ToolError, *UNAVAILABLE) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return EXIT_FAILED
    print(*lines, sep="\n", end="\n" if lines else "")
    return EXIT_OK


async def _awaited(lines: Awaitable[list[str]]) -> list[str]:
    return await lines
