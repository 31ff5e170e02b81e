"""`aios top`: a view of the fleet that is renewed every second.

On a terminal each view is drawn over the one before. Elsewhere they are printed one after the
other.
"""

import asyncio
import itertools
import os
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from shutil import get_terminal_size
from typing import Any, Generic, TypeVar

import click

from scripts.cli.colours import painted
from scripts.cli.flag_types import http_url
from scripts.cli.fleet_tool import FleetFlags, fleet_flags
from scripts.cli.local_fleet import with_local_fleet
from scripts.cli.status import EXITS
from scripts.cli.watch import fronts
from scripts.cli.watch.fronts import Fronts, scrape
from scripts.cli.watch.rates import rates
from scripts.cli.watch.screen import Requests, View, screen
from shared.commands import Command, Flag
from shared.fleet.snapshot import Snapshot, look
from shared.queue.broker import Broker, open_unsettled
from shared.settings.command_line import EXIT_OK, redis_url, run_with_settings
from shared.settings.settings import Settings
from shared.signals import signals_call

PROG = "aios top"
_T = TypeVar("_T")
WINDOW_S = 10.0
"""The time over which rates are computed."""


@click.pass_obj
def run(flags: FleetFlags, /, **watch: Any) -> int:
    """Show the fleet until `q`, a signal or `--count` ends it, and return the exit status."""
    watching = Watch(watch["front"], watch["every"], 1 if watch["once"] else watch["count"])
    given = {"redis_url": flags.redis_url}
    return run_with_settings(PROG, partial(_run, flags, watching), given)


@dataclass(frozen=True)
class Watch:
    """The fronts that are asked, the seconds between two looks, and how many looks, None for all."""

    front_urls: Sequence[str]
    every_s: float
    count: int | None


def _run(flags: FleetFlags, watch: Watch, settings: Settings) -> int:
    """Watch the fleet and return the exit status.

    It is 0 after `q` or a signal, and after `--count` views that of `aios status`.
    """
    settings, fleet = with_local_fleet(settings, flags.port)
    if fleet is not None and fleet.has_open_metrics and not watch.front_urls:
        watch = replace(watch, front_urls=[fleet.url])
    return asyncio.run(_watch(watch, redis_url(settings)))


async def _watch(watch: Watch, url: str) -> int:
    """Watch the fleet in a task until a signal or `q` cancels the task, wherever it waits."""
    async with open_unsettled(url) as broker:
        watcher = Watcher(broker, watch.front_urls)
        if sys.stdout.isatty() and os.name == "posix" and watch.count is None:
            watching = _live(watcher, watch.every_s)
        else:
            watching = _plain(watcher, watch.every_s, watch.count)
        task = asyncio.create_task(watching)
        with signals_call({"SIGINT": task.cancel, "SIGTERM": task.cancel}):
            try:
                return await task
            except asyncio.CancelledError:
                return EXIT_OK


async def _live(watcher: "Watcher", every_s: float) -> int:
    """Draw one view over the other, until cancelled."""
    # Windows has no `termios`, which this module imports.
    from scripts.cli.watch.terminal import canvas, draw, size

    task = asyncio.current_task()
    assert task is not None
    view: View | None = None

    def redraw() -> None:
        if view is not None:
            draw(painted(screen(view, size()[0])))

    def on_key(key: str) -> None:
        if key in "qQ":
            task.cancel()

    with canvas(on_key), signals_call({"SIGWINCH": redraw}):
        draw([f"{PROG}: looking"])
        while True:
            view = await watcher.view()
            redraw()
            await asyncio.sleep(every_s)


async def _plain(watcher: "Watcher", every_s: float, count: int | None) -> int:
    """Print views with an empty line between them, until `count` or until stdout is closed.

    Return 0 if stdout is closed, else the exit status of `aios status` for the last view.
    """
    for number in itertools.count(1):
        view = await watcher.view()
        try:
            lines = screen(view, get_terminal_size().columns)
            print(*painted(lines), sep="\n", flush=True)
            if number == count:
                return EXITS[view.now.status]
            print()
        except BrokenPipeError:
            # Python flushes stdout at its exit: with the null device that does not raise again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return EXIT_OK
        await asyncio.sleep(every_s)
    raise AssertionError("it counts on")


class Watcher:
    """An observer of a fleet, which keeps its last snapshots and scrapes to compute rates."""

    def __init__(self, broker: Broker, front_urls: Sequence[str]) -> None:
        self._broker = broker
        self._urls = front_urls
        self._snapshots: Recent[Snapshot] = Recent()
        self._fronts: Recent[Fronts] = Recent()

    async def view(self) -> View:
        """Return the view of the fleet now."""
        now, requests = await asyncio.gather(look(self._broker), self._requests())
        if now.status == "redis_away":
            return View(now, requests=requests)
        before, elapsed_s = self._snapshots.add(now)
        worker_rates = None
        if before is not None:
            worker_rates = rates(before, now)
        return View(now, worker_rates, elapsed_s, requests)

    async def _requests(self) -> Requests | None:
        """Scrape the fronts. Return None if there are none."""
        if not self._urls:
            return None
        now = await asyncio.to_thread(scrape, self._urls)
        before, elapsed_s = self._fronts.add(now)
        front_rates = None
        if before is not None:
            front_rates = fronts.rates(before, now, elapsed_s)
        return Requests(
            num_answering=len(now.counts),
            problems=now.problems,
            rates=front_rates,
            latencies=fronts.latencies(before, now),
        )


class Recent(Generic[_T]):
    """The readings of the last `WINDOW_S`, and one from before, each with its time."""

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
        read_at_s, before = self._readings[0]
        return before, now_s - read_at_s


def _seconds(text: str) -> float:
    if not (text.replace(".", "", 1).isdecimal() and 0.1 <= float(text) <= 3600):
        raise ValueError(f"expected seconds from 0.1 to 3600, got {text!r}")
    return float(text)


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text) > 0):
        raise ValueError(f"expected a number of looks above 0, got {text!r}")
    return int(text)


command = Command(
    "top",
    callback=run,
    params=[
        *fleet_flags(shards=False, json_help=None),
        Flag(
            "--front",
            multiple=True,
            type=http_url,
            metavar="URL",
            help="a front to ask for latencies and errors (its port, or --metrics-port); may be "
            "repeated",
        ),
        Flag(
            "--every",
            type=_seconds,
            default="1",
            metavar="SECONDS",
            help="between two looks (default 1)",
        ),
        Flag("--count", type=_count, metavar="N", help="end after N looks"),
        Flag("--once", is_flag=True, help="the same as --count 1"),
    ],
    help="The fleet as it works, renewed every second. q or Ctrl-C leaves.",
    examples=("aios top", "aios top --once", "aios top --front http://localhost:8000 --every 5"),
)
