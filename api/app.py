"""The front as an ASGI app: its middleware and routers, listed as data, and the life of its Redis connections.

A new dialect is a schema file, a route file and one line here.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Security
from fastapi.routing import APIRoute
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from api import document
from api.auth import endpoint_rates
from api.cache import CACHE
from api.deps import Front, build_front
from api.doors import Doorman
from api.errors import HANDLERS
from api.headers import JOB_ID
from api.home import NAME
from api.kinds import Kinds
from api.middleware import REQUEST_ID, AccessLog, BodyLimit, CrashGuard, RequestId, Seeded
from api.paths import Methods, Paths, RouteTable
from api.routes import (
    chat,
    embeddings,
    generate,
    health,
    home,
    hrm,
    inference,
    jobs,
    openai,
    puzzles,
    simple_foundation,
    submit,
    tgi,
    tokens,
    unload,
)
from api.schemas.errors import PLAIN_ERRORS
from api.traced import Traced
from shared.broker import Broker
from shared.setting_layers import SettingsError
from shared.settings import Settings
from shared.tracing import NO_TRACING, Tracing

DIALECTS = (
    *(generate.DIALECT, hrm.DIALECT, tgi.DIALECT, simple_foundation.DIALECT, inference.DIALECT),
    *(openai.DIALECT, chat.DIALECT, embeddings.DIALECT, tokens.DIALECT, puzzles.DIALECT),
)
ROUTERS = (
    home.router,
    health.router,
    submit.router,
    jobs.router,
    unload.router,
    *(dialect.router for dialect in DIALECTS),
)
_KEYS = [
    Security(HTTPBearer(auto_error=False)),
    Security(APIKeyHeader(name="X-API-Key", auto_error=False)),
]  # for the OpenAPI document; the doorman reads them himself
_EXPOSED_HEADERS = (
    *(REQUEST_ID, JOB_ID, "Location", "Preference-Applied", "Retry-After", "X-Reject-Reason"),
    *("X-Effective-Max-Tokens", "X-Truncated-Prompt-Tokens", "Server-Timing", "X-Tokens-Per-Second", CACHE),
    "WWW-Authenticate",
)


def middleware(settings: Settings, front: Front, tracing: Tracing) -> list[Middleware]:
    """Outermost first."""
    cors = Middleware(
        CORSMiddleware,
        allow_origins=settings.cors_origins,
        allow_methods=("GET", "HEAD", "POST", "DELETE"),
        allow_headers=("*",),
        allow_credentials=False,
        expose_headers=_EXPOSED_HEADERS,
    )
    log_bodies = settings.log_bodies or settings.log_level == "debug"
    routes = _routes()
    table = RouteTable(routes)
    work_paths = _endpoints() | {"/v1/jobs"}
    return [
        Middleware(RequestId),
        Middleware(Paths, table=table, root_path=settings.root_path or ""),
        *([Middleware(Traced, tracing=tracing)] if tracing.is_on else []),
        Middleware(
            AccessLog,
            metrics=front.metrics,
            work_paths=work_paths,
            log_bodies=log_bodies,
            log_requests=settings.access_log,
        ),
        *([Middleware(Seeded, seed=settings.seed)] if settings.seed is not None else []),
        *([cors] if settings.enable_cors else []),
        Middleware(CrashGuard),
        Middleware(Methods, table=table),
        Middleware(Doorman, auth=front.auth, routes=routes, protect_metrics=settings.protect_metrics),
        Middleware(BodyLimit, max_body_bytes=settings.max_body_bytes, log_bodies=log_bodies),
        Middleware(document.MadeAside),
    ]


def create_app(settings: Settings, broker: Broker, tracing: Tracing = NO_TRACING) -> FastAPI:
    """The app over `broker` and `tracing`, which stay the caller's to close. `app.state.front` holds its parts.

    Raises SettingsError.
    """
    _check_endpoints(settings)
    front = build_front(settings, broker, Kinds(DIALECTS))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        lagging = asyncio.create_task(front.lag.watch())
        yield
        lagging.cancel()
        await front.close()

    # FastAPI's own telemetry would trace each request once more, with what is in the query of its URL.
    app = FastAPI(
        title=NAME,
        middleware=middleware(settings, front, tracing),
        exception_handlers=HANDLERS,
        redirect_slashes=False,
        lifespan=lifespan,
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.state.front = front
    for router in ROUTERS:
        is_probe = router in (home.router, health.router)
        dependencies = [] if is_probe or settings.require_key == "no" else _KEYS
        app.include_router(router, dependencies=dependencies, responses={} if is_probe else PLAIN_ERRORS)
    if front.auth.may_be_open:
        document.say_keys_are_optional(app)
    return app


def _routes() -> list[APIRoute]:
    """In the order in which they are tried."""
    return [route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)]


def _endpoints() -> set[str]:
    """The paths of what creates work: the POSTs of the dialects."""
    found = [route for dialect in DIALECTS for route in dialect.router.routes if isinstance(route, APIRoute)]
    return {route.path for route in found if "POST" in (route.methods or ())}


def _check_endpoints(settings: Settings) -> None:
    """Raises SettingsError for a rate of another path."""
    known = _endpoints()
    if unknown := sorted(endpoint_rates(settings).keys() - known):
        raise SettingsError(f"endpoint_rate_limits: expected one of {', '.join(sorted(known))}, got {unknown[0]}")
