"""The OpenAPI document of the routes, which FastAPI serves."""

import asyncio
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from api.http.request_state import request_state_of

PATH = "/openapi.json"


class BackgroundOpenApi:
    """Generates the document in a thread, before FastAPI serves it for the first time.

    That takes half a second or more. Meanwhile streams must go on, and answers of Redis must be
    read in time.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._lock = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and request_state_of(scope).path == PATH:
            async with self._lock:
                # FastAPI keeps the document that it has made, so only the first call takes long.
                await asyncio.to_thread(scope["app"].openapi)
        await self._app(scope, receive, send)


def say_keys_are_optional(app: FastAPI) -> None:
    """Let the document say that keys are optional.

    This is for a front that needs keys only once the first one has been made.
    """
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            for operations in generate()["paths"].values():
                for operation in operations.values():
                    if "security" in operation:
                        # The empty requirement: a request may come without a key.
                        operation["security"].insert(0, {})
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
