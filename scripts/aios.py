"""The `aios` command: `aios serve hrm` runs a whole fleet on this machine, the others run one role or are tools.

A fleet is an embedded Redis (unless `--redis-url` names one), a front, some workers and a janitor under a supervisor.
The children get the resolved settings through their environment, so that each setting is resolved once.
"""

import asyncio
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from scripts.embedded_redis import EmbeddedRedis, EmbeddedRedisError
from scripts.placement import place_workers
from scripts.supervisor import Role, Supervisor
from shared.cli import CONFIG_ENV, redis_url, run_role, tell_general_variables
from shared.listener import open_port, port_of
from shared.logs import configure_logging, fields
from shared.paths import check_model_paths, read_text
from shared.setting_layers import ORIGINS_ENV, env_name, general_names
from shared.setting_types import SECRETS
from shared.settings import REPO_ROOT, Settings

USAGE = """\
usage: aios serve hrm [flags]   a whole fleet: Redis, front, workers, janitor
       aios api [flags]         one front (needs --redis-url)
       aios worker [flags]      one worker (needs --redis-url)
       aios jobs [flags]        the background role, which tidies up (needs --redis-url; --once, --dry-run)
       aios status [--json]     the fleet now; exits with 0 if a worker is ready (needs --redis-url)
       aios top [--front URL]   the fleet as it works, in place (needs --redis-url)
       aios dead list | show ID | retry ID | drop ID
                                jobs that were given up because their workers crashed (needs --redis-url)
       aios keys create NAME | list | revoke ID
                                who may call, and how much (needs --redis-url)
       aios --version
Each command lists its flags with --help."""
EXIT_USAGE = 2
KILL_AFTER_DRAIN_S = 10.0  # a child still there this long after the end of its drain never will end
REDIS_CHECK_S = 0.5
READY_CHECK_S = 0.2
HIGHEST_PORT = 65_535
FRONT_ELSEWHERE_ENV = "AIOS_FRONT_ELSEWHERE"
"""Set where the process that starts this fleet is its front (`scripts/old_names/app.py`)."""

