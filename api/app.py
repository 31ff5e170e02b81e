"""The front as an ASGI app: its middleware and routers, listed as data, and the life of its Redis connections.

A new dialect is a schema file, a route file and one line here.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from api.deps import Front, build_front
from api.errors import HANDLERS
from api.headers import JOB_ID
from api.kinds import Kinds
from api.middleware import REQUEST_ID, AccessLog, BodyLimit, CrashGuard, RequestId
from api.routes import generate, health, hrm, inference, jobs, openai, puzzles, simple_foundation, tgi
from shared.broker import Broker
from shared.settings import Settings

DIALECTS = (
    generate.DIALECT,
    hrm.DIALECT,
    tgi.DIALECT,
    simple_foundation.DIALECT,
    inference.DIALECT,
    openai.DIALECT,
    puzzles.DIALECT,
)
ROUTERS = (health.router, jobs.router, *(dialect.router for dialect in DIALECTS))
_EXPOSED_HEADERS = (
    *(REQUEST_ID, JOB_ID, "Location", "Preference-Applied", "Retry-After", "X-Reject-Reason"),
    *("X-Effective-Max-Tokens", "X-Truncated-Prompt-Tokens"),
)


def middleware(settings: Settings, front: Front) -> list[Middleware]:
    """Outermost first."""
    cors = Middleware(
        CORSMiddleware,
        allow_origins=settings.cors_origins,
        allow_methods=("GET", "POST", "DELETE"),
        allow_headers=("*",),
        allow_credentials=False,
        expose_headers=_EXPOSED_HEADERS,
    )
    return [
        Middleware(RequestId),
        Middleware(AccessLog, metrics=front.metrics, log_bodies=settings.log_bodies),
        *([cors] if settings.enable_cors else []),
        Middleware(CrashGuard),
        Middleware(BodyLimit, max_body_bytes=settings.max_body_bytes),
    ]


def create_app(settings: Settings, broker: Broker) -> FastAPI:
    """The app over `broker`, which stays the caller's to close. `app.state.front` holds its parts."""
    front = build_front(settings, broker, Kinds(DIALECTS))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await front.close()

    app = FastAPI(
        title="AI-OS HRM fleet", middleware=middleware(settings, front), exception_handlers=HANDLERS, lifespan=lifespan
    )
    app.state.front = front
    for router in ROUTERS:
        app.include_router(router)
    return app
