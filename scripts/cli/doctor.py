"""`aios doctor`: a look at what this machine has for a fleet, what it lacks, and what helps.

It takes all the flags of `aios serve hrm`, and looks at what a fleet with them would need. Nothing
is started or changed.
"""

import asyncio
import json
import platform
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
from redis.exceptions import ResponseError

from scripts.cli.colours import BAD, GOOD, POOR, coloured
from scripts.cli.embedded_redis import EmbeddedRedisError, find_redis_server
from scripts.cli.extras import EXTRAS, require_extras
from scripts.cli.runs.progress import waiting
from scripts.cli.watch.units import memory
from shared.artifacts.files import check_artifact_url
from shared.commands import EXIT_OK, Command, Flag
from shared.fleet.advice import on_open_door, on_open_files, on_redis, on_threads, open_files_limit
from shared.queue.broker import UNAVAILABLE, open_broker
from shared.settings.command_line import redis_url, run_with_flags, settings_flags
from shared.settings.hub import is_cached
from shared.settings.hub_names import hub_name
from shared.settings.paths import check_model_paths
from shared.settings.settings import Settings, SettingsError, model_entries
from worker.hardware import machine
from worker.hardware.shapes import shape_of

PROG = "aios doctor"
EXIT_FAULTY = 1
_MARKS = {"good": "ok", "poor": "warn", "bad": "FAIL"}
_COLOURS = {"good": GOOD, "poor": POOR, "bad": BAD}


@dataclass(frozen=True)
class Finding:
    """A thing, and what was found of it. A `remedy` says what to do about it, "" if nothing needs to be.

    A thing `is_needed` if the fleet cannot work while it has a remedy.
    """

    thing: str
    found: str
    remedy: str = ""
    is_needed: bool = False

    @property
    def state(self) -> str:
        if not self.remedy:
            return "good"
        return "bad" if self.is_needed else "poor"


def run(**flags: Any) -> int:
    """Print what was found, and return 0, 1 if something that is needed is missing, or 2."""
    return run_with_flags(click.get_current_context(), partial(_run, as_json=flags["json"]))


def _run(settings: Settings, *, as_json: bool) -> int:
    findings: list[Finding] = []
    with waiting("looking at this machine"):
        for check in CHECKS:
            findings += check(settings)
    if as_json:
        documents = [{**asdict(finding), "state": finding.state} for finding in findings]
        print(json.dumps({"findings": documents}))
    else:
        print(*_lines(findings), sep="\n")
    return EXIT_FAULTY if any(finding.state == "bad" for finding in findings) else EXIT_OK


def _lines(findings: Sequence[Finding]) -> list[str]:
    """Return the findings for people. A remedy is a line of its own."""
    width = max(len(finding.thing) for finding in findings)
    lines = []
    for finding in findings:
        mark = coloured(f"{_MARKS[finding.state]:<4}", _COLOURS[finding.state], bold=True)
        lines.append(f"{mark}  {finding.thing:<{width}}  {finding.found}")
        if finding.remedy:
            lines.append(f"{'':<4}  {'':<{width}}  -> {finding.remedy}")
    return lines


def _packages(settings: Settings) -> Iterator[Finding]:
    python = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield Finding("python", python)
    for extra, modules in EXTRAS.items():
        try:
            require_extras(extra)
        except SettingsError as error:
            found, _, remedy = str(error).partition("; ")
            yield Finding(f"packages of {extra}", found, remedy, is_needed=True)
        else:
            yield Finding(f"packages of {extra}", f"{', '.join(modules)}")


def _processor(settings: Settings) -> Iterator[Finding]:
    name, *_ = machine.processor()
    yield Finding("processor", name)
    if find_spec("torch") is None:
        return
    # Imported here, because it imports torch.
    from worker.native.library import INSTRUCTIONS, open_kernels

    found = [name for name in INSTRUCTIONS if open_kernels(name) is not None]
    remedy = ""
    if not found:
        remedy = (
            "everything is computed by torch alone, which is slower; in a checkout "
            "scripts/setup_venv.sh compiles the kernels"
        )
    yield Finding("kernels", found[0] if found else "none for this processor", remedy)


def _threads(settings: Settings) -> Iterator[Finding]:
    here = machine.survey("cpu")
    found = f"{here.num_cores} that may be used, {memory(here.cache_bytes)} of last-level cache"
    yield Finding("cores", found)
    try:
        shape = shape_of(settings, machine.survey(settings.device))
    except SettingsError as error:
        yield Finding("workers", "cannot be planned", str(error), is_needed=True)
        return
    advice = on_threads(shape.workers, shape.threads, here.num_cores)
    yield Finding("workers", f"{shape} ({shape.why})", "; ".join(advice))


def _memory(settings: Settings) -> Iterator[Finding]:
    free = machine.survey("cpu").free_memory_bytes
    if free:
        yield Finding("free memory", memory(free))


