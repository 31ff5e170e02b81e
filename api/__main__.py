"""The front's process: `python -m api [flags]`.

On SIGTERM or SIGINT the front stops being ready and refuses new work. It sends callers that wait to
another front, and exits with 0 within two seconds. The jobs go on, and any front can answer for
them.

Where Redis ends with the fleet, no other front could answer. There the front first finishes what is
in flight, for at most `drain_s` seconds. A supervisor that cannot wait that long kills it.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Generator

import uvicorn
from fastapi import FastAPI

from api.deps import Front
from api.http.app import create_app
from api.http.final_drain import FinalDrain, cut_off_error
from api.http.protocol import Protocol
from shared import garbage
from shared.errors import BrokerUnavailable
from shared.event_loop import new_event_loop
from shared.fleet.advice import advise, on_open_door, on_open_files, open_files_limit, redis_advice
from shared.listener import Answer, listening, open_port, port_of
from shared.queue.broker import Broker, open_broker
from shared.settings.command_line import redis_url, run_role, tell_of_variables
from shared.settings.settings import Settings
from shared.signals import signals_call
from shared.supervised import redis_ends_with_fleet, report_ready
from shared.telemetry.logging_setup import chosen_style, configure_logging, fields
from shared.telemetry.metrics import CONTENT_TYPE
from shared.telemetry.tracing import Tracing, open_tracing

# uvicorn's grace for answers that are still being written; it takes whole seconds.
_LAST_WRITES_S = 1

log = logging.getLogger("aios.api")


class Server(uvicorn.Server):
    """A uvicorn server that reports when it is ready, and that does not stop by signals itself."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to answer, then report that in the log and to the supervisor, if there is one."""
        await super().startup(sockets)
        if self.started:
            # uvicorn logs the address only for sockets that it opened itself.
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            log.info("front ready", extra=fields(host=host, port=port))
            report_ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Capture nothing: `_drain_on_signal` drains first, and then stops this server."""
        yield


async def serve(settings: Settings) -> None:
    """Serve until a signal comes, then drain."""
    tracing = open_tracing(settings.otlp_endpoint, "api")
    async with open_broker(
        redis_url(settings), settings.redis_shards, usage_days=settings.usage_days
    ) as broker:
        await _serve(settings, broker, tracing)
    tracing.close()


async def _serve(settings: Settings, broker: Broker, tracing: Tracing) -> None:
    app = create_app(settings, broker, tracing)
    requires_key = await _requires_key(app.state.front)
    advise(on_open_door(settings.host, settings.port, requires_key=requires_key))
    file_advice = on_open_files(open_files_limit(), settings.max_queue_depth)
    advise([*file_advice, *await redis_advice(broker)])

    server = Server(server_config(app, settings))
    signals: asyncio.Queue[str] = asyncio.Queue()
    actions = {
        "SIGTERM": lambda: signals.put_nowait("SIGTERM"),
        "SIGINT": lambda: signals.put_nowait("SIGINT"),
    }
    stopping = asyncio.create_task(
        _drain_on_signal(signals, server, app.state.front, settings.drain_s)
    )
    try:
        with signals_call(actions):
            async with _metrics_port(settings, app.state.front):
                garbage.settle()
                with open_port(settings, "port") as sockets:
                    log.info(
                        "front starting", extra=fields(host=settings.host, port=port_of(sockets))
                    )
                    await server.serve(sockets)
            log.info("front stopped")
    finally:
        stopping.cancel()


async def _requires_key(front: Front) -> bool:
    """Return whether callers need a key.

    While Redis, which knows that, is away, nobody may call without one.
    """
    try:
        return await front.auth.requires_key()
    except BrokerUnavailable:
        return True


def server_config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """Return the configuration of the server.

    The app handles the prefix of `root_path` itself (`api/http/paths.py`), because uvicorn knows
    only proxies that strip it.
    """
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=Protocol,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=True,
        forwarded_allow_ips=list(settings.forwarded_allow_ips),
        # uvicorn hands the number to a timer, which takes parts of a second too.
        timeout_keep_alive=settings.keep_alive_s,  # type: ignore[arg-type]
        timeout_graceful_shutdown=_LAST_WRITES_S,
    )


@contextlib.asynccontextmanager
async def _metrics_port(settings: Settings, front: Front) -> AsyncIterator[None]:
    """Serve the metrics at a second port, if `metrics_port` is set."""

    async def answer() -> Answer:
        return 200, CONTENT_TYPE, await front.exporter.render()

    if settings.metrics_port is None:
        yield
        return
    async with listening(settings, "metrics_port", {"/metrics": answer}):
        yield


async def _drain_on_signal(
    signals: "asyncio.Queue[str]", server: Server, front: Front, time_s: float
) -> None:
    """Wait for the first signal, drain the front, then stop the server."""
    signal = await signals.get()
    log.info("front draining", extra=fields(signal=signal))
    front.draining.set()
    try:
        if redis_ends_with_fleet():
            await FinalDrain(front, lambda: bool(server.server_state.tasks)).run(time_s)
            front.dispatcher.drain(lambda request_id: cut_off_error())
        else:
            front.dispatcher.drain()
    finally:
        server.should_exit = True


def run(settings: Settings) -> int:
    """Serve until a signal comes. Return the exit status."""
    configure_logging(settings.log_level, settings.log_format)
    tell_of_variables(settings)
    if chosen_style(settings.log_format) == "console":
        # The start lines of uvicorn repeat ours.
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(serve(settings))
    return 0


if __name__ == "__main__":
    raise SystemExit(run_role("python -m api", run))
