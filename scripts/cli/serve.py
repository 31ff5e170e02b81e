"""`aios serve hrm`, a whole fleet on this machine, and `aios api` and `aios worker`, a role of one.

A fleet is an embedded Redis (unless `--redis-url` names another), a front, some workers and a janitor
under a supervisor. The children get the resolved settings through their environment, so each
setting is resolved only once.
"""

import asyncio
import json
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from scripts.cli import ui
from scripts.cli.child_env import child_env, without_keys
from scripts.cli.embedded_redis import EmbeddedRedis, EmbeddedRedisError
from scripts.cli.extras import require_extras
from scripts.cli.local_fleet import LocalFleet, announced
from scripts.cli.placement import place_workers
from scripts.cli.runs.progress import waiting
from scripts.cli.supervisor import MOST_FAILED_STARTS, Role, Supervisor
from shared import plugins
from shared.access import Keyring
from shared.artifacts.files import check_artifact_url
from shared.commands import Group
from shared.fleet.presence import Fleet, Presence
from shared.listener import open_port, port_of
from shared.messages import ModelInfo
from shared.queue import keys
from shared.queue.broker import UNAVAILABLE, open_broker
from shared.settings.command_line import (
    redis_url,
    role_command,
    tell_of_variables,
)
from shared.settings.hub import with_hub_models
from shared.settings.layers import env_name
from shared.settings.paths import check_model_paths, read_text
from shared.settings.settings import (
    DEFAULT_MODEL,
    FINISH_S,
    HAND_OVER_S,
    Settings,
    model_entries,
)
from shared.supervised import REDIS_ENDS_ENV
from shared.telemetry.logging_setup import chosen_style, configure_logging, fields

# A child that still runs so long after its drain will not end by itself.
KILL_AFTER_DRAIN_S = 10.0
UI_GRACE_S = 5.0
REDIS_CHECK_S = 0.5
# A Redis that dies sooner counts as one that did not start.
REDIS_LIVES_S = 10.0
READY_CHECK_S = 0.2
HIGHEST_PORT = 65_535
FRONT_ELSEWHERE_ENV = "AIOS_FRONT_ELSEWHERE"
"""The variable that is set if the parent process is the front (`scripts/cli/old_names/app.py`)."""

log = logging.getLogger("aios.serve")


def run_api(settings: Settings) -> int:
    """Run a front in this process and return its exit status."""
    require_extras("api")
    redis_url(settings)
    from api.__main__ import run

    return run(settings)


def run_worker(settings: Settings) -> int:
    """Run a worker in this process and return its exit status."""
    require_extras("worker")
    redis_url(settings)
    from worker.__main__ import run

    return run(settings)


def dry_run_worker(settings: Settings) -> int:
    """Load the models of a worker without serving them, and return the exit status."""
    require_extras("worker")
    from worker.__main__ import dry_run

    return dry_run(settings)


def serve_hrm(settings: Settings) -> int:
    """Run the fleet: start its processes, restart those that die, and drain on SIGTERM or Ctrl-C.

    Return the exit status, 0 after a clean stop. Raise SettingsError for settings that cannot work.
    """
    require_extras("api", "worker")
    if settings.ui:
        ui.require_streamlit()
        ui.config_of(settings)
    configure_logging(settings.log_level, settings.log_format)
    tell_of_variables(settings)
    if settings.redis_url is not None:
        redis_url(settings)
    if settings.prohibited_terms is not None:
        read_text(settings, "prohibited_terms")
    check_artifact_url(settings)
    check_model_paths(settings)
    settings = with_hub_models(settings, may_end=True)

    settings, worker_envs = place_workers(settings)
    port = bindable_port(settings, len(worker_envs))
    settings = settings.model_copy(
        update={"port": port, "log_format": chosen_style(settings.log_format)}
    )

    # Contexts end in reverse order: the file by which tools find the fleet goes before its Redis.
    with ExitStack() as stack:
        redis = None
        if settings.redis_url is None:
            try:
                redis = stack.enter_context(EmbeddedRedis())
            except EmbeddedRedisError as error:
                log.error("embedded redis failed", extra=fields(error=str(error)))
                return 1
            drain_s = settings.drain_timeout_s or FINISH_S
            settings = with_embedded(settings, redis).model_copy(
                update={"drain_timeout_s": drain_s}
            )
        stack.enter_context(announced(_local_fleet(settings)))
        return asyncio.run(_supervise(settings, redis, worker_envs))