def _gpu(settings: Settings) -> Iterator[Finding]:
    if find_spec("torch") is None:
        return
    from worker.hardware.device import device_capabilities, select_device

    capabilities = device_capabilities()
    found = "none that torch finds"
    if capabilities["gpu_name"]:
        found = f"{capabilities['gpu_name']}, {capabilities['memory_gb']} GiB"
    remedy = ""
    if not capabilities["gpu_name"] and any(Path(node).exists() for node in machine.GPU_NODES):
        remedy = (
            "there is a GPU, but torch has no build for it: install the one of "
            "https://download.pytorch.org/whl/ for its CUDA or ROCm"
        )
    yield Finding("GPU", found, remedy)
    try:
        yield Finding("device", str(select_device(settings.device)))
    except SettingsError as error:
        yield Finding("device", f"{settings.device} is not here", str(error), is_needed=True)


def _models(settings: Settings) -> Iterator[Finding]:
    names = ", ".join(entry.id for entry in model_entries(settings))
    try:
        check_model_paths(settings)
    except SettingsError as error:
        yield Finding("models", names, str(error), is_needed=True)
        return
    yield Finding("models", names)
    yield from _hub_models(settings)
    if find_spec("torch") is None:
        return
    from worker.host.loading import obstacles

    for name, obstacle in obstacles(settings).items():
        yield Finding(f"model {name}", "cannot be served here", obstacle)


def _hub_models(settings: Settings) -> Iterator[Finding]:
    """Tell of models that a start would fetch. Nothing is fetched here."""
    if not settings.hub or find_spec("huggingface_hub") is None:
        return
    for entry in model_entries(settings):
        name = hub_name(entry.path)
        if name is None:
            continue
        found = "the start fetches it from the hub"
        if is_cached(name):
            found = "in the hub's cache"
        yield Finding(f"model {entry.id}", found)


def _redis(settings: Settings) -> Iterator[Finding]:
    if settings.redis_url is not None:
        yield from asyncio.run(_redis_elsewhere(settings))
        return
    try:
        yield Finding("Redis", f"{find_redis_server()}, started with the fleet")
    except EmbeddedRedisError as error:
        found, _, remedy = str(error).partition(": ")
        yield Finding("Redis", found, remedy, is_needed=True)


async def _redis_elsewhere(settings: Settings) -> list[Finding]:
    """Return what is found of the Redis that the settings name."""
    findings: list[Finding] = []
    try:
        async with open_broker(redis_url(settings), settings.redis_shards) as broker:
            for client in await broker.nodes():
                info = await client.info()
                found = f"version {info.get('redis_version')}, {len(broker.shards)} shards"
                findings.append(Finding("Redis", found))
                for advice in on_redis(info):
                    found, _, remedy = advice.rpartition("; ")
                    findings.append(Finding("Redis", found, remedy))
    except (SettingsError, ResponseError, *UNAVAILABLE) as error:
        remedy = "start it, or name another one by --redis-url"
        if isinstance(error, SettingsError):
            remedy = str(error)
        found = f"cannot be used: {error}"
        findings.append(Finding("Redis", found, remedy, is_needed=True))
    return findings


def _port(settings: Settings) -> Iterator[Finding]:
    found = f"{settings.host} port {settings.port}"
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            door.bind((settings.host, settings.port))
        except OSError as error:
            remedy = f"{error.strerror}: end what listens there, or choose another --port"
            yield Finding("address", found, remedy, is_needed=True)
            return
    requires_key = bool(settings.api_keys or settings.admin_keys)
    advice = on_open_door(settings.host, settings.port, requires_key=requires_key)
    yield Finding("address", f"{found} is free", "; ".join(advice))


def _limits(settings: Settings) -> Iterator[Finding]:
    limit = open_files_limit()
    found = "no limit" if limit is None else str(limit)
    advice = on_open_files(limit, settings.max_queue_depth)
    yield Finding("open files", found, "; ".join(advice))


def _places(settings: Settings) -> Iterator[Finding]:
    if settings.artifact_url is not None:
        try:
            check_artifact_url(settings)
        except SettingsError as error:
            yield Finding("artifacts", settings.artifact_url, str(error), is_needed=True)
        else:
            yield Finding("artifacts", settings.artifact_url)
    free = shutil.disk_usage(Path.home()).free
    remedy = ""
    if free < 2**30:
        remedy = "less than a gigabyte: caches and artifacts may not fit; make room"
    yield Finding("free disk", f"{memory(free)} at {Path.home()}", remedy)


CHECKS: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
    _packages,
    _processor,
    _threads,
    _memory,
    _gpu,
    _models,
    _redis,
    _port,
    _limits,
    _places,
)


command = Command(
    "doctor",
    callback=run,
    params=[
        Flag("--json", is_flag=True, help="print one JSON document"),
        *settings_flags(),
    ],
    help="""What this machine has for a fleet with these flags, what it lacks, and what helps.

Nothing is started or changed. Exits with 1 if something that is needed is missing.""",
    examples=(
        "aios doctor",
        "aios doctor --model-path ./my-checkpoint --port 9000",
        "aios doctor --json | jq .findings",
    ),
)
