"""Who may call which route, in one place, and the doorman who sees to it before anything of a body is read.

A route that is not named here is for callers: for whoever has a key, where keys are required.
"""

import asyncio
import logging
from collections.abc import Sequence
from enum import Enum

from starlette.datastructures import Headers
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from api.auth import Auth
from api.errors import problem_of, render
from api.trail import trail_of
from shared.errors import FleetError, Forbidden, Unauthorized
from shared.logs import fields

security_log = logging.getLogger("aios.security")


class Door(Enum):
    OPEN = "anybody, without a look at keys"
    CALLER = "anybody, or whoever has a key where keys are required"
    KEY = "whoever has a key"
    ADMIN = "whoever has an admin key"


_OPEN = frozenset({"/", "/healthz", "/readyz", "/health", "/api/health"})
_ADMIN = frozenset({"/api/models/unload/{model_id:path}", "/api/models/{task}/{model_id:path}"})


def door_of(route: Route, *, protect_metrics: bool) -> Door:
    """The door before a route, by its path template and methods."""
    if route.path in _OPEN and route.methods == {"GET"}:
        return Door.OPEN
    if route.path == "/metrics":
        return Door.KEY if protect_metrics else Door.OPEN
    return Door.ADMIN if route.path in _ADMIN else Door.CALLER


class Doorman:
    """Finds the caller of each request, or refuses it. What matches none of the `routes` gets past: there is no such
    route, or it tells of the API and nothing of the fleet (`/docs`, `/openapi.json`)."""

    def __init__(self, app: ASGIApp, *, auth: Auth, routes: Sequence[Route], protect_metrics: bool) -> None:
        self._app = app
        self._auth = auth
        self._routes = [(route, door_of(route, protect_metrics=protect_metrics)) for route in routes]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = self._find(scope) if scope["type"] == "http" else None
        if found is None:
            await self._app(scope, receive, send)
            return
        route, door = found
        scope["route"] = route  # for the log line and the metrics, if the request does not get as far as the router
        if door is Door.OPEN:
            await self._app(scope, receive, send)
            return
        is_admin = door is Door.ADMIN
        try:
            caller = await self._auth.caller(Headers(scope=scope), needs_key=door is Door.KEY, needs_admin=is_admin)
        except FleetError as error:
            self._report(error, scope, route)
            await render(problem_of(error), trail_of(scope).path)(scope, receive, send)
            return
        scope["state"]["caller"] = caller
        scope["state"]["caller_found_s"] = asyncio.get_running_loop().time()
        trail_of(scope).tenant, trail_of(scope).key = caller.tenant, caller.id
        await self._app(scope, receive, send)

    @staticmethod
    def _report(error: FleetError, scope: Scope, route: Route) -> None:
        """For the access log, and who was refused by its key for the security log."""
        trail = trail_of(scope)
        trail.error = error.code
        if isinstance(error, Unauthorized | Forbidden):
            client = scope.get("client")
            said = fields(request_id=trail.request_id, route=route.path, error=error.code, client=client and client[0])
            security_log.warning("caller refused", extra=said)

    def _find(self, scope: Scope) -> tuple[Route, Door] | None:
        """The route that will run, as the router finds it."""
        return next(((route, door) for route, door in self._routes if route.matches(scope)[0] is Match.FULL), None)
