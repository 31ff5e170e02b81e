"""A whole fleet as one ASGI application, for `uvicorn levanter.serve.min_server:app`.

The front runs in uvicorn's process. The workers, the background role and, unless AIOS_REDIS_URL
names another, Redis are its child processes. The application's lifespan starts and ends them. The
host and the port are uvicorn's; all other settings come from the environment and
config/default.yaml.
"""

import asyncio
import logging
import signal
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from api.http.app import create_app
from scripts.cli.child_env import child_env
from scripts.cli.embedded_redis import EmbeddedRedis, EmbeddedRedisError
from scripts.cli.old_names.commands import MIN_SERVER_DEFAULTS
from scripts.cli.parent_death import die_with_parent
from scripts.cli.serve import FRONT_ELSEWHERE_ENV, REDIS_CHECK_S, with_embedded
from shared.queue.broker import open_broker
from shared.settings.command_line import redis_url, resolve_environment, tell_of_variables
from shared.settings.hub import with_hub_models
from shared.settings.layers import env_name
from shared.settings.paths import check_model_paths
from shared.settings.settings import Settings, SettingsError
from shared.settings.text import mask_secrets
from shared.telemetry.logging_setup import configure_logging, fields
from shared.telemetry.tracing import open_tracing

# Time for the supervisor to end after the drain. It needs less, since it kills what has not
# drained.
END_S = 60.0

log = logging.getLogger("aios.serve")


class FleetApp:
    """The ASGI application. It serves requests while its lifespan runs the fleet."""

    def __init__(self) -> None:
        self._front: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._run_lifespan(receive, send)
            return
        if self._front is None:
            raise RuntimeError(
                "the application's lifespan starts the fleet; let uvicorn run it (--lifespan on)"
            )
        await self._front(scope, receive, send)

    async def _run_lifespan(self, receive: Receive, send: Send) -> None:
        """Run the fleet from the server's startup event to its shutdown event."""
        await receive()  # lifespan.startup
        try:
            async with fleet() as self._front:
                await send({"type": "lifespan.startup.complete"})
                await receive()  # lifespan.shutdown
        except (SettingsError, EmbeddedRedisError) as error:
            await send({"type": "lifespan.startup.failed", "message": mask_secrets(str(error))})
            return
        await send({"type": "lifespan.shutdown.complete"})


@asynccontextmanager
async def fleet() -> AsyncIterator[ASGIApp]:
    """Run a fleet while the context lasts, and yield its front.

    Raises SettingsError for bad settings, and EmbeddedRedisError if there is no usable Redis.
    """
    settings = resolve_environment(MIN_SERVER_DEFAULTS)
    configure_logging(settings.log_level, settings.log_format)
    tell_of_variables(settings)
    check_model_paths(settings)
    # In a thread, as models of the hub may take long to fetch.
    settings = await asyncio.to_thread(with_hub_models, settings)
    if settings.redis_url is not None:
        async with front(settings) as app:
            yield app
        return
    with EmbeddedRedis() as redis:
        async with (
            front(with_embedded(settings, redis)) as app,
            watched(_redis_failure(redis)),
        ):
            yield app


@asynccontextmanager
async def front(settings: Settings) -> AsyncIterator[ASGIApp]:
    """Run the workers, and yield a front on the Redis that the settings name.

    Raises SettingsError if the settings name no Redis.
    """
    tracing = open_tracing(settings.otlp_endpoint, "api")
    try:
        async with open_broker(
            redis_url(settings), settings.redis_shards, usage_days=settings.usage_days
        ) as broker:
            app = create_app(settings, broker, tracing)
            async with app.router.lifespan_context(app), workers(settings):
                yield app
    finally:
        tracing.close()


@asynccontextmanager
async def workers(settings: Settings) -> AsyncIterator[None]:
    """Run `aios serve hrm` without a front as a child process while the context lasts.

    The child is the supervisor of the workers and of the background role, and restarts them.
    """
    env = child_env(settings)
    env[FRONT_ELSEWHERE_ENV] = "1"
    # The ports of the settings are the front's, which runs in this process.
    env[env_name("port")] = "0"
    env[env_name("metrics_port")] = "none"
    # -P: a `scripts` folder in the current directory is not ours.
    command = (sys.executable, "-P", "-m", "scripts.cli.aios", "serve", "hrm")
    child = await asyncio.create_subprocess_exec(
        *command,
        env=env,
        stdin=asyncio.subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=die_with_parent(),
    )
    try:
        async with watched(_end_of(child)):
            yield
    finally:
        if child.returncode is None:
            child.terminate()
        try:
            await asyncio.wait_for(child.wait(), settings.drain_s + END_S)
        except TimeoutError:
            child.kill()
            await child.wait()


@asynccontextmanager
async def watched(failure: Coroutine[Any, Any, str]) -> AsyncIterator[None]:
    """Stop the server if `failure` returns while the context lasts.

    `failure` waits for a failure of the fleet and returns its reason. The server stops by SIGTERM
    to this process, so that uvicorn runs the rest of the lifespan.
    """
    task = asyncio.create_task(failure)

    def stop_server(task: "asyncio.Task[str]") -> None:
        if not task.cancelled():
            log.error("fleet cannot go on", extra=fields(error=task.result()))
            signal.raise_signal(signal.SIGTERM)

    task.add_done_callback(stop_server)
    try:
        yield
    finally:
        # A child that ends from here on is no failure: the fleet is ending.
        task.remove_done_callback(stop_server)
        task.cancel()


async def _end_of(child: asyncio.subprocess.Process) -> str:
    """Wait until the supervisor ends. Return the reason."""
    return f"its workers' supervisor ended with status {await child.wait()}"


async def _redis_failure(redis: EmbeddedRedis) -> str:
    """Restart Redis whenever it dies. Return the reason when it does not start again."""
    while True:
        await asyncio.sleep(REDIS_CHECK_S)
        try:
            redis.revive()
        except EmbeddedRedisError as error:
            return str(error)


app = FleetApp()
