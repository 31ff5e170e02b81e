"""`GET /v1/fleet`: what `aios status --json` says, to operators alone."""

import httpx
import msgspec
from redis.asyncio import Redis

from shared.fleet.snapshot import Snapshot, look
from shared.queue.broker import Broker, connect
from tests.fixtures.api.echo_worker import EchoWorker, announce
from tests.fixtures.api.fronts import in_memory
from tests.fixtures.desk import SAY_HI, Desk

KEYS = {"api_keys": "k:plain", "admin_keys": "boss:admin"}
ADMIN = {"X-API-Key": "admin"}


async def asked(redis: Redis, **headers: str) -> httpx.Response:
    async with in_memory(redis, **KEYS) as client:
        return await client.get("/v1/fleet", headers=headers)


async def test_it_is_what_the_tools_read(redis: Redis) -> None:
    await announce(redis, "m", "n")
    await Desk(redis).submit(SAY_HI, SAY_HI)
    answer = await asked(redis, **ADMIN)
    assert answer.status_code == 200
    told = msgspec.json.decode(answer.content, type=Snapshot)
    read = await look(Broker(redis))
    assert told.status == "ready"
    assert [worker.id for worker in told.workers] == ["idle"]
    assert told.models[0].waiting == 2
    assert told.workers == read.workers
    for one, other in zip(told.models, read.models, strict=True):
        assert msgspec.structs.replace(one, classes={}) == msgspec.structs.replace(
            other, classes={}
        )
        assert {name: line.waiting for name, line in one.classes.items()} == {
            name: line.waiting for name, line in other.classes.items()
        }


async def test_a_caller_may_not_look(redis: Redis, worker: EchoWorker) -> None:
    answer = await asked(redis, **{"X-API-Key": "plain"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "permission_denied")


async def test_without_redis_it_is_a_503(redis: Redis) -> None:
    async with in_memory(connect("redis://127.0.0.1:1/0"), **KEYS) as client:
        answer = await client.get("/v1/fleet", headers=ADMIN)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "broker_unavailable")
    assert answer.headers["Retry-After"] == "1"
