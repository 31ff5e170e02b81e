"""Check that the caller of a request may call, before its body is read."""

import asyncio
import logging

from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from api.access.auth import Auth
from api.endpoints.dialect import Access
from api.endpoints.route_table import METRICS, RouteTable
from api.http.errors import render
from api.http.problem import problem_of
from api.http.request_state import request_state_of
from shared.errors import FleetError, Forbidden, Unauthorized
from shared.telemetry.logging_setup import fields

security_log = logging.getLogger("aios.security")


class AuthMiddleware:
    """Finds the caller of each request, or refuses the request.

    A request that matches no route gets past: either there is nothing at its path, or a document
    that tells of the API and nothing of the fleet (`/docs`, `/openapi.json`).
    """

    def __init__(
        self, app: ASGIApp, *, auth: Auth, table: RouteTable, protect_metrics: bool
    ) -> None:
        self._app = app
        self._auth = auth
        self._table = table
        self._protect_metrics = protect_metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        match = self._match(scope)
        if match is None:
            await self._app(scope, receive, send)
            return
        route, access = match
        # For the log line and the metrics, if the request does not get as far as the router.
        scope["route"] = route
        if access is Access.OPEN:
            await self._app(scope, receive, send)
            return

        request_state = request_state_of(scope)
        try:
            caller = await self._auth.caller(
                Headers(scope=scope),
                needs_key=access is Access.KEY,
                needs_admin=access is Access.ADMIN,
            )
        except FleetError as error:
            self._report(error, scope, route)
            await render(problem_of(error), request_state)(scope, receive, send)
            return
        scope["state"]["caller"] = caller
        scope["state"]["caller_found_s"] = asyncio.get_running_loop().time()
        request_state.tenant = caller.tenant
        request_state.key = caller.id
        await self._app(scope, receive, send)

    @staticmethod
    def _report(error: FleetError, scope: Scope, route: APIRoute) -> None:
        """Note the error for the access log; note a refused caller in the security log too."""
        request_state = request_state_of(scope)
        request_state.error = error.code
        if not isinstance(error, Unauthorized | Forbidden):
            return
        address = None
        if scope.get("client"):
            address = scope["client"][0]
        security_log.warning(
            "caller refused",
            extra=fields(
                request_id=request_state.request_id,
                route=route.path,
                error=error.code,
                client=address,
            ),
        )

    def _match(self, scope: Scope) -> tuple[APIRoute, Access] | None:
        """Return the route that the router will take, and the callers that may call it.

        Return None where there is no route.
        """
        entry = self._table.find(scope["method"], request_state_of(scope).path)
        if entry is None:
            return None
        if entry.route.path == METRICS and self._protect_metrics:
            return entry.route, Access.KEY
        return entry.route, entry.access
