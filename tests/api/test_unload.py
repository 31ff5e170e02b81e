"""Unloading by HTTP.

The order reaches the hash that workers read, and the answer has the number of those who obeyed."""

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
UNLOAD_PATH = "/api/models/unload/some/m"
UNLOAD = ("POST", UNLOAD_PATH)
DELETE = ("DELETE", "/api/models/text-generation/some/m")


@pytest.fixture
async def client(redis: Redis) -> AsyncIterator[httpx.AsyncClient]:
    async with in_memory(redis, admin_keys="ops:root") as client:
        client.headers.update(ADMIN)
        yield client


async def announce(redis: Redis, name: str, residence: Residence = "loaded", order: int = 0) -> int:
    """Announce a worker as it would itself; return the order that it finds."""
    residences: dict[str, Residence] = {}
    if residence != "loaded":
        residences["some/m"] = residence
    orders = {}
    if order:
        orders["some/m"] = order

    worker = WorkerInfo(
        name, "ready", (model_info("some/m"),), residences=residences, unloads=orders
    )
    orders_found = await Presence(redis, ttl_s=60).announce(worker)
    return orders_found.get("some/m", 0)


async def await_order(redis: Redis, name: str) -> int:
    """Wait until there is an order to unload; return it as the worker finds it."""
    await until(lambda: is_ordered(redis), "it is ordered")
    return await announce(redis, name)


async def is_ordered(redis: Redis) -> bool:
    return bool(await redis.exists(keys.UNLOADS))


async def status(client: httpx.AsyncClient) -> tuple[str, int, int]:
    """Return the model's status, its workers, and those of them that have it loaded."""
    body = (await client.get("/api/models/status/some/m")).json()
    return body["status"], body["workers"], body["loaded"]


@pytest.mark.parametrize("way", [UNLOAD, DELETE])
async def test_it_waits_for_every_worker(
    redis: Redis, client: httpx.AsyncClient, way: tuple[str, str]
) -> None:
    await announce(redis, "w1")
    await announce(redis, "w2")
    method, path = way
    unloading = asyncio.create_task(client.request(method, path))

    order = await await_order(redis, "w1")
    await announce(redis, "w1", "unloaded", order)
    assert not unloading.done()

    # The second worker has obeyed, and has loaded the model again since.
    await announce(redis, "w2", "loaded", order)
    answer = await unloading
    assert answer.status_code == 200
    assert answer.json() == {
        "model_id": "some/m",
        "status": "unloaded",
        "workers": 2,
        "unloaded": 2,
    }


async def test_it_does_not_wait_for_long(
    redis: Redis, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unload, "PATIENCE_S", 0.1)
    await announce(redis, "w1")

    answer = await client.post(UNLOAD_PATH)
    assert answer.status_code == 202
    assert answer.json() == {
        "model_id": "some/m",
        "status": "unloading",
        "workers": 1,
        "unloaded": 0,
    }
    again = await client.post(UNLOAD_PATH)
    assert again.status_code == 202

    # Each order has a higher number than the one before.
    order = await announce(redis, "w1")
    await client.post(UNLOAD_PATH)
    assert order > 0
    assert await announce(redis, "w1") > order


async def test_where_nobody_serves_it_nothing_is_left_to_do(
    redis: Redis, client: httpx.AsyncClient
) -> None:
    await announce(redis, "w1")
    await Presence(redis).leave("w1")

    answer = await client.post(UNLOAD_PATH)

    assert answer.status_code == 200
    body = answer.json()
    assert (body["status"], body["workers"]) == ("unloaded", 0)


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
    """One status covers all workers; an unloaded model is served all the same."""
    for number, residence in enumerate(residences):
        await announce(redis, f"w{number}", residence)
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
    await announce(redis, "w1")
    answer = await client.request(method, path)
    error = answer.json()["error"]
    assert (answer.status_code, error["details"]["field"]) == (expected, field)
    assert not await is_ordered(redis)


async def test_a_model_that_cannot_be_loaded_is_told_of(
    redis: Redis, client: httpx.AsyncClient
) -> None:
    """New work for the model is refused at once, with the reason.

    The fleet's other models are served as before."""
    models = (model_info("some/m"), model_info("other"))
    reason = "model.safetensors is not there; copy it again."
    failing = WorkerInfo(
        "w1",
        "ready",
        models,
        residences={"some/m": "unloaded"},
        failures={"some/m": LoadFailure(reason, retry_in_s=7)},
    )
    await Presence(redis, ttl_s=60).announce(failing)

    answer = await client.post("/generate", json={"model": "some/m", "prompts": ["a"]})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (503, "model_failed")
    assert "copy it again" in error["message"]
    assert answer.headers["Retry-After"] == "7"
    assert answer.headers["X-Reject-Reason"] == "model_failed"

    body = (await client.get("/api/models/status/some/m")).json()
    assert (body["status"], body["reason"]) == ("failed", reason)

    other = (await client.get("/api/models/status/other")).json()
    assert other["status"] == "ready"
    assert "reason" not in other
    assert (await client.get("/api/health")).json()["models"] == {"known": 2, "served": 1}


async def test_a_model_that_another_worker_has_is_served(
    redis: Redis, client: httpx.AsyncClient
) -> None:
    failing = WorkerInfo(
        "w1",
        "ready",
        (model_info("some/m"),),
        residences={"some/m": "unloaded"},
        failures={"some/m": LoadFailure("why", retry_in_s=7)},
    )
    await Presence(redis, ttl_s=60).announce(failing)
    await announce(redis, "w2")
    assert await status(client) == ("ready", 2, 1)


async def test_it_is_for_admins(redis: Redis) -> None:
    await announce(redis, "w1")
    async with in_memory(redis, api_keys="ann:plain") as client:
        without_key = await client.post(UNLOAD_PATH)
        plain_key = await client.post(UNLOAD_PATH, headers={"X-API-Key": "plain"})

    assert without_key.status_code == 401
    assert plain_key.status_code == 403
    assert not await is_ordered(redis)
