"""`python -m worker` and `aios worker`: one worker process, its signals and its exit status."""

import asyncio
import json
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import NoReturn

from shared import garbage
from shared.artifacts.store import open_artifacts
from shared.event_loop import new_event_loop
from shared.fleet.advice import advise, on_threads
from shared.listener import Answer, Routes, listening
from shared.queue.broker import open_broker
from shared.queue.leases import QueuePolicy
from shared.settings.command_line import redis_url, run_role, tell_of_variables
from shared.settings.hub import with_hub_models
from shared.settings.paths import check_model_paths
from shared.settings.settings import Settings
from shared.signals import signals_call
from shared.supervised import report_ready
from shared.telemetry.logging_setup import configure_logging, fields
from shared.telemetry.metrics import CONTENT_TYPE, WorkerMetrics
from shared.telemetry.tracing import open_tracing
from worker.hardware import machine
from worker.hardware.device import CORES_ENV, keep_freed_memory, use_cores, use_threads
from worker.hardware.memory_guard import MemoryGuard
from worker.hardware.openmp import use_ready_threads
from worker.hardware.shapes import shape_of
from worker.host.budget import Budget
from worker.host.loading import (
    LoadedModel,
    load_known_models,
    load_models,
    obstacles,
    survey,
    warm_up,
)
from worker.host.service import WorkerService

EXIT_OK = 0
EXIT_BROKEN = 1

logger = logging.getLogger("aios.worker")


def run(settings: Settings) -> NoReturn:
    """Serve until SIGTERM or SIGINT, then end the process.

    Raise SettingsError for a model that cannot be loaded.
    """
    configure_logging(settings.log_level, settings.log_format)
    tell_of_variables(settings)
    settings = _prepared(settings)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        _end(runner.run(_serve(settings)))


def _end(status: int) -> NoReturn:
    """End the process at once, with this exit status."""
    # An orderly end would wait for threads whose work nobody will use: a step, a load, a long
    # prompt.
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def dry_run(settings: Settings) -> int:
    """Load every model, run a trial task on each and print a description. Serve nothing."""
    logging.basicConfig(level=logging.WARNING)
    settings = _prepared(settings)
    for obstacle in obstacles(settings).values():
        print(obstacle)
    for model in load_models(settings):
        info = model.info
        suffix = " (default)" if info.is_default else ""
        print(f"{info.id}{suffix}: {info.found}; context window {info.context_window} tokens")
        for name, reason in model.not_obeyed.items():
            print(f"  {name} is not obeyed: {reason}")
        print(f"  {warm_up(model.runner)}")
    return EXIT_OK


def _prepared(settings: Settings) -> Settings:
    """Prepare the process, and return the settings with the directories of models of the hub.

    Raise SettingsError for a model that cannot be had or read.
    """
    check_model_paths(settings)
    settings = with_hub_models(settings, may_end=True)
    prepare_process(settings)
    # Whether there is a GPU is known by torch, which is imported after the process is prepared.
    return with_hub_models(settings, has_gpu=not obstacles(settings), may_end=True)


def prepare_process(settings: Settings) -> None:
    """Set the number of threads, the cores and malloc's options.

    Call this before torch is imported and before threads are started: both inherit the settings.
    """
    # Progress bars of loading would be mixed into the log's lines.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if "huggingface_hub" in sys.modules:
        # It has read the variable already, to fetch a model.
        sys.modules["huggingface_hub"].utils.disable_progress_bars()
    cores = os.environ.get(CORES_ENV)
    if cores and settings.pin_cores:
        use_cores(cores)

    threads = settings.threads
    reason = "threads: as set"
    if threads == "auto":
        single_worker = settings.model_copy(update={"workers": 1})
        shape = shape_of(single_worker, machine.survey(settings.device))
        threads = shape.threads
        reason = shape.why
    elif not cores:
        advise(on_threads(1, threads, machine.survey("cpu").num_cores))
    use_threads(threads)
    runtime = use_ready_threads(threads)
    keep_freed_memory()
    logger.info(
        "threads chosen",
        extra=fields(
            threads=threads,
            why=reason,
            cores=cores or "not pinned",
            openmp=runtime or "of torch",
        ),
    )


async def _serve(settings: Settings) -> int:
    stop = asyncio.Event()
    policy = QueuePolicy(settings.lease_s, settings.ageing_s, result_ttl_s=settings.result_ttl_s)
    tracing = open_tracing(settings.otlp_endpoint, "worker")
    async with open_broker(
        redis_url(settings), settings.redis_shards, usage_days=settings.usage_days
    ) as broker:
        service = WorkerService(
            broker,
            policy,
            drain_timeout_s=settings.drain_s,
            batch_wait_s=settings.batch_wait_ms / 1000,
            task_niceness=settings.task_niceness,
            survey=partial(survey, settings=settings),
            artifacts=open_artifacts(settings, broker),
            budget=Budget(settings.max_loaded_models, settings.memory_watermark),
            num_preloaded=settings.preload_models,
            bonus_s=settings.popularity_bonus_s,
            half_life_s=settings.popularity_half_life_s,
            pool=settings.pool,
            memory_guard=MemoryGuard(settings.memory_high_water),
            tracing=tracing,
            on_ready=_on_ready,
        )
        with signals_call({"SIGTERM": stop.set, "SIGINT": stop.set}):
            async with _listening(settings, service):
                survived = await service.run(partial(_load, settings, service), stop)
    tracing.close()
    return EXIT_OK if survived else EXIT_BROKEN


def _on_ready() -> None:
    garbage.settle()
    report_ready()


def _load(settings: Settings, service: WorkerService) -> list[LoadedModel]:
    models, service.unloaded = load_known_models(
        settings, service.known_models, most=settings.max_loaded_models
    )
    service.obstacles = obstacles(settings)
    return models


@asynccontextmanager
async def _listening(settings: Settings, service: WorkerService) -> AsyncIterator[None]:
    """Answer probes and scrapers on the worker's own port, if the settings name one."""
    if settings.worker_port is None:
        yield
        return
    metrics = WorkerMetrics()
    service.tell(metrics)
    routes = health_routes(metrics, service.hangs, service.not_ready)
    async with listening(settings, "worker_port", routes):
        yield


_Check = Callable[[], str | None]
"""A check that returns a sentence on what is wrong, or None when nothing is wrong."""


def health_routes(metrics: WorkerMetrics, hangs: _Check, not_ready: _Check) -> Routes:
    """Return the routes of the worker's own port, for probes and scrapers.

    `/healthz` answers 503 while the worker makes no progress, and `/readyz` while it takes no jobs.
    """

    async def healthz() -> Answer:
        return _health("ok", hangs())

    async def readyz() -> Answer:
        return _health("ready", not_ready())

    async def rendered() -> Answer:
        return 200, CONTENT_TYPE, metrics.render()

    return {"/healthz": healthz, "/readyz": readyz, "/metrics": rendered}


def _health(healthy_status: str, problem: str | None) -> Answer:
    status = 200
    body = {"status": healthy_status}
    if problem is not None:
        status = 503
        body = {"status": f"not {healthy_status}", "reason": problem}
    return status, "application/json", json.dumps(body).encode()


if __name__ == "__main__":
    sys.exit(run_role("python -m worker", run, dry_run=dry_run))
