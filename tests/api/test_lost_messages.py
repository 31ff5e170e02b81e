"""Pub/sub makes following fast and is trusted with nothing: with messages lost, answers are whole
and in order."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

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

WORDS = [f"w{number} " for number in range(40)]
BODY = {"prompt": "".join(WORDS), "max_tokens": len(WORDS)}
NUM_RUNS = 3
NUM_KILLS = 5

Loss = Callable[[], object]
Lossy = Callable[[str], AbstractAsyncContextManager[tuple[httpx.AsyncClient, EchoWorker, Loss]]]


class Mute(Broker):
    """Scripts ask for a field that is not there instead of publishing."""

    publish = "HEXISTS"


class Apart(Broker):
    """What concerns no shard, and so the subscriber, has a line of its own."""

    def __init__(self, redis: Redis, line: Redis) -> None:
        super().__init__(redis)
        self._line = line

    def client(self, tag: str) -> Redis:
        return self._line if tag == keys.PRESENCE else super().client(tag)


class Killer(asyncio.Event):
    """A gate at which the subscriber's connection is killed before each word, a few times as soon
    as it is back."""

    def __init__(self, redis: Redis) -> None:
        super().__init__()
        self._redis = redis
        self.num_killed = 0

    async def wait(self) -> bool:  # type: ignore[override]
        await super().wait()
        if self.num_killed < NUM_KILLS:
            await until(self._is_there, "the subscriber is back")
        killed: int = await self._redis.client_kill_filter(_type="pubsub")  # type: ignore[assignment]
        self.num_killed += killed
        return True

    async def _is_there(self) -> bool:
        return bool(await self._redis.client_list(_type="pubsub"))


@asynccontextmanager
async def never_published(
    redis_url: str,
) -> AsyncIterator[tuple[httpx.AsyncClient, EchoWorker, Loss]]:
    redis = connect(redis_url)
    await redis.config_resetstat()
    async with EchoWorker(redis_url, broker=Mute) as worker, in_memory(redis) as client:
        yield client, worker, lambda: None
    assert "cmdstat_publish" not in await redis.info("commandstats")
    await redis.aclose()


@asynccontextmanager
async def killed(redis_url: str) -> AsyncIterator[tuple[httpx.AsyncClient, EchoWorker, Loss]]:
    redis = connect(redis_url)
    async with EchoWorker(redis_url) as worker, in_memory(redis) as client:
        worker.gate = killer = Killer(redis)
        yield client, worker, lambda: None
    assert killer.num_killed >= NUM_KILLS
    await redis.aclose()


@asynccontextmanager
async def held_up(redis_url: str) -> AsyncIterator[tuple[httpx.AsyncClient, EchoWorker, Loss]]:
    """The connection seems to be fine, and nothing comes."""
    port = int(redis_url.rpartition(":")[2].partition("/")[0])
    proxy = await Proxy("127.0.0.1", port).start()
    redis = connect(redis_url)
    line = connect(f"redis://127.0.0.1:{proxy.port}/0")
    async with EchoWorker(redis_url) as worker, in_memory(Apart(redis, line)) as client:
        yield client, worker, proxy.to_client.hold
        proxy.to_client.release()
    await redis.aclose()
    await line.aclose()
    await proxy.close()


@pytest.mark.parametrize("lossy", [never_published, killed, held_up])
async def test_every_answer_is_whole_and_in_order(
    redis: Redis, redis_url: str, lossy: Lossy
) -> None:
    async with lossy(redis_url) as (client, worker, lose):
        worker.gate.clear()
        whole = asyncio.create_task(client.post("/v1/completions", json=BODY))
        stream = asyncio.create_task(client.post("/v1/completions", json=BODY | {"stream": True}))
        later = await client.post(
            "/generate", json={"prompts": [BODY["prompt"]]}, headers={"Prefer": "respond-async"}
        )
        await until(lambda: num_heard(redis, NUM_RUNS), "the front follows all")
        lose()
        worker.gate.set()
        async with asyncio.timeout(DEADLINE_S):
            assert (await whole).json()["choices"][0]["text"] == BODY["prompt"]
            told = frames(await stream)
            await until(lambda: is_done(client, later.headers["Location"]), "the job is done")
    assert [frame.text for frame in told if frame.text] == WORDS
    assert told[-1].data == "[DONE]"


async def num_heard(redis: Redis, count: int) -> bool:
    return len(await redis.pubsub_channels()) == count


async def is_done(client: httpx.AsyncClient, location: str) -> bool:
    told = (await client.get(location)).json()
    return told["state"] == "done" and told["result"]["completions"] == [BODY["prompt"]]
