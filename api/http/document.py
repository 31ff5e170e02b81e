"""The OpenAPI document of the routes, which FastAPI serves."""

import asyncio
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from api.http.request_state import request_state_of

PATH = "/openapi.json"


class BackgroundOpenApi:
    """Generate the document in a thread, before FastAPI serves it for the first time.

    That takes half a second or more. Meanwhile streams must go on, and answers of Redis must be
    read in time.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._lock = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and request_state_of(scope).path == PATH:
            async with self._lock:
                await asyncio.to_thread(scope["app"].openapi)  # which keeps what it has made
        await self._app(scope, receive, send)


def say_keys_are_optional(app: FastAPI) -> None:
    """Let the document say that keys are optional, for a front that needs them only once there is
    one."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            for operations in generate()["paths"].values():
                for operation in operations.values():
                    if "security" in operation:
                        operation["security"].insert(0, {})
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
