"""`app`: a whole fleet as one ASGI application, for `uvicorn levanter.serve.min_server:app`.

The front is here, in uvicorn's process. Workers, the background role and, unless AIOS_REDIS_URL
names one, Redis are children of it, begun and ended by the application's lifespan. Host and port
are uvicorn's; all else comes from the environment and config/default.yaml.
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
from scripts.cli.aios import FRONT_ELSEWHERE_ENV, REDIS_CHECK_S, child_env, with_embedded
from scripts.cli.embedded_redis import EmbeddedRedis, EmbeddedRedisError
from scripts.cli.old_names.commands import MIN_SERVER_DEFAULTS
from scripts.cli.parent_death import die_with_parent
from shared.queue.broker import open_broker
from shared.settings.command_line import redis_url, resolve_environment, tell_of_variables
from shared.settings.layers import env_name
from shared.settings.paths import check_model_paths
from shared.settings.settings import Settings, SettingsError
from shared.settings.text import mask_secrets
from shared.telemetry.logging_setup import configure_logging, fields
from shared.telemetry.tracing import open_tracing

END_S = 60.0  # beyond the drain: longer than a supervisor needs, which kills what has not drained

log = logging.getLogger("aios.serve")


class FleetApp:
    """Answers requests between the two halves of its lifespan."""

    def __init__(self) -> None:
        self._front: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if self._front is None:
            raise RuntimeError(
                "the fleet is begun by the application's lifespan; let uvicorn run it "
                "(--lifespan on)"
            )
        await self._front(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            async with fleet() as self._front:
                await send({"type": "lifespan.startup.complete"})
                await receive()
        except (SettingsError, EmbeddedRedisError) as error:
            await send({"type": "lifespan.startup.failed", "message": mask_secrets(str(error))})
            return
        await send({"type": "lifespan.shutdown.complete"})


@asynccontextmanager
async def fleet() -> AsyncIterator[ASGIApp]:
    """The front of a fleet that lives as long as the context. Raises SettingsError and
    EmbeddedRedisError."""
    settings = resolve_environment(MIN_SERVER_DEFAULTS)
    configure_logging(settings.log_level, settings.log_format)
    tell_of_variables(settings)
    check_model_paths(settings)
    if settings.redis_url is not None:
        async with front(settings) as app:
            yield app
        return
    with EmbeddedRedis() as redis:
        async with front(with_embedded(settings, redis)) as app, watched(_revive(redis)):
            yield app


@asynccontextmanager
async def front(settings: Settings) -> AsyncIterator[ASGIApp]:
    """The front on the Redis that the settings name, and beside it all that works for it."""
    tracing = open_tracing(settings.otlp_endpoint, "api")
    try:
        async with open_broker(redis_url(settings), settings.redis_shards) as broker:
            app = create_app(settings, broker, tracing)
            async with app.router.lifespan_context(app), workers(settings):
                yield app
    finally:
        tracing.close()


@asynccontextmanager
async def workers(settings: Settings) -> AsyncIterator[None]:
    """`aios serve hrm` without a front, as a child that restarts what dies; ended with the
    context."""
    own = {FRONT_ELSEWHERE_ENV: "1", env_name("port"): "0", env_name("metrics_port"): "none"}
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "scripts.cli.aios", "serve", "hrm"),
        env={**child_env(settings), **own},
        stdin=asyncio.subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=die_with_parent(),
    )
    try:
        async with watched(_ended(child)):
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
async def watched(watch: Coroutine[Any, Any, str]) -> AsyncIterator[None]:
    """Have the server stop when `watch` returns, which it does with the reason if the fleet cannot
    go on."""
    watching = asyncio.create_task(watch)

    def stop(task: "asyncio.Task[str]") -> None:
        if not task.cancelled():
            log.error("fleet cannot go on", extra=fields(error=task.result()))
            signal.raise_signal(signal.SIGTERM)

    watching.add_done_callback(stop)
    try:
        yield
    finally:
        watching.remove_done_callback(stop)
        watching.cancel()


async def _ended(child: asyncio.subprocess.Process) -> str:
    return f"its workers' supervisor ended with status {await child.wait()}"


async def _revive(redis: EmbeddedRedis) -> str:
    while True:
        await asyncio.sleep(REDIS_CHECK_S)
        try:
            redis.revive()
        except EmbeddedRedisError as error:
            return str(error)


app = FleetApp()
