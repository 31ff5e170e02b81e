"""The front as an ASGI app: its middleware and its routes, listed as data, and its lifespan."""

import asyncio
from collections.abc import AsyncIterator, Set
from contextlib import asynccontextmanager
from functools import cache

from fastapi import APIRouter, FastAPI, Security
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute

from api.access.auth import endpoint_rates
from api.access.auth_middleware import AuthMiddleware
from api.deps import Front, build_front
from api.endpoints.dialect import Access
from api.endpoints.dialects import DIALECTS
from api.endpoints.endpoint import Endpoints
from api.endpoints.route_table import RouteTable
from api.http import document
from api.http.errors import HANDLERS
from api.http.headers import JOB_ID
from api.http.home import NAME
from api.http.middleware import (
    ARM,
    EXPERIMENT,
    REQUEST_ID,
    AccessLog,
    BodyLimit,
    CrashGuard,
    DefaultSeed,
    RequestId,
)
from api.http.paths import Methods, Paths
from api.http.tracing_middleware import TracingMiddleware
from api.routes import (
    api_keys,
    artifacts,
    batches,
    catalogue,
    dead_jobs,
    evaluation,
    feedback,
    files,
    fleet,
    health,
    home,
    inference,
    jobs,
    plugins,
    submit,
    unload,
    usage,
    webhooks,
)
from api.schemas.errors import PlainErrorBody, errors_of
from api.submit.cache import CACHE
from shared.queue.broker import Broker
from shared.settings.layers import SettingsError
from shared.settings.settings import Settings
from shared.telemetry.tracing import NO_TRACING, Tracing

# Routes are tried in this order. Those that ask for work come first, since most requests do.
PARTS = (
    *DIALECTS,
    home.DIALECT,
    health.DIALECT,
    inference.HEALTH,
    submit.DIALECT,
    jobs.DIALECT,
    feedback.DIALECT,
    usage.DIALECT,
    unload.DIALECT,
    catalogue.DIALECT,
    evaluation.DIALECT,
    plugins.DIALECT,
    fleet.DIALECT,
    dead_jobs.DIALECT,
    api_keys.DIALECT,
    files.DIALECT,
    artifacts.DIALECT,
    batches.DIALECT,
    webhooks.DIALECT,
)
TABLE = RouteTable(PARTS)
# For the OpenAPI document alone: AuthMiddleware reads the headers itself.
_KEYS = [
    Security(HTTPBearer(auto_error=False)),
    Security(APIKeyHeader(name="X-API-Key", auto_error=False)),
]
_EXPOSED_HEADERS = (
    REQUEST_ID,
    JOB_ID,
    EXPERIMENT,
    ARM,
    "Location",
    "Preference-Applied",
    "Retry-After",
    "X-Reject-Reason",
    "X-Effective-Max-Tokens",
    "X-Truncated-Prompt-Tokens",
    "Server-Timing",
    "X-Tokens-Per-Second",
    CACHE,
    "WWW-Authenticate",
    "ETag",
    "Accept-Ranges",
    "Content-Range",
    "Content-Disposition",
)


def middleware(
    settings: Settings, front: Front, tracing: Tracing, table: RouteTable
) -> list[Middleware]:
    """Return the middleware around the routes, the outermost first."""
    log_bodies = settings.log_bodies or settings.log_level == "debug"

    # The state of the request and its path come first, because all others read them.
    layers = [
        Middleware(RequestId),
        Middleware(Paths, table=table, root_path=settings.root_path or ""),
    ]
    if tracing.is_on:
        layers.append(Middleware(TracingMiddleware, tracing=tracing))
    layers.append(
        Middleware(
            AccessLog,
            metrics=front.metrics,
            work_paths={*table.endpoint_paths, submit.PATH},
            log_bodies=log_bodies,
            log_requests=settings.access_log,
        )
    )
    if settings.seed is not None:
        layers.append(Middleware(DefaultSeed, seed=settings.seed))
    if settings.enable_cors:
        cors = Middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "HEAD", "POST", "DELETE"),
            allow_headers=("*",),
            allow_credentials=False,
            expose_headers=_EXPOSED_HEADERS,
        )
        layers.append(cors)
    # An answer of the guard has a log line and CORS headers too. A caller without a right is
    # refused before anything of its body is read.
    layers += [
        Middleware(CrashGuard),
        Middleware(Methods, table=table),
        Middleware(
            AuthMiddleware, auth=front.auth, table=table, protect_metrics=settings.protect_metrics
        ),
        Middleware(
            BodyLimit,
            max_body_bytes=settings.max_body_bytes,
            max_inline_bytes=settings.max_inline_bytes,
            holds_files=table.holds_files,
            max_upload_bytes=settings.max_upload_bytes,
            takes_file=table.takes_file,
            log_bodies=log_bodies,
        ),
        Middleware(document.BackgroundOpenApi),
    ]
    return layers


def create_app(
    settings: Settings, broker: Broker, tracing: Tracing = NO_TRACING, table: RouteTable = TABLE
) -> FastAPI:
    """Return the app over `broker` and `tracing`, which stay the caller's to close.

    `app.state.front` holds its parts. Raise SettingsError.
    """
    _check_endpoints(settings, table.endpoint_paths)
    front = build_front(settings, broker, Endpoints(table.posts))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        watching_lag = asyncio.create_task(front.lag.watch())
        yield
        watching_lag.cancel()
        await front.close()

    # FastAPI's own telemetry would trace each request once more, and tell the query of its URL,
    # where clients put keys.
    app = FastAPI(
        title=NAME,
        routes=[*_routes_of(table, may_need_keys=settings.require_key != "no")],
        middleware=middleware(settings, front, tracing, table),
        exception_handlers=HANDLERS,
        redirect_slashes=False,
        lifespan=lifespan,
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.state.front = front
    if front.auth.may_be_open:
        document.say_keys_are_optional(app)
    return app


@cache
def _routes_of(table: RouteTable, *, may_need_keys: bool) -> list[BaseRoute]:
    """Return the routes of a table.

    FastAPI derives their parameters at their first requests, which takes a while. All apps of a
    process have the same ones, so that this is done once.
    """
    all_routers = APIRouter()
    for router, access in table.routers:
        if access is Access.OPEN:
            all_routers.include_router(router)
            continue
        all_routers.include_router(
            router,
            dependencies=_KEYS if may_need_keys else [],
            responses=errors_of(PlainErrorBody),
        )
    return all_routers.routes


def _check_endpoints(settings: Settings, paths: Set[str]) -> None:
    """Raise SettingsError for a rate of a path that is not among these."""
    unknown = sorted(endpoint_rates(settings).keys() - paths)
    if unknown:
        known = ", ".join(sorted(paths))
        raise SettingsError(f"endpoint_rate_limits: expected one of {known}, got {unknown[0]}")