def with_embedded(settings: Settings, redis: EmbeddedRedis) -> Settings:
    """Return the settings with the URLs of the embedded Redis and of its folder for artifacts."""
    artifact_url = settings.artifact_url or redis.artifact_url
    return settings.model_copy(update={"redis_url": redis.url, "artifact_url": artifact_url})


def _local_fleet(settings: Settings) -> LocalFleet:
    """Return the fleet as tools on this machine find it."""
    has_front = FRONT_ELSEWHERE_ENV not in os.environ
    return LocalFleet(
        pid=os.getpid(),
        port=settings.port if has_front else 0,
        url=local_url(settings) if has_front else "another server's front",
        redis_url=redis_url(settings),
        redis_shards=settings.redis_shards,
        has_open_metrics=has_front and not settings.protect_metrics,
        artifact_url=settings.artifact_url,
    )


def local_url(settings: Settings) -> str:
    """Return the URL at which the front answers on this machine."""
    return _url_at(settings.host, settings.port)


def _url_at(host: str, port: int) -> str:
    host = _local_host(host)
    if ":" in host:
        host = f"[{host}]"
    return f"http://{host}:{port}"


def _local_host(host: str) -> str:
    """Return the host to connect to: the loopback address if `host` stands for all addresses."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def fleet_roles(
    settings: Settings, worker_envs: Sequence[Mapping[str, str]], *, redis_ends: bool = False
) -> list[Role]:
    """Return the roles of a fleet in the order in which they stop.

    The front stops before the workers, as it needs them to finish its requests. There is a worker for
    each of `worker_envs`, which is added to its environment. Only the front gets the keys of
    callers. `redis_ends` is true if Redis ends with the fleet.
    """
    env = child_env(settings)
    keyless = without_keys(env)
    # Only one process can listen at this port, and that is the front.
    keyless[env_name("metrics_port")] = "none"

    grace_s = settings.drain_s + KILL_AFTER_DRAIN_S
    others_grace_s = grace_s
    # If Redis ends with the fleet, unfinished jobs are lost. The front has the whole drain to
    # finish its requests. When it has ended, nobody waits for the jobs of the workers any more.
    if redis_ends:
        env[REDIS_ENDS_ENV] = "1"
        keyless[env_name("drain_timeout_s")] = str(HAND_OVER_S)
        others_grace_s = HAND_OVER_S + KILL_AFTER_DRAIN_S

    copies = []
    for number, worker_env in enumerate(worker_envs):
        copy = dict(worker_env)
        # Workers have the port of the settings and the next ones; 0 is a free one for each.
        if settings.worker_port:
            copy[env_name("worker_port")] = str(settings.worker_port + number)
        copies.append(copy)

    # -P: a folder `api` in the current directory must not be imported.
    python = (sys.executable, "-P", "-m")
    api = Role("api", (*python, "api"), env, grace_s=grace_s)
    worker = Role("worker", (*python, "worker"), keyless, copies, grace_s=others_grace_s)
    jobs = Role("jobs", (*python, "scripts.cli.jobs"), keyless, grace_s=others_grace_s)
    apps = _app_roles(settings, keyless)
    if FRONT_ELSEWHERE_ENV in os.environ:
        return [worker, jobs]
    if redis_ends:
        # The front waits for all that is in flight, to which batches must add nothing.
        return [jobs, api, worker, *apps]
    return [api, worker, jobs, *apps]


def _app_roles(settings: Settings, env: Mapping[str, str]) -> list[Role]:
    """Return the role of the web app, if the settings ask for one. The fleet does without it."""
    if not settings.ui:
        return []
    command = ui.app_command(settings.ui_host, settings.ui_port, ui.config_of(settings))
    # It is a client like any other: the settings of the fleet are not for it, but plugins are.
    foreign = {}
    for name, value in env.items():
        if not name.startswith("AIOS_") or name == plugins.VARIABLE:
            foreign[name] = value
    app_env = ui.app_env(foreign, local_url(settings), settings.ui_config)
    return [Role("ui", command, app_env, grace_s=UI_GRACE_S, is_needed=False)]


def bindable_port(settings: Settings, workers: int = 1) -> int:
    """Return the front's port, or a free one for 0.

    Raise SettingsError if a process of the fleet could not listen at the port of its settings.
    """
    # All ports are open at the same time, so that two equal ones are noticed.
    with ExitStack() as stack:
        port = port_of(stack.enter_context(open_port(settings, "port")))
        if settings.metrics_port:
            stack.enter_context(open_port(settings, "metrics_port"))
        if settings.worker_port:
            for number in range(settings.worker_port, settings.worker_port + workers):
                if number > HIGHEST_PORT:
                    problem = (
                        f"{workers} workers have the ports {settings.worker_port} and up, beyond "
                        f"{HIGHEST_PORT}"
                    )
                    raise settings.refusal(
                        "worker_port", problem, "name a lower one, or 0 for free ones"
                    )
                worker_settings = settings.model_copy(update={"worker_port": number})
                stack.enter_context(open_port(worker_settings, "worker_port"))
        if settings.ui:
            stack.enter_context(open_port(settings, "ui_port", host_setting="ui_host"))
    return port


async def _supervise(
    settings: Settings, redis: EmbeddedRedis | None, worker_envs: Sequence[Mapping[str, str]]
) -> int:
    """Run the supervisor, and beside it the watch of Redis; return the exit status.

    When the fleet is ready, a line for people is printed.
    """
    supervisor = Supervisor(fleet_roles(settings, worker_envs, redis_ends=redis is not None))
    tasks = []
    if FRONT_ELSEWHERE_ENV not in os.environ:
        tasks.append(asyncio.create_task(_announce(settings)))
    if redis is not None:
        tasks.append(asyncio.create_task(watch_redis(redis, supervisor)))
    try:
        return await supervisor.run()
    finally:
        for task in tasks:
            task.cancel()


async def watch_redis(redis: EmbeddedRedis, supervisor: Supervisor) -> None:
    """Restart Redis when it dies. It reads the queue from its append-only file.

    Stop the fleet if Redis repeatedly dies soon after its start, for example on a full disk.
    """
    quick_deaths = 0
    started_s = time.monotonic()
    while True:
        await asyncio.sleep(REDIS_CHECK_S)
        try:
            if not redis.revive():
                continue
        except EmbeddedRedisError as error:
            log.error("embedded redis failed", extra=fields(error=str(error)))
            return supervisor.stop(exit_code=1)
        log.warning("embedded redis restarted", extra=fields(pid=redis.pid))
        if time.monotonic() - started_s < REDIS_LIVES_S:
            quick_deaths += 1
        else:
            quick_deaths = 0
        started_s = time.monotonic()
        if quick_deaths >= MOST_FAILED_STARTS:
            log.error(
                "embedded redis failed",
                extra=fields(error="it died again and again soon after its start"),
            )
            return supervisor.stop(exit_code=1)


async def _announce(settings: Settings) -> None:
    """Wait until the fleet is ready, and print a line that says so."""
    host = _local_host(settings.host)
    with waiting("loading models"):
        while (fleet := await _ready_fleet(settings, host)) is None:  # noqa: ASYNC110 - it is in other processes
            await asyncio.sleep(READY_CHECK_S)
    needs_key = await callers_need_key(settings)
    print(ready_line(settings, fleet, needs_key=needs_key), flush=True)


async def callers_need_key(settings: Settings) -> bool:
    """Return whether callers need a key now.

    By default they do if a key exists, in the settings or made with `aios keys`.
    """
    if settings.require_key != "auto":
        return settings.require_key == "yes"
    if settings.api_keys or settings.admin_keys:
        return True
    try:
        async with open_broker(redis_url(settings), settings.redis_shards) as broker:
            return await Keyring(broker).has_made_keys()
    except UNAVAILABLE:
        # Without Redis a front lets nobody in who has no key.
        return True


def ready_line(settings: Settings, fleet: Fleet, *, needs_key: bool) -> str:
    """Return the line with the fleet's URL, models and documentation, and a command to try."""
    url = local_url(settings)
    default = str(settings.default_model or fleet.default_model)
    models = default
    others = sorted(name for name in fleet.models if name != default)
    if others:
        models = ", ".join([f"{default} (default)", *others])
    key = " -H 'Authorization: Bearer YOUR-KEY'" if needs_key else ""
    example = _example(url, key, fleet.models.get(default))
    app = ""
    if settings.ui:
        app = f"  app: {_url_at(settings.ui_host, settings.ui_port)}"
    return f"ready at {url}  model: {models}  docs: {url}/docs{app}  try: {example}"


