"""Answers are whole and in order although pub/sub messages are lost: pub/sub only makes following
faster."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from urllib.parse import urlsplit

import httpx
import pytest
from redis.asyncio import Redis

from scripts.chaos.proxy import Proxy
from shared.queue import keys
from shared.queue.broker import Broker, connect
from tests.fixtures.api.echo_worker import EchoWorker
from tests.fixtures.api.frames import frames
from tests.fixtures.api.fronts import in_memory
from tests.fixtures.polling import DEADLINE_S, until
from tests.fixtures.redis_server import patient

WORDS = [f"w{number} " for number in range(40)]
BODY = {"prompt": "".join(WORDS), "max_tokens": len(WORDS)}
NUM_RUNS = 3
NUM_KILLS = 5

Loss = Callable[[], object]
Lossy = Callable[[str], AbstractAsyncContextManager[tuple[httpx.AsyncClient, EchoWorker, Loss]]]


class Mute(Broker):
    """A broker whose scripts publish nothing: they ask for a field that is not there instead."""

    publish = "HEXISTS"


class Apart(Broker):
    """A broker with a second client for what belongs to no shard, which includes the subscriber."""

    def __init__(self, redis: Redis, subscriber: Redis) -> None:
        super().__init__(redis)
        self._subscriber = subscriber

    def client(self, tag: str) -> Redis:
        if tag == keys.PRESENCE:
            return self._subscriber
        return super().client(tag)


class Killer(asyncio.Event):
    """A worker's gate that kills the subscriber's connection before each word.

    The first times it waits until the subscriber is back.
    """

    def __init__(self, redis: Redis) -> None:
        super().__init__()
        self._redis = redis
        self.num_killed = 0

    async def wait(self) -> bool:  # type: ignore[override]
        await super().wait()
        if self.num_killed < NUM_KILLS:
            await until(self._is_there, "the subscriber is back")
        num_killed = await self._redis.client_kill_filter(_type="pubsub")
        self.num_killed += int(num_killed)
        return True

    async def _is_there(self) -> bool:
        return bool(await self._redis.client_list(_type="pubsub"))


@asynccontextmanager
async def never_published(
    redis_url: str,
) -> AsyncIterator[tuple[httpx.AsyncClient, EchoWorker, Loss]]:
    redis = patient(connect(redis_url))
    await redis.config_resetstat()
    async with EchoWorker(redis_url, broker=Mute) as worker, in_memory(redis) as client:
        yield client, worker, lambda: None
    assert "cmdstat_publish" not in await redis.info("commandstats")
    await redis.aclose()


@asynccontextmanager
async def killed(redis_url: str) -> AsyncIterator[tuple[httpx.AsyncClient, EchoWorker, Loss]]:
    redis = patient(connect(redis_url))
    async with EchoWorker(redis_url) as worker, in_memory(redis) as client:
        killer = Killer(redis)
        worker.gate = killer
        yield client, worker, lambda: None
    assert killer.num_killed >= NUM_KILLS
    await redis.aclose()


@asynccontextmanager
async def held_up(redis_url: str) -> AsyncIterator[tuple[httpx.AsyncClient, EchoWorker, Loss]]:
    """The subscriber's connection seems to be fine, and nothing comes over it."""
    port = urlsplit(redis_url).port
    assert port is not None
    proxy = await Proxy("127.0.0.1", port).start()
    redis = patient(connect(redis_url))
    subscriber = connect(f"redis://127.0.0.1:{proxy.port}/0")
    async with EchoWorker(redis_url) as worker, in_memory(Apart(redis, subscriber)) as client:
        yield client, worker, proxy.to_client.hold
        proxy.to_client.release()
    await redis.aclose()
    await subscriber.aclose()
    await proxy.close()


async def are_followed(redis: Redis, count: int) -> bool:
    """Return whether fronts follow so many jobs."""
    num_jobs = 0
    async for key in redis.scan_iter("aios:*:job:*"):
        num_jobs += await redis.hexists(key, "readers")
    return num_jobs == count


async def is_done(client: httpx.AsyncClient, location: str) -> bool:
    """Return whether the job is done. Its result is then the whole text."""
    job = (await client.get(location)).json()
    if job["state"] != "done":
        return False
    return bool(job["result"]["completions"] == [BODY["prompt"]])


@pytest.mark.parametrize("lossy", [never_published, killed, held_up])
async def test_every_answer_is_whole_and_in_order(
    redis: Redis, redis_url: str, lossy: Lossy
) -> None:
    async with lossy(redis_url) as (client, worker, lose):
        worker.gate.clear()

        # A whole answer, a stream, and a job that nobody waits for.
        whole = asyncio.create_task(client.post("/v1/completions", json=BODY))
        stream = asyncio.create_task(client.post("/v1/completions", json=BODY | {"stream": True}))
        later = await client.post(
            "/generate", json={"prompts": [BODY["prompt"]]}, headers={"Prefer": "respond-async"}
        )
        await until(lambda: are_followed(redis, NUM_RUNS), "the front follows all")

        # From here on messages are lost.
        lose()
        worker.gate.set()

        async with asyncio.timeout(DEADLINE_S):
            assert (await whole).json()["choices"][0]["text"] == BODY["prompt"]
            streamed = frames(await stream)
            await until(lambda: is_done(client, later.headers["Location"]), "the job is done")

    assert [frame.text for frame in streamed if frame.text] == WORDS
    assert streamed[-1].data == "[DONE]"
