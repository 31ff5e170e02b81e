"""Find the route that a request means: below a proxy's prefix, with a slash at its end, by HEAD.

Pure ASGI around the app. Nothing here redirects: the route that is meant is served, and anything
else is a plain 404 or 405.
"""

from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.endpoints.route_table import RouteTable
from api.http.request_state import request_state_of


class Paths:
    """Takes the prefix `root_path`, and a slash at the end, from the path.

    A proxy may have taken the prefix already. What is left is `RequestState.path`. The path of the
    scope always begins with `root_path`, as ASGI wants it.
    """

    def __init__(self, app: ASGIApp, *, table: RouteTable, root_path: str) -> None:
        self._app = app
        self._table = table
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = self._inner_path(scope["path"])
        request_state = request_state_of(scope)
        request_state.path = path
        request_state.errors = self._table.errors_at(path)
        request_state.is_probe = path in self._table.probe_paths
        scope["path"] = self._root_path + path
        scope["root_path"] = self._root_path

        if not self._root_path:
            await self._app(scope, receive, send)
            return

        async def send_with_prefix(message: Message) -> None:
            # `Location` is the only header by which an answer names another path of ours.
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if headers.get("location", "").startswith("/"):
                    headers["location"] = self._root_path + headers["location"]
            await send(message)

        await self._app(scope, receive, send_with_prefix)

    def _inner_path(self, path: str) -> str:
        """Return the path below the prefix, without a slash at its end."""
        unstripped = self._without_slash(path)
        if not self._root_path or not f"{path}/".startswith(f"{self._root_path}/"):
            return unstripped
        inner = self._without_slash(path[len(self._root_path) :] or "/")
        # A proxy may have taken the prefix already, and a path of ours may begin like it (`/api`).
        if self._table.at(unstripped) and not self._table.at(inner):
            return unstripped
        return inner

    def _without_slash(self, path: str) -> str:
        """Return the path without one slash at its end, if the rest is a path for callers."""
        shorter = path[:-1]
        if not path.endswith("/") or not shorter or shorter.endswith("/"):
            return path
        # A proxy may deny `/metrics` by its exact path; no other path may lead there.
        if not self._table.is_callers(shorter):
            return path
        return shorter


class Methods:
    """Answers HEAD wherever there is GET, and OPTIONS with the methods of the path.

    Every 405 names these methods too.
    """

    def __init__(self, app: ASGIApp, *, table: RouteTable) -> None:
        self._app = app
        self._table = table

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = request_state_of(scope).path
        if scope["method"] == "HEAD" and "GET" in self._table.allowed(path):
            await self._head(scope, receive, send)
            return
        if scope["method"] == "OPTIONS" and self._table.allowed(path):
            routes = self._table.at(path)
            if routes:  # for the log line
                scope["route"] = routes[0]
            allowed = [*self._table.allowed(path), "OPTIONS"]
            answer = Response(status_code=204, headers={"Allow": ", ".join(allowed)})
            await answer(scope, receive, send)
            return

        async def send_with_allow(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 405:
                allowed = self._table.allowed(path)
                if allowed:
                    MutableHeaders(scope=message)["Allow"] = ", ".join(allowed)
            await send(message)

        await self._app(scope, receive, send_with_allow)

    async def _head(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer without a body. The routes see a GET; the log and the server see HEAD."""
        request_state_of(scope).is_head = True
        get_scope = {**scope, "method": "GET"}

        async def send_without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        try:
            await self._app(get_scope, receive, send_without_body)
        finally:
            if "route" in get_scope:
                scope["route"] = get_scope["route"]
