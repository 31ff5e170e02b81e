"""The common part of the command-line tools for a fleet.

It has their flags, finds the fleet, and prints their output.
"""

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
"""Carries out the command that the flags name, and returns the lines to print."""


class ToolError(Exception):
    """Raised if a command cannot be carried out; the message says why."""


def parser_of(prog: str, description: str) -> argparse.ArgumentParser:
    """Return a parser with the flags of every tool.

    The parsers of commands are added to it, each with `flags()` as its parent.
    """
    parser = argparse.ArgumentParser(prog=prog, parents=[flags()], description=description)
    parser.set_defaults(redis_url=None, redis_shards=None, port=None, json=False)
    return parser


def flags() -> argparse.ArgumentParser:
    """Return a parser of the flags that may stand before the command and behind it.

    Each parser needs a parent of its own, as argparse changes the parents.
    """
    # Without defaults, so that the parser of a command does not reset a flag before the command.
    parser = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("--redis-url", help="Redis of the fleet [env: AIOS_REDIS_URL]")
    parser.add_argument("--redis-shards", help="as the fleet has it [env: AIOS_REDIS_SHARDS]")
    parser.add_argument("--port", type=int, help=PORT_HELP)
    parser.add_argument("--json", action="store_true", help="print JSON, one document a line")
    return parser


def run_tool(prog: str, args: argparse.Namespace, answer: Answer) -> int:
    """Find the fleet, print the lines of `answer` and return the exit status.

    The status is 1, with a line on stderr, after a ToolError or if Redis is unavailable.
    """
    settings_flags = []
    if args.redis_url:
        settings_flags += ["--redis-url", args.redis_url]
    if args.redis_shards:
        settings_flags += ["--redis-shards", args.redis_shards]
    return run_role(prog, partial(_run, prog, args, answer), settings_flags)


def _run(prog: str, args: argparse.Namespace, answer: Answer, settings: Settings) -> int:
    settings, _ = with_local_fleet(settings, args.port)
    try:
        lines = asyncio.run(_awaited(answer(args, settings)))
    except (ToolError, *UNAVAILABLE) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return EXIT_FAILED
    print(*lines, sep="\n", end="\n" if lines else "")
    return EXIT_OK


async def _awaited(lines: Awaitable[list[str]]) -> list[str]:
    # asyncio.run takes coroutines, but no other awaitables.
    return await lines
