"""`aios jobs`: the background role, whose sweeps and turns at work are cron jobs of arq.

Any number of processes may have this role: arq runs each sweep in one of them. The role may be
stopped at any time. Webhooks have a queue of their own (`scripts.cli.webhook_jobs`).

Once a second one process takes a turn at the batch that has waited longest, and one at such an
evaluation. A turn is short, and what it has reached lies in Redis, so that any process takes the
next one.
"""

import asyncio
import json
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any

import click
from arq import cron
from arq.cron import CronJob
from arq.worker import Worker
from redis.exceptions import WatchError

from scripts.cli.arq_queue import TAG, open_queue, queue_name, to_json
from scripts.cli.fleet_tool import redis_away
from scripts.cli.local_fleet import with_local_fleet
from scripts.cli.webhook_jobs import make_deliverer, make_webhook_worker
from shared.artifacts.store import open_artifacts
from shared.commands import EXIT_OK, Command, Flag, run_command
from shared.errors import StorageUnavailable
from shared.listener import Answer, listening
from shared.queue.broker import UNAVAILABLE, Broker, open_broker
from shared.queue.janitor import Janitor, Sweep
from shared.settings.command_line import (
    PROCESS,
    dry_run_flag,
    redis_url,
    run_with_flags,
    settings_flags,
    tell_of_variables,
)
from shared.settings.settings import Settings
from shared.signals import signals_call
from shared.supervised import report_ready
from shared.telemetry.logging_setup import configure_logging, fields
from shared.telemetry.metrics import CONTENT_TYPE, JanitorMetrics

PROG = "aios jobs"
EXIT_FAILED = 1
QUEUE = queue_name("queue")
EVERY_S = {"jobs": 10, "files": 3600, "batch_records": 300, "popularity": 3600}
"""The intervals of sweeps that do not run once a minute."""
TIMEOUT_S = 30
LISTING_S = 900
"""The times in which a sweep must end: any, and the one that lists all files of a bucket."""
TURN_S = 20.0
"""The time for which a batch or an evaluation is advanced before others have their turns."""
MOST_TURN_S = 1800
"""The time in which a turn must end. Writing the files of a large batch takes long."""
Turn = Callable[[float], Awaitable[bool]]
"""Advances the work of a kind that has waited longest, for so many seconds, if any waits."""
_MOST_AT_ONCE = 32
RETRY_DELAY_S = 1.0

