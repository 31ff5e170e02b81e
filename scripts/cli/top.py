"""`aios top`: the fleet, again and again.

Snapshots are drawn in place on a terminal, else one after the other.
"""

import argparse
import asyncio
import itertools
import os
import sys
import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from shutil import get_terminal_size
from typing import Generic, TypeVar

from scripts.cli.local_fleet import PORT_HELP, with_local_fleet
from scripts.cli.status import EXITS
from scripts.cli.watch import fronts
from scripts.cli.watch.fronts import Fronts, scrape
from scripts.cli.watch.rates import rates
from scripts.cli.watch.screen import Requests, View, screen
from shared.fleet.snapshot import Snapshot, look
from shared.queue.broker import Broker, open_unsettled
from shared.settings.command_line import EXIT_OK, redis_url, run_role
from shared.settings.settings import Settings
from shared.signals import signals_call

PROG = "aios top"
_T = TypeVar("_T")
# Rates are those of the last seconds, at most so many.
WINDOW_S = 10.0


def main(argv: Sequence[str]) -> int:
    """Show the fleet until somebody has seen enough, and return the exit status."""
    asked = _parser().parse_args(argv)
    flags = ["--redis-url", asked.redis_url] if asked.redis_url else []
    return run_role(PROG, partial(run, asked), flags)


def run(asked: argparse.Namespace, settings: Settings) -> int:
    """Watch the fleet and return the exit status.

    It is 0 when somebody left, and after `--count` looks that of `aios status`.
    """
    settings, fleet = with_local_fleet(settings, asked.port)
    if fleet is not None and fleet.has_open_metrics and not asked.front:
        asked.front = [fleet.url]
    return asyncio.run(_watch(asked, redis_url(settings)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG, description="The fleet as it works. q or Ctrl-C leaves."
    )
    parser.add_argument("--redis-url", help="Redis of the fleet [env: AIOS_REDIS_URL]")
    parser.add_argument("--port", type=int, help=PORT_HELP)
    parser.add_argument(
        "--front",
        action="append",
        default=[],
        type=_url,
        metavar="URL",
        help=(
            "a front to ask for latencies and errors (its port, or --metrics-port); may be repeated"
        ),
    )
    parser.add_argument(
        "--every",
        type=_seconds,
        default=1.0,
        metavar="SECONDS",
        help="between two looks (default 1)",
    )
    parser.add_argument("--count", type=_count, metavar="N", help="end after N looks")
    parser.add_argument(
        "--once", action="store_const", dest="count", const=1, help="the same as --count 1"
    )
    return parser


async def _watch(asked: argparse.Namespace, url: str) -> int:
    """Watch the fleet until a signal or `q` cancels the task that looks, wherever it is."""
    async with open_unsettled(url) as broker:
        watcher = Watcher(broker, asked.front)
        if sys.stdout.isatty() and os.name == "posix" and asked.count is None:
            watching = _live(watcher, asked.every)
        else:
            watching = _plain(watcher, asked.every, asked.count)
        looking = asyncio.create_task(watching)
        with signals_call({"SIGINT": looking.cancel, "SIGTERM": looking.cancel}):
            try:
                return await looking
            except asyncio.CancelledError:
                return EXIT_OK


async def _live(watcher: "Watcher", every_s: float) -> int:
    """Draw one snapshot over the other, until cancelled."""
    from scripts.cli.watch.terminal import canvas, draw, size  # not on Windows

    this = asyncio.current_task()
    assert this is not None
    view: View | None = None

    def redraw() -> None:
        if view is not None:
            draw(screen(view, size()[0]))

    def on_key(key: str) -> None:
        if key in "qQ":
            this.cancel()

    with canvas(on_key), signals_call({"SIGWINCH": redraw}):
        draw([f"{PROG}: looking"])
        while True:
            view = await watcher.view()
            redraw()
            await asyncio.sleep(every_s)


async def _plain(watcher: "Watcher", every_s: float, count: int | None) -> int:
    """Print snapshots with an empty line between, `count` of them or until nobody reads on."""
    for number in itertools.count(1):
        view = await watcher.view()
        try:
            print(*screen(view, get_terminal_size().columns), sep="\n", flush=True)
            if number == count:
                return EXITS[view.now.status]
            print()
        except BrokenPipeError:
            # What is still to be flushed goes nowhere: it would raise again at the exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return EXIT_OK
        await asyncio.sleep(every_s)
    raise AssertionError("it counts on")


class Watcher:
    """An observer of a fleet, which remembers what it saw lately."""

    def __init__(self, broker: Broker, front_urls: Sequence[str]) -> None:
        self._broker = broker
        self._urls = front_urls
        self._snapshots: Recent[Snapshot] = Recent()
        self._fronts: Recent[Fronts] = Recent()

    async def view(self) -> View:
        now, requests = await asyncio.gather(look(self._broker), self._requests())
        if now.status == "redis_away":
            return View(now, requests=requests)
        before, elapsed_s = self._snapshots.add(now)
        worker_rates = rates(before, now) if before else None
        return View(now, worker_rates, elapsed_s, requests)

    async def _requests(self) -> Requests | None:
        if not self._urls:
            return None
        now = await asyncio.to_thread(scrape, self._urls)
        before, elapsed_s = self._fronts.add(now)
        front_rates = fronts.rates(before, now, elapsed_s) if before else None
        return Requests(len(now.counts), now.problems, front_rates, fronts.latencies(before, now))


class Recent(Generic[_T]):
    """The readings of the last `WINDOW_S`, and one from before that."""

    def __init__(self) -> None:
        self._readings: deque[tuple[float, _T]] = deque()

    def add(self, reading: _T) -> tuple[_T | None, float]:
        """Return the reading of about `WINDOW_S` ago, or the first one, and the seconds since.

        Return None and 0 if this is the first.
        """
        now_s = time.monotonic()
        while len(self._readings) > 1 and now_s - self._readings[1][0] >= WINDOW_S:
            self._readings.popleft()
        self._readings.append((now_s, reading))
        if len(self._readings) == 1:
            return None, 0.0
        at_s, before = self._readings[0]
        return before, now_s - at_s


def _url(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"expected a URL as http://HOST:8000, got {text!r}")
    return text


def _seconds(text: str) -> float:
    if not (text.replace(".", "", 1).isdecimal() and 0.1 <= float(text) <= 3600):
        raise argparse.ArgumentTypeError(f"expected seconds from 0.1 to 3600, got {text!r}")
    return float(text)


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"expected a number of looks above 0, got {text!r}")
    return int(text)