def _example(url: str, key: str, model: ModelInfo | None) -> str:
    """Return a command for a shell, with a request that the default model can answer."""
    if model is None or "generate" not in model.tasks:
        return f"curl -s {url}/v1/models{key}"
    prompt = "Solve for x: 3x + 5 = 20" if model.id == DEFAULT_MODEL.name else "Hello"
    body = json.dumps({"prompts": [prompt], "max_tokens": 128})
    return f"curl -s {url}/generate{key} -H 'Content-Type: application/json' -d '{body}'"


async def _ready_fleet(settings: Settings, host: str) -> Fleet | None:
    """Return the fleet's workers and models, or None while it is not ready for new jobs."""
    if not await _is_ready(host, settings.port):
        return None
    try:
        async with open_broker(redis_url(settings), settings.redis_shards) as broker:
            fleet = await Presence(broker.client(keys.PRESENCE)).fleet()
    except UNAVAILABLE:
        return None
    return fleet if has_all_models(settings, fleet) else None


def has_all_models(settings: Settings, fleet: Fleet) -> bool:
    """Return whether each model of the settings has a worker, where models are shared out.

    A worker that serves all models is enough for all. Models that require a GPU may have none.
    """
    if settings.image_workers is None and settings.audio_workers is None:
        return True
    for entry in model_entries(settings):
        if not entry.gpu_required and not fleet.serves(entry.id):
            return False
    return True


