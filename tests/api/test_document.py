"""The OpenAPI document: its security schemes, and requests that are answered while it is made."""

import asyncio
import threading
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from api.http.app import create_app
from shared.queue.broker import Broker
from shared.settings.settings import Settings
from tests.fixtures.api.fronts import in_memory
from tests.fixtures.polling import DEADLINE_S


async def test_others_are_answered_while_the_document_is_made(redis: Redis) -> None:
    """Two requests for the document wait, and a third one for something else is answered first.

    The document is made once, on another thread.
    """
    app = create_app(Settings(), Broker(redis))
    generate = app.openapi
    others_were_answered = threading.Event()
    thread_ids: list[int] = []

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            thread_ids.append(threading.get_ident())
            assert others_were_answered.wait(DEADLINE_S)
        return generate()

    app.openapi = openapi  # type: ignore[method-assign]
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://front"
    ) as client:
        first = asyncio.create_task(client.get("/openapi.json"))
        second = asyncio.create_task(client.get("/openapi.json/"))
        assert (await client.get("/healthz")).status_code == 200
        assert not first.done()
        assert not second.done()

        others_were_answered.set()
        document = (await first).json()
        assert (await second).json() == document
    await app.state.front.close()

    assert "/v1/models" in document["paths"]
    [thread_id] = thread_ids
    assert thread_id != threading.get_ident()


@pytest.mark.parametrize(("require_key", "may_be_without"), [("auto", True), ("yes", False)])
async def test_a_key_is_optional_where_a_fleet_may_be_open(
    redis: Redis, require_key: str, may_be_without: bool
) -> None:
    api_keys = "k:tenant" if require_key == "yes" else ""
    # The empty requirement: a request may come without a key.
    num_empty = 1 if may_be_without else 0

    async with in_memory(redis, require_key=require_key, api_keys=api_keys) as client:
        # Twice: the app keeps the document that it has made.
        for _ in range(2):
            document = (await client.get("/openapi.json")).json()
            security = document["paths"]["/v1/completions"]["post"]["security"]
            assert security.count({}) == num_empty
            assert len(security) == 2 + num_empty
