"""The OpenAPI document: what it says of keys, and that nothing waits while it is made."""

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
    """Two ask for it, a third for something else: the third is first, and the document is made
    once."""
    app = create_app(Settings(), Broker(redis))
    generate = app.openapi
    others_were_answered = threading.Event()
    makers: list[int] = []

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            makers.append(threading.get_ident())
            assert others_were_answered.wait(DEADLINE_S)
        return generate()

    app.openapi = openapi  # type: ignore[method-assign]
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://front"
    ) as client:
        asked = [
            asyncio.create_task(client.get(path)) for path in ("/openapi.json", "/openapi.json/")
        ]
        assert (await client.get("/healthz")).status_code == 200
        assert not any(task.done() for task in asked)
        others_were_answered.set()
        documents = [(await task).json() for task in asked]
    await app.state.front.close()
    assert documents[0] == documents[1]
    assert "/v1/models" in documents[0]["paths"]
    assert len(makers) == 1
    assert makers[0] != threading.get_ident()


@pytest.mark.parametrize(("require_key", "may_be_without"), [("auto", True), ("yes", False)])
async def test_a_key_is_optional_where_a_fleet_may_be_open(
    redis: Redis, require_key: str, may_be_without: bool
) -> None:
    async with in_memory(
        redis, require_key=require_key, api_keys="k:tenant" if require_key == "yes" else ""
    ) as client:
        for _ in range(2):
            document = (await client.get("/openapi.json")).json()
            security = document["paths"]["/v1/completions"]["post"]["security"]
            assert security.count({}) == int(may_be_without)
            assert len(security) == 2 + int(may_be_without)
