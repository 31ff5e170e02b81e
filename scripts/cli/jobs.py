"""`aios jobs`: the background role, which runs the janitor's sweeps by arq's clock.

Only this module knows arq. What arq reads from Redis is JSON, never pickle. Any number of these
roles share the work: arq runs each sweep once. All its keys carry one hash tag, so that it runs on
a cluster too. Stopping it harms nothing.
"""

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from arq import cron
from arq.connections import ArqRedis
from arq.constants import abort_jobs_ss
from arq.cron import CronJob
from arq.worker import Worker

from scripts.cli.local_fleet import with_local_fleet
from shared.artifacts.store import open_artifacts
from shared.listener import Answer, listening
from shared.queue.broker import UNAVAILABLE, Broker, open_broker
from shared.queue.janitor import Janitor, Sweep
from shared.settings.command_line import EXIT_OK, redis_url, run_role, tell_of_variables
from shared.settings.settings import Settings
from shared.signals import signals_call
from shared.supervised import report_ready
from shared.telemetry.logging_setup import configure_logging, fields
from shared.telemetry.metrics import CONTENT_TYPE, JanitorMetrics

PROG = "aios jobs"
EXIT_FAILED = 1
# The one key of arq's that cannot carry a hash tag: the others go where it is.
TAG = abort_jobs_ss
QUEUE = f"aios:{{{TAG}}}:queue"
EVERY_S = {"jobs": 10}  # others once a minute
TIMEOUT_S = 30
AGAIN_AFTER_S = 1.0

log = logging.getLogger("aios.jobs")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the role with these flags and return its exit status."""
    parser = argparse.ArgumentParser(prog=PROG, add_help=False, allow_abbrev=False)
    parser.add_argument("--once", action="store_true")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--port", type=int)
    asked, flags = parser.parse_known_args(argv)
    if {"-h", "--help"} & set(flags):
        print(
            "--once: do every sweep and end; --dry-run: change nothing; --metrics-port N: "
            "show counters at port N;"
        )
        print("--port N: for the fleet of this machine with that port, if several run here")
    return run_role(PROG, partial(run, asked), flags)


def run(asked: argparse.Namespace, settings: Settings) -> int:
    """Sweep once, or until told to stop; return the exit status."""
    # Beside a Redis URL the port is what it is for all roles: where a front listens.
    port = asked.port if settings.redis_url is None else None
    settings, _ = with_local_fleet(settings, port)
    configure_logging(settings.log_level, settings.log_format)
    tell_of_variables(settings)
    logging.getLogger("arq").setLevel(logging.WARNING)  # two lines for every sweep are not news
    return asyncio.run(_run(asked, settings))


async def _run(asked: argparse.Namespace, settings: Settings) -> int:
    metrics = JanitorMetrics()
    async with open_broker(redis_url(settings), settings.redis_shards) as broker:
        artifacts = open_artifacts(settings, broker)
        janitor = Janitor(
            broker, ttl_s=settings.result_ttl_s, dry_run=asked.dry_run, artifacts=artifacts
        )
        if asked.once:
            return await _once(janitor)
        async with _serving_metrics(settings, metrics):
            return await _sweep_until_stopped(broker, janitor, metrics)


@asynccontextmanager
async def _serving_metrics(settings: Settings, metrics: JanitorMetrics) -> AsyncIterator[None]:
    """Serve the counters at a port in this context, where one is asked for."""

    async def rendered() -> Answer:
        return 200, CONTENT_TYPE, metrics.render()

    if settings.metrics_port is None:
        yield
        return
    async with listening(settings, "metrics_port", {"/metrics": rendered}):
        yield


async def _sweep_until_stopped(broker: Broker, janitor: Janitor, metrics: JanitorMetrics) -> int:
    """Sweep until a signal says stop, and return the exit status."""
    stop = asyncio.Event()
    with signals_call({"SIGTERM": stop.set, "SIGINT": stop.set}):
        report_ready()
        working = asyncio.create_task(_work(broker, janitor, metrics))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        working.cancel()
        [end] = await asyncio.gather(working, return_exceptions=True)
    # A cancelled task ends with CancelledError, which is no Exception.
    if isinstance(end, Exception):
        log.error("background role broke", exc_info=end)
        return EXIT_FAILED
    return EXIT_OK


async def _once(janitor: Janitor) -> int:
    """Do every sweep and print what each found, as one line of JSON."""
    found = {}
    try:
        for name, sweep in janitor.sweeps.items():
            found[name] = await sweep()
    except UNAVAILABLE as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return EXIT_FAILED
    print(json.dumps(found))
    return EXIT_OK


async def _work(broker: Broker, janitor: Janitor, metrics: JanitorMetrics) -> None:
    """Sweep for ever; while Redis is away, wait for it."""
    while True:
        try:
            await make_worker(broker, janitor, metrics).async_run()
        except UNAVAILABLE as error:
            log.warning("redis trouble", extra=fields(error=str(error)))
            await asyncio.sleep(AGAIN_AFTER_S)


def make_worker(
    broker: Broker, janitor: Janitor, metrics: JanitorMetrics, **options: Any
) -> Worker:
    """Return arq's worker over the broker's connections, which it never closes."""
    redis = ArqRedis(
        broker.client(TAG).connection_pool, to_json, json.loads, default_queue_name=QUEUE
    )
    # Each sweep has a second of its own, so that they do not all begin at once.
    cron_jobs = []
    for second, (name, sweep) in enumerate(janitor.sweeps.items()):
        cron_jobs.append(_cron(name, second, sweep, metrics))
    return Worker(
        redis_pool=redis,
        queue_name=QUEUE,
        job_serializer=to_json,
        job_deserializer=json.loads,
        cron_jobs=cron_jobs,
        handle_signals=False,
        job_timeout=TIMEOUT_S,
        keep_result=0,
        log_results=False,
        **options,
    )


def to_json(value: Any) -> bytes:
    """Return a value as the JSON that arq stores, with an exception as its text."""
    return json.dumps(value, default=repr).encode()


def _cron(name: str, second: int, sweep: Sweep, metrics: JanitorMetrics) -> CronJob:
    """Return arq's job of a sweep, first due at this second of every minute."""

    async def turn(ctx: dict[Any, Any], *args: Any, **kwargs: Any) -> None:
        found = await sweep()
        metrics.sweeps.labels(name).inc()
        for what, count in found.items():
            metrics.found.labels(what).inc(count)
        if found:
            log.warning("sweep put things right", extra=fields(sweep=name, found=found))

    seconds = set(range(second, 60, EVERY_S.get(name, 60)))
    return cron(turn, name=f"{{{TAG}}}:{name}", second=seconds, max_tries=1)


if __name__ == "__main__":
    sys.exit(main())