log = logging.getLogger("aios.serve")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command named by `argv` and return its exit status."""
    match list(sys.argv[1:] if argv is None else argv):
        case ["serve", "hrm", *flags]:
            return run_role("aios serve hrm", serve_hrm, flags, dry_run_worker)
        case ["api", *flags]:
            return run_role("aios api", run_api, flags)
        case ["worker", *flags]:
            return run_role("aios worker", run_worker, flags, dry_run_worker)
        case [("jobs" | "status" | "top" | "dead" | "keys") as name, *words]:
            return int(import_module(f"scripts.{name}").main(words))
        case ["-V" | "--version"]:
            print(f"aios {_version()}")
            return 0
        case ["-h" | "--help"]:
            print(USAGE)
            return 0
        case _:
            print(USAGE, file=sys.stderr)
            return EXIT_USAGE


def run_api(settings: Settings) -> int:
    """Be a front, in this process."""
    redis_url(settings)
    from api.__main__ import run

    return run(settings)


def run_worker(settings: Settings) -> int:
    """Be a worker, in this process."""
    redis_url(settings)
    from worker.__main__ import run

    return run(settings)


def dry_run_worker(settings: Settings) -> int:
    """Load what a worker would load, serve nothing."""
    from worker.__main__ import dry_run

    return dry_run(settings)


def serve_hrm(settings: Settings) -> int:
    """Be the fleet: start everything, restart what dies, drain on SIGTERM or Ctrl-C; 0 after a clean stop."""
    configure_logging(settings.log_level, settings.log_format)
    tell_general_variables(settings)
    if settings.redis_url is not None:
        redis_url(settings)
    if settings.prohibited_terms is not None:
        read_text(settings, "prohibited_terms")
    check_model_paths(settings)
    settings, places = place_workers(settings)
    settings = settings.model_copy(update={"port": bindable_port(settings, len(places))})
    with ExitStack() as stack:
        redis = None
        if settings.redis_url is None:
            try:
                redis = stack.enter_context(EmbeddedRedis())
            except EmbeddedRedisError as error:
                log.error("embedded redis failed", extra=fields(error=str(error)))
                return 1
            settings = settings.model_copy(update={"redis_url": redis.url})
        return asyncio.run(_supervise(settings, redis, places))


def fleet_roles(settings: Settings, places: Sequence[Mapping[str, str]]) -> list[Role]:
    """The processes of a fleet, in the order in which they stop: the front drains before the workers that feed it.

    There is a worker for each of `places`: what its environment has besides. Only the front knows keys.
    """
    env = child_env(settings)
    keyless = {name: value for name, value in env.items() if name not in map(env_name, SECRETS)}
    quiet = keyless | {env_name("metrics_port"): "none"}  # that port is the front's
    python = (sys.executable, "-P", "-m")  # -P: an `api` folder in the current directory is not ours
    ported = [{**place, **_port_of(settings, copy)} for copy, place in enumerate(places)]
    roles = [
        Role("api", (*python, "api"), env),
        Role("worker", (*python, "worker"), quiet, ported),
        Role("jobs", (*python, "scripts.jobs"), quiet),
    ]
    return roles[1:] if FRONT_ELSEWHERE_ENV in os.environ else roles


def child_env(settings: Settings) -> dict[str, str]:
    """The environment of a process that is to have these settings: it reads no file, and knows where they came from."""
    told_otherwise = general_names()
    inherited = {name: value for name, value in os.environ.items() if name not in told_otherwise}
    paths = [str(REPO_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    origins = {name: settings.origin(name) for name in Settings.model_fields}
    ours = {CONFIG_ENV: os.devnull, ORIGINS_ENV: json.dumps(origins), "PYTHONPATH": os.pathsep.join(paths)}
    return inherited | settings.to_env() | ours


def _port_of(settings: Settings, copy: int) -> dict[str, str]:
    """Workers have the port that was given and the next ones; 0 is a free one for each."""
    first = settings.worker_port
    return {env_name("worker_port"): str(first + copy)} if first else {}


def bindable_port(settings: Settings, workers: int = 1) -> int:
    """The front's port, or a free one for 0.

    Raises SettingsError where a process of the fleet could not listen at a port that it is given.
    """
    with ExitStack() as stack:  # all at once: two of them may be the same
        port = port_of(stack.enter_context(open_port(settings, "port")))
        if settings.metrics_port:
            stack.enter_context(open_port(settings, "metrics_port"))
        for copy in range(workers if settings.worker_port else 0):
            number = (settings.worker_port or 0) + copy
            if number > HIGHEST_PORT:
                problem = f"{workers} workers have the ports {settings.worker_port} and up, beyond {HIGHEST_PORT}"
                raise settings.refusal("worker_port", problem, "name a lower one, or 0 for free ones")
            stack.enter_context(open_port(settings.model_copy(update={"worker_port": number}), "worker_port"))
    return port


async def _supervise(settings: Settings, redis: EmbeddedRedis | None, places: Sequence[Mapping[str, str]]) -> int:
    supervisor = Supervisor(fleet_roles(settings, places), settings.drain_timeout_s + KILL_AFTER_DRAIN_S)
    watches = [] if FRONT_ELSEWHERE_ENV in os.environ else [asyncio.create_task(_announce(settings))]
    if redis is not None:
        watches.append(asyncio.create_task(_watch_redis(redis, supervisor)))
    try:
        return await supervisor.run()
    finally:
        for watch in watches:
            watch.cancel()


async def _watch_redis(redis: EmbeddedRedis, supervisor: Supervisor) -> None:
    """Start Redis again when it dies; its append-only file brings the queue back."""
    while True:
        await asyncio.sleep(REDIS_CHECK_S)
        try:
            if redis.revive():
                log.warning("embedded redis restarted", extra=fields(pid=redis.pid))
        except EmbeddedRedisError as error:
            log.error("embedded redis failed", extra=fields(error=str(error)))
            return supervisor.stop(exit_code=1)


async def _announce(settings: Settings) -> None:
    """Print one line for people once the fleet answers."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    while not await _is_ready(host, settings.port):  # noqa: ASYNC110 - what is awaited is in another process
        await asyncio.sleep(READY_CHECK_S)
    url = f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"
    body = '{"prompts": ["Solve for x: 3x + 5 = 20"], "max_tokens": 128}'
    print(f"ready at {url}  try: curl -s {url}/generate -H 'Content-Type: application/json' -d '{body}'", flush=True)


async def _is_ready(host: str, port: int) -> bool:
    try:
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        status = await asyncio.wait_for(reader.readline(), timeout=2.0)
        writer.close()
    except (OSError, TimeoutError):
        return False
    return b" 200 " in status


def _version() -> str:
    try:
        return version("aios-hrm-fleet")
    except PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
