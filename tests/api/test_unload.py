"""Unloading by HTTP: the order reaches the workers' hash, and the answer tells how many have
obeyed."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from redis.asyncio import Redis

from api.routes import unload
from shared.fleet.presence import Presence
from shared.messages import LoadFailure, Residence, WorkerInfo
from shared.queue import keys
from tests.fixtures.api.echo_worker import model_info
from tests.fixtures.api.fronts import in_memory
from tests.fixtures.polling import until

ADMIN = {"X-API-Key": "root"}
UNLOAD = ("POST", "/api/models/unload/some/m")
DELETE = ("DELETE", "/api/models/text-generation/some/m")


@pytest.fixture
async def client(redis: Redis) -> AsyncIterator[httpx.AsyncClient]:
    async with in_memory(redis, admin_keys="ops:root") as client:
        client.headers.update(ADMIN)
        yield client


async def seen(redis: Redis, name: str, residence: Residence = "loaded", order: int = 0) -> int:
    """A worker announces itself as it would; the order it finds."""
    residences: dict[str, Residence] = {} if residence == "loaded" else {"some/m": residence}
    orders = {"some/m": order} if order else {}
    worker = WorkerInfo(
        name, "ready", (model_info("some/m"),), residences=residences, unloads=orders
    )
    return (await Presence(redis, ttl_s=60).announce(worker)).get("some/m", 0)


async def ordered(redis: Redis, name: str) -> int:
    await until(lambda: is_ordered(redis), "it is ordered")
    return await seen(redis, name)


async def is_ordered(redis: Redis) -> bool:
    return bool(await redis.exists(keys.UNLOADS))


async def status(client: httpx.AsyncClient) -> tuple[str, int, int]:
    body = (await client.get("/api/models/status/some/m")).json()
    return body["status"], body["workers"], body["loaded"]


@pytest.mark.parametrize("way", [UNLOAD, DELETE])
async def test_it_waits_for_every_worker(
    redis: Redis, client: httpx.AsyncClient, way: tuple[str, str]
) -> None:
    await seen(redis, "w1")
    await seen(redis, "w2")
    asked = asyncio.create_task(client.request(*way))
    order = await ordered(redis, "w1")
    await seen(redis, "w1", "unloaded", order)
    assert not asked.done()
    await seen(redis, "w2", "loaded", order)  # it was needed again since
    answer = await asked
    told = {"model_id": "some/m", "status": "unloaded", "workers": 2, "unloaded": 2}
    assert (answer.status_code, answer.json()) == (200, told)


async def test_it_does_not_wait_for_long(
    redis: Redis, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unload, "_PATIENCE_S", 0.1)
    await seen(redis, "w1")
    answer = await client.request(*UNLOAD)
    told = {"model_id": "some/m", "status": "unloading", "workers": 1, "unloaded": 0}
    assert (answer.status_code, answer.json()) == (202, told)
    again = await client.request(*UNLOAD)
    assert again.status_code == 202
    first = await seen(redis, "w1")
    await client.request(*UNLOAD)
    assert await seen(redis, "w1") > first > 0, "orders are told apart"


async def test_where_nobody_serves_it_nothing_is_left_to_do(
    redis: Redis, client: httpx.AsyncClient
) -> None:
    await seen(redis, "w1")
    await Presence(redis).leave("w1")
    answer = await client.request(*UNLOAD)
    assert (answer.status_code, answer.json()["status"], answer.json()["workers"]) == (
        200,
        "unloaded",
        0,
    )


@pytest.mark.parametrize(
    ("residences", "expected"),
    [
        (["loaded", "unloaded"], ("ready", 2, 1)),
        (["unloaded", "loading"], ("loading", 2, 0)),
        (["unloaded", "unloading"], ("unloading", 2, 0)),
        (["unloaded", "unloaded"], ("unloaded", 2, 0)),
    ],
)
async def test_d91_status(
    redis: Redis,
    client: httpx.AsyncClient,
    residences: list[Residence],
    expected: tuple[str, int, int],
) -> None:
    """An unloaded model is served all the same."""
    for number, residence in enumerate(residences):
        await seen(redis, f"w{number}", residence)
    assert await status(client) == expected
    assert (await client.get("/v1/models/some/m")).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "expected", "field"),
    [
        ("POST", "/api/models/unload/nobody", 404, "model_id"),
        ("DELETE", "/api/models/text-generation/nobody", 404, "model_id"),
        ("DELETE", "/api/models/text-classification/some/m", 400, "task"),
        ("DELETE", "/api/models/image-generation/some/m", 400, "task"),
    ],
)
async def test_what_is_refused(
    redis: Redis, client: httpx.AsyncClient, method: str, path: str, expected: int, field: str
) -> None:
    await seen(redis, "w1")
    answer = await client.request(method, path)
    error = answer.json()["error"]
    assert (answer.status_code, error["details"]["field"]) == (expected, field)
    assert not await is_ordered(redis)


async def test_a_model_that_cannot_be_loaded_is_told_of(
    redis: Redis, client: httpx.AsyncClient
) -> None:
    """New work is refused with the reason at once; the fleet's other models are not concerned."""
    models = (model_info("some/m"), model_info("other"))
    why = {"some/m": LoadFailure("model.safetensors is not there; copy it again.", 7)}
    failing = WorkerInfo("w1", "ready", models, residences={"some/m": "unloaded"}, failures=why)
    await Presence(redis, ttl_s=60).announce(failing)
    answer = await client.post("/generate", json={"model": "some/m", "prompts": ["a"]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_failed")
    assert "copy it again" in answer.json()["error"]["message"]
    assert (answer.headers["Retry-After"], answer.headers["X-Reject-Reason"]) == (
        "7",
        "model_failed",
    )
    body = (await client.get("/api/models/status/some/m")).json()
    assert (body["status"], body["reason"]) == (
        "failed",
        "model.safetensors is not there; copy it again.",
    )
    other = (await client.get("/api/models/status/other")).json()
    assert other["status"] == "ready"
    assert "reason" not in other
    assert (await client.get("/api/health")).json()["models"] == {"known": 2, "served": 1}


async def test_a_model_that_another_worker_has_is_served(
    redis: Redis, client: httpx.AsyncClient
) -> None:
    models = (model_info("some/m"),)
    why = {"some/m": LoadFailure("why", 7)}
    await Presence(redis, ttl_s=60).announce(
        WorkerInfo("w1", "ready", models, residences={"some/m": "unloaded"}, failures=why)
    )
    await seen(redis, "w2")
    assert await status(client) == ("ready", 2, 1)


async def test_it_is_for_admins(redis: Redis) -> None:
    await seen(redis, "w1")
    async with in_memory(redis, api_keys="ann:plain") as client:
        assert (await client.request(*UNLOAD)).status_code == 401
        assert (await client.request(*UNLOAD, headers={"X-API-Key": "plain"})).status_code == 403
    assert not await is_ordered(redis)
