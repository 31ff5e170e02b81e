"""What the tools beside a fleet have in common: their flags, how they find it, and what they
print."""

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable
from functools import partial

from scripts.local_fleet import PORT_HELP, with_local_fleet
from shared.broker import UNAVAILABLE
from shared.cli import EXIT_OK, run_role
from shared.settings import Settings

EXIT_FAILED = 1
Answer = Callable[[argparse.Namespace, Settings], Awaitable[list[str]]]
"""Does what was asked, and returns the lines to print."""


class ToolError(Exception):
    """What was asked for cannot be done; the message tells why."""


def parser_of(prog: str, description: str) -> argparse.ArgumentParser:
    """Return a parser with the flags of every tool, to which commands are added with `flags` as
    their parents."""
    parser = argparse.ArgumentParser(prog=prog, parents=[flags()], description=description)
    parser.set_defaults(redis_url=None, redis_shards=None, port=None, json=False)
    return parser


def flags() -> argparse.ArgumentParser:
    """Return what may stand before the command and behind it; made anew for each, as parsers change
    it."""
    made = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    made.add_argument("--redis-url", help="Redis of the fleet [env: AIOS_REDIS_URL]")
    made.add_argument("--redis-shards", help="as the fleet has it [env: AIOS_REDIS_SHARDS]")
    made.add_argument("--port", type=int, help=PORT_HELP)
    made.add_argument("--json", action="store_true", help="print JSON, one document a line")
    return made


def run_tool(prog: str, asked: argparse.Namespace, answer: Answer) -> int:
    """Find the fleet, print the answer and return the exit status: 1 with a line on stderr for a
    ToolError, or where there is no Redis."""
    given = ["--redis-url", asked.redis_url] if asked.redis_url else []
    if asked.redis_shards:
        given += ["--redis-shards", asked.redis_shards]
    return run_role(prog, partial(_run, prog, asked, answer), given)


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
