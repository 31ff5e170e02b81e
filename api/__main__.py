"""The front's process: `python -m api [flags]`.

On SIGTERM or SIGINT it stops being ready, refuses new work, sends who waits to another front, and exits with 0 within
two seconds. The jobs go on: any front can tell of them.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Generator
from functools import partial

import uvicorn
from uvicorn.loops.auto import auto_loop_factory

from api.app import create_app
from api.deps import Front
from shared.advice import advise, on_open_files, open_files_limit, redis_advice
from shared.broker import Broker, open_broker
from shared.cli import redis_url, run_role, tell_general_variables
from shared.listener import Answer, listening, open_port, port_of
from shared.logs import configure_logging, fields
from shared.metrics import CONTENT_TYPE
from shared.settings import Settings
from shared.signals import signals_call
from shared.tracing import Tracing, open_tracing

_LAST_WRITES_S = 1

log = logging.getLogger("aios.api")


class Server(uvicorn.Server):
    """Leaves signals to `serve`, which drains before it stops."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:  # uvicorn says where it runs only of sockets that it opened
            self._log_started_message(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


async def serve(settings: Settings) -> None:
    """Serve until a signal comes, then drain."""
    tracing = open_tracing(settings.otlp_endpoint, "api")
    async with open_broker(redis_url(settings), settings.redis_shards) as broker:
        await _serve(settings, broker, tracing)
    tracing.close()


async def _serve(settings: Settings, broker: Broker, tracing: Tracing) -> None:
    app = create_app(settings, broker, tracing)
    advise([*on_open_files(open_files_limit(), settings.max_queue_depth), *await redis_advice(broker)])
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_LAST_WRITES_S,
    )
    server = Server(config)
    signals: asyncio.Queue[str] = asyncio.Queue()
    stopping = asyncio.create_task(_drain_on_signal(signals, server, app.state.front))
    try:
        with signals_call({name: partial(signals.put_nowait, name) for name in ("SIGTERM", "SIGINT")}):
            async with _telling(settings, app.state.front):
                with open_port(settings, "port") as sockets:
                    log.info("front starting", extra=fields(host=settings.host, port=port_of(sockets)))
                    await server.serve(sockets)
            log.info("front stopped")
    finally:
        stopping.cancel()


@contextlib.asynccontextmanager
async def _telling(settings: Settings, front: Front) -> AsyncIterator[None]:
    """The metrics at a second port, where one is asked for (X10)."""

    async def rendered() -> Answer:
        return 200, CONTENT_TYPE, await front.report.render()

    if settings.metrics_port is None:
        yield
        return
    async with listening(settings, "metrics_port", {"/metrics": rendered}):
        yield


async def _drain_on_signal(signals: "asyncio.Queue[str]", server: Server, front: Front) -> None:
    log.info("front draining", extra=fields(signal=await signals.get()))
    front.draining.set()
    front.dispatcher.drain()
    server.should_exit = True


def run(settings: Settings) -> int:
    """Serve until told to stop; the exit status."""
    configure_logging(settings.log_level, settings.log_format)
    tell_general_variables(settings)
    with asyncio.Runner(loop_factory=auto_loop_factory()) as runner:
        runner.run(serve(settings))
    return 0


if __name__ == "__main__":
    raise SystemExit(run_role("python -m api", run))
