"""`GET /v1/fleet`: the snapshot of `aios status --json`, for operators alone."""

import httpx
import msgspec
from redis.asyncio import Redis

from shared.fleet.snapshot import Model, Snapshot, look
from shared.queue.broker import Broker, connect
from tests.fixtures.api.echo_worker import EchoWorker, announce
from tests.fixtures.api.fronts import in_memory
from tests.fixtures.desk import SAY_HI, Desk

KEYS = {"api_keys": "k:plain", "admin_keys": "boss:admin"}
ADMIN = {"X-API-Key": "admin"}


async def get_fleet(redis: Redis, key: str) -> httpx.Response:
    async with in_memory(redis, **KEYS) as client:
        return await client.get("/v1/fleet", headers={"X-API-Key": key})


def waiting_by_class(model: Model) -> dict[str, int]:
    """Return how many jobs wait in each class."""
    return {name: line.waiting for name, line in model.classes.items()}


async def test_it_is_what_the_tools_read(redis: Redis) -> None:
    await announce(redis, "m", "n")
    await Desk(redis).submit(SAY_HI, SAY_HI)

    answer = await get_fleet(redis, "admin")
    over_redis = await look(Broker(redis))

    assert answer.status_code == 200
    over_http = msgspec.json.decode(answer.content, type=Snapshot)
    assert over_http.status == "ready"
    assert [worker.id for worker in over_http.workers] == ["idle"]
    assert over_http.models[0].waiting == 2

    assert over_http.workers == over_redis.workers
    for one, other in zip(over_http.models, over_redis.models, strict=True):
        # The classes tell how long jobs have waited, and the two were read one after the other.
        assert waiting_by_class(one) == waiting_by_class(other)
        without_classes = msgspec.structs.replace(one, classes={})
        assert without_classes == msgspec.structs.replace(other, classes={})


async def test_a_caller_may_not_look(redis: Redis, worker: EchoWorker) -> None:
    answer = await get_fleet(redis, "plain")
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "permission_denied")


async def test_without_redis_it_is_a_503(redis: Redis) -> None:
    async with in_memory(connect("redis://127.0.0.1:1/0"), **KEYS) as client:
        answer = await client.get("/v1/fleet", headers=ADMIN)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "broker_unavailable")
    assert answer.headers["Retry-After"] == "1"