async def _is_ready(host: str, port: int) -> bool:
    try:
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        status = await asyncio.wait_for(reader.readline(), timeout=2.0)
        writer.close()
    except (OSError, TimeoutError):
        return False
    return b" 200 " in status


command = Group(
    "serve",
    help="Serve models by a whole fleet on this machine.",
    examples=("aios serve hrm",),
    commands={
        "hrm": role_command(
            "hrm",
            serve_hrm,
            dry_run_worker,
            help="""A whole fleet: Redis, a front, workers and the background role, under a supervisor.

Each setting is also a variable, and a key of config/default.yaml; flags outrank the environment, then
YAML. docs/settings.md tells more about them.""",
            examples=(
                "aios serve hrm",
                "aios serve hrm --model-path ./my-checkpoint --port 9000",
                "aios serve hrm --model sums=./sums --model chat=org/name --default-model chat",
                "aios serve hrm --redis-url redis://redis:6379/0 --workers 4",
                "aios serve hrm --print-config",
            ),
        )
    },
)
api_command = role_command(
    "api",
    run_api,
    help="One front, for a fleet whose processes are started one by one. It needs a Redis.",
    examples=("aios api --redis-url redis://redis:6379/0 --port 8000",),
)
worker_command = role_command(
    "worker",
    run_worker,
    dry_run_worker,
    help="One worker, for a fleet whose processes are started one by one. It needs a Redis.",
    examples=(
        "aios worker --redis-url redis://redis:6379/0 --model-path ./my-checkpoint",
        "aios worker --dry-run --model-path ./my-checkpoint",
    ),
)