log = logging.getLogger("aios.jobs")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the role with these flags and return its exit status."""
    return run_command(command, sys.argv[1:] if argv is None else argv, PROG)


def run(once: bool, dry_run: bool, **flags: Any) -> int:
    """Sweep once, or until a signal; return the exit status."""
    sweep = partial(_begin, once=once, dry_run=dry_run)
    return run_with_flags(click.get_current_context(), sweep)


def _begin(settings: Settings, *, once: bool, dry_run: bool) -> int:
    # Without a Redis URL the flag --port chooses a fleet of this machine. With one it is the setting
    # `port`, as for all roles, and chooses nothing.
    port = None
    if settings.redis_url is None and settings.origin("port") == "--port":
        port = settings.port
    settings, _ = with_local_fleet(settings, port)
    configure_logging(settings.log_level, settings.log_format)
    tell_of_variables(settings)
    # At INFO arq logs two lines for every sweep.
    logging.getLogger("arq").setLevel(logging.WARNING)
    return asyncio.run(_run(settings, once=once, dry_run=dry_run))


async def _run(settings: Settings, *, once: bool, dry_run: bool) -> int:
    metrics = JanitorMetrics()
    async with open_broker(
        redis_url(settings), settings.redis_shards, usage_days=settings.usage_days
    ) as broker:
        artifacts = open_artifacts(settings, broker)
        janitor = Janitor(broker, ttl_s=settings.result_ttl_s, dry_run=dry_run, artifacts=artifacts)
        if once:
            return await _once(janitor)
        async with (
            _serving_metrics(settings, metrics),
            _turns(settings, broker, metrics, dry_run=dry_run) as turns,
        ):
            parts = [partial(_work, broker, janitor, metrics, turns)]
            if not dry_run:
                deliverer = make_deliverer(settings, broker, metrics.webhooks)
                make = partial(make_webhook_worker, broker, deliverer)
                parts.append(partial(_for_ever, make))
            return await _work_until_stopped(*parts)


@asynccontextmanager
async def _turns(
    settings: Settings, broker: Broker, metrics: JanitorMetrics, *, dry_run: bool
) -> AsyncIterator[Mapping[str, Turn]]:
    """Return the turns at work that this process can take, by the kind of work; none if `dry_run`."""
    # Lines and items go the way of a front's requests.
    if dry_run or find_spec("fastapi") is None:
        log.info("batches and evaluations not advanced here")
        yield {}
        return
    from api.batches.open_advancer import open_advancer
    from api.evaluation.evaluator import open_evaluator

    turns: dict[str, Turn] = {}
    async with AsyncExitStack() as stack:
        evaluator = await stack.enter_async_context(
            open_evaluator(settings, broker, metrics.evaluations)
        )
        turns["evaluations"] = evaluator.advance_one
        # The files of batches need a place.
        if settings.artifact_url is None:
            log.info("batches not advanced here")
        else:
            advancer = await stack.enter_async_context(
                open_advancer(settings, broker, metrics.batches)
            )
            turns["batches"] = advancer.advance_one
        yield turns


@asynccontextmanager
async def _serving_metrics(settings: Settings, metrics: JanitorMetrics) -> AsyncIterator[None]:
    """Serve the counters while the context lasts, if the settings name a port for them."""

    async def rendered() -> Answer:
        return 200, CONTENT_TYPE, metrics.render()

    if settings.metrics_port is None:
        yield
        return
    async with listening(settings, "metrics_port", {"/metrics": rendered}):
        yield


async def _work_until_stopped(*parts: Callable[[], Coroutine[Any, Any, None]]) -> int:
    """Run all parts until a signal or the failure of one, and return the exit status."""
    stop = asyncio.Event()
    with signals_call({"SIGTERM": stop.set, "SIGINT": stop.set}):
        report_ready()
        working = [asyncio.create_task(part()) for part in parts]
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({*working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        for task in working:
            task.cancel()
        ends = await asyncio.gather(*working, return_exceptions=True)
    for end in ends:
        # A cancelled task ends with CancelledError, which is no Exception.
        if isinstance(end, Exception):
            log.error("background role broke", exc_info=end)
            return EXIT_FAILED
    return EXIT_OK


async def _once(janitor: Janitor) -> int:
    """Run every sweep, print their repairs as one line of JSON, and return the exit status."""
    repairs = {}
    try:
        for name, sweep in janitor.sweeps.items():
            repairs[name] = await sweep()
    except StorageUnavailable as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return EXIT_FAILED
    except UNAVAILABLE as error:
        print(f"{PROG}: {redis_away(error)}", file=sys.stderr)
        return EXIT_FAILED
    print(json.dumps(repairs))
    return EXIT_OK


async def _work(
    broker: Broker, janitor: Janitor, metrics: JanitorMetrics, turns: Mapping[str, Turn]
) -> None:
    """Sweep, and take turns at work, for ever."""
    await _for_ever(lambda: make_worker(broker, janitor, metrics, turns))


async def _for_ever(make: Callable[[], Worker]) -> None:
    """Run a worker of arq for ever; while Redis is unavailable, try again every second."""
    while True:
        try:
            await make().async_run()
        except (WatchError, *UNAVAILABLE) as error:
            # A connection that breaks while arq watches a key is told as a WatchError.
            log.warning("redis trouble", extra=fields(error=str(error)))
            await asyncio.sleep(RETRY_DELAY_S)


def make_worker(
    broker: Broker,
    janitor: Janitor,
    metrics: JanitorMetrics,
    turns: Mapping[str, Turn] = MappingProxyType({}),
    **options: Any,
) -> Worker:
    """Return arq's worker for the sweeps, and for turns at work.

    It uses the broker's connections and never closes them.
    """
    redis = open_queue(broker, QUEUE)
    # Each sweep has a second of its own, so that they do not all begin at once.
    cron_jobs = []
    for second, (name, sweep) in enumerate(janitor.sweeps.items()):
        cron_jobs.append(_cron(name, second, sweep, metrics))
    for kind, turn in turns.items():
        cron_jobs.append(_turn_cron(kind, turn))
    return Worker(
        redis_pool=redis,
        queue_name=QUEUE,
        job_serializer=to_json,
        job_deserializer=json.loads,
        cron_jobs=cron_jobs,
        handle_signals=False,
        job_timeout=TIMEOUT_S,
        # Turns, which bound their number by themselves, hold up no sweep.
        max_jobs=_MOST_AT_ONCE,
        keep_result=0,
        log_results=False,
        **options,
    )


def _cron(name: str, second: int, sweep: Sweep, metrics: JanitorMetrics) -> CronJob:
    """Return arq's cron job of a sweep, which first runs at this second of its minutes."""

    async def run_sweep(ctx: dict[Any, Any], *args: Any, **kwargs: Any) -> None:
        try:
            repairs = await sweep()
        except StorageUnavailable as error:
            log.warning("sweep failed", extra=fields(sweep=name, error=error.message))
            return
        metrics.sweeps.labels(name).inc()
        metrics.last_sweep.labels(name).set_to_current_time()
        for kind, count in repairs.items():
            metrics.found.labels(kind).inc(count)
        if repairs:
            log.warning("sweep put things right", extra=fields(sweep=name, found=repairs))

    # So a sweep that never succeeds is as long ago as this process, and can be alerted on.
    metrics.last_sweep.labels(name).set_to_current_time()
    every_s = EVERY_S.get(name, 60)
    return cron(
        run_sweep,
        name=f"{{{TAG}}}:{name}",
        minute=set(range(0, 60, max(1, every_s // 60))),
        second=set(range(second, 60, min(60, every_s))),
        max_tries=1,
        timeout=LISTING_S if name == "files" else TIMEOUT_S,
    )


def _turn_cron(kind: str, turn: Turn) -> CronJob:
    """Return arq's cron job that takes a turn at work of a kind, once a second."""

    async def take_turn(ctx: dict[Any, Any], *args: Any, **kwargs: Any) -> None:
        await turn(TURN_S)

    return cron(
        take_turn,
        name=f"{{{TAG}}}:{kind}",
        second=set(range(60)),
        max_tries=1,
        timeout=MOST_TURN_S,
    )


command = Command(
    "jobs",
    callback=run,
    params=[
        Flag("--once", is_flag=True, help="do every sweep and end", section=PROCESS),
        dry_run_flag("change nothing"),
        *settings_flags(),
    ],
    help="""The background role: it tidies up, advances batches and evaluations, and sends webhooks.

Without --redis-url it works for the fleet that runs on this machine; where several run, --port chooses
one. --metrics-port shows its counters.""",
    examples=(
        "aios jobs --redis-url redis://redis:6379/0",
        "aios jobs --once --dry-run",
    ),
)


if __name__ == "__main__":
    sys.exit(main())
