"""P5: four fronts race against every limit at once; none is exceeded by one, and at the end nothing
is held."""

import asyncio
import random
from contextlib import AsyncExitStack

import httpx
import pytest
from redis.asyncio import Redis

from shared.queue import keys
from shared.queue.broker import connect
from tests.fixtures.api.echo_worker import announce
from tests.fixtures.api.fronts import in_memory, process
from tests.fixtures.desk import DONE, Desk

LATER = {"Prefer": "respond-async"}
NUM_FRONTS = 4
CONCURRENCY = 9
DEPTH = 6
BYTES = 3_000


async def test_no_limit_is_exceeded_by_one(redis: Redis, redis_url: str) -> None:
    """Requests of one to three jobs of two classes, cancels and workers' ends, in many orders."""
    await announce(redis, "echo")
    connections = [connect(redis_url) for _ in range(NUM_FRONTS)]
    limits = {"tenant_concurrency": CONCURRENCY, "max_queue_depth": DEPTH, "max_queue_bytes": BYTES}
    watcher = asyncio.create_task(watch(redis))
    async with AsyncExitStack() as stack:
        fronts = [
            await stack.enter_async_context(in_memory(each, **limits)) for each in connections
        ]
        turns = asyncio.Semaphore(0)
        racing = [race(front, random.Random(number), turns) for number, front in enumerate(fronts)]
        working = asyncio.create_task(work(redis, turns))
        codes = [code for some in await asyncio.gather(*racing) for code in some]
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        watcher.cancel()
        [seen] = await asyncio.gather(watcher, return_exceptions=True)
        assert isinstance(seen, asyncio.CancelledError), seen
        await end_all(redis, fronts[0])
    assert codes.count("queue_full") > 0, "the depth or the bytes were reached"
    assert codes.count("rate_limited") > 0, "the concurrency was reached"
    assert codes.count("") > 20
    assert await Desk(redis, "echo").counts() == (0, 0)
    assert not await redis.keys("aios:{00}:held:*"), "a leaked quota"
    assert set(await redis.hvals(keys.depth("00", "echo"))) == {b"0"}  # type: ignore[misc]
    for connection in connections:
        await connection.aclose()


async def test_nor_by_processes(redis: Redis, redis_url: str) -> None:
    """The same over HTTP, with fronts that share nothing but Redis."""
    await announce(redis, "echo")
    limits = {"tenant_concurrency": CONCURRENCY, "max_queue_depth": DEPTH, "max_queue_bytes": BYTES}
    async with AsyncExitStack() as stack:
        starting = [
            stack.enter_async_context(process(redis_url, **limits)) for _ in range(NUM_FRONTS)
        ]
        fronts = [client for _, client in await asyncio.gather(*starting)]
        await announce(redis, "echo")
        turns = asyncio.Semaphore(0)
        watching = asyncio.create_task(watch(redis))
        working = asyncio.create_task(work(redis, turns))
        racing = [race(front, random.Random(number), turns) for number, front in enumerate(fronts)]
        codes = [code for some in await asyncio.gather(*racing) for code in some]
        watching.cancel()
        working.cancel()
        [seen, _] = await asyncio.gather(watching, working, return_exceptions=True)
        assert isinstance(seen, asyncio.CancelledError), seen
        await end_all(redis, fronts[0])
    assert {"queue_full", "rate_limited", ""} == set(codes), (
        "both were reached, and nothing else went wrong"
    )
    assert not await redis.keys("aios:{00}:held:*"), "a leaked quota"
    assert set(await redis.hvals(keys.depth("00", "echo"))) == {b"0"}  # type: ignore[misc]


async def race(front: httpx.AsyncClient, rng: random.Random, turns: asyncio.Semaphore) -> list[str]:
    codes = []
    taken = []
    for _ in range(60):
        turns.release()
        if taken and rng.random() < 0.3:
            await front.delete(taken.pop(rng.randrange(len(taken))))
        headers = LATER | {"X-Priority": rng.choice(("interactive", "default"))}
        body = {"prompts": ["word " * rng.randint(1, 40)] * rng.randint(1, 3)}
        answer = await front.post("/generate", json=body, headers=headers)
        if answer.status_code == 202:
            taken.append(answer.headers["Location"])
        codes.append("" if answer.status_code == 202 else answer.json()["error"]["code"])
    return codes


async def watch(redis: Redis) -> None:
    """AssertionError at the first moment at which a limit is exceeded."""
    while True:
        async with redis.pipeline(transaction=True) as pipe:
            pipe.zcard("aios:{00}:held:public")
            pipe.hgetall(keys.depth("00", "echo"))
            held, depth = await pipe.execute()
        numbers = {name.decode(): int(value) for name, value in depth.items()}
        assert held <= CONCURRENCY
        assert all(
            numbers.get(f"jobs:{name}", 0) <= DEPTH for name in ("interactive", "default", "bulk")
        )
        assert 0 <= numbers.get("bytes", 0) <= BYTES
        await asyncio.sleep(0)


async def work(redis: Redis, turns: asyncio.Semaphore) -> None:
    """Has up to two jobs in hand, and ends the oldest of them: one for each four requests, however
    fast they come."""
    desk = Desk(redis, "echo")
    held = []
    while True:
        for _ in range(4):
            await turns.acquire()
        held += await desk.take(1)
        if len(held) > 2:
            await desk.say(held.pop(0), DONE)


async def end_all(redis: Redis, front: httpx.AsyncClient) -> None:
    for name in await redis.keys("aios:{00}:request:*"):
        assert (
            await front.delete(f"/v1/jobs/{name.decode().rpartition(':')[2]}")
        ).status_code == 200


@pytest.mark.parametrize("burst", [1, 5])
async def test_a_rate_admits_its_burst_and_not_one_more(
    redis: Redis, redis_url: str, burst: int
) -> None:
    """At a rate that refills nothing meanwhile, exactly the burst gets in, whichever fronts it
    comes to."""
    await announce(redis, "echo")
    connections = [connect(redis_url) for _ in range(NUM_FRONTS)]
    limits = {"tenant_rate_per_s": 0.001, "tenant_burst": burst}
    async with AsyncExitStack() as stack:
        fronts = [
            await stack.enter_async_context(in_memory(each, **limits)) for each in connections
        ]
        answers = await asyncio.gather(
            *(
                front.post("/generate", json={"prompts": ["a"]}, headers=LATER)
                for front in fronts * 5
            )
        )
    assert [answer.status_code for answer in answers].count(202) == burst
    for connection in connections:
        await connection.aclose()
