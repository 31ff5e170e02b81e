"""P5: four fronts race against every limit at once.

No limit is ever exceeded, not even by one, and at the end nothing is held."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import pytest
from redis.asyncio import Redis

from shared.queue import keys
from shared.queue.broker import connect
from tests.fixtures.api.echo_worker import announce
from tests.fixtures.api.fronts import in_memory, process
from tests.fixtures.desk import DONE, Desk
from tests.fixtures.redis_server import patient

LATER = {"Prefer": "respond-async"}
NUM_FRONTS = 4
CONCURRENCY = 9
DEPTH = 6
BYTES = 3_000
LIMITS = {"tenant_concurrency": CONCURRENCY, "max_queue_depth": DEPTH, "max_queue_bytes": BYTES}


@asynccontextmanager
async def several_fronts(
    redis_url: str, **settings: object
) -> AsyncIterator[list[httpx.AsyncClient]]:
    """Open fronts in memory, each with its own connection to Redis."""
    fronts = []
    async with AsyncExitStack() as stack:
        for _ in range(NUM_FRONTS):
            connection = patient(connect(redis_url))
            stack.push_async_callback(connection.aclose)
            fronts.append(await stack.enter_async_context(in_memory(connection, **settings)))
        yield fronts


async def test_no_limit_is_exceeded_by_one(redis: Redis, redis_url: str) -> None:
    """No limit is exceeded while requests come, are cancelled and end in many orders.

    The requests have one to three jobs, of two priority classes."""
    await announce(redis, "echo")
    watching = asyncio.create_task(watch(redis))
    async with several_fronts(redis_url, **LIMITS) as fronts:
        turns = asyncio.Semaphore(0)
        working = asyncio.create_task(work(redis, turns))

        codes = await race_all(fronts, turns)

        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        watching.cancel()
        [ending] = await asyncio.gather(watching, return_exceptions=True)
        assert isinstance(ending, asyncio.CancelledError), ending
        await end_all(redis, fronts[0])

    assert codes.count("queue_full") > 0, "the depth or the bytes were reached"
    assert codes.count("rate_limited") > 0, "the concurrency was reached"
    assert codes.count("") > 20
    assert await Desk(redis, "echo").counts() == (0, 0)
    assert not await redis.keys("aios:{00}:open:*"), "a leaked quota"
    assert set(await redis.hvals(keys.depth("00", "echo"))) == {b"0"}  # type: ignore[misc]


async def test_nor_by_processes(redis: Redis, redis_url: str) -> None:
    """Fronts in separate processes, which share nothing but Redis, keep the limits over HTTP."""
    await announce(redis, "echo")
    async with AsyncExitStack() as stack:
        starting = []
        for _ in range(NUM_FRONTS):
            starting.append(stack.enter_async_context(process(redis_url, **LIMITS)))
        fronts = []
        for _, client in await asyncio.gather(*starting):
            fronts.append(client)

        turns = asyncio.Semaphore(0)
        watching = asyncio.create_task(watch(redis))
        working = asyncio.create_task(work(redis, turns))

        codes = await race_all(fronts, turns)

        watching.cancel()
        working.cancel()
        [ending, _] = await asyncio.gather(watching, working, return_exceptions=True)
        assert isinstance(ending, asyncio.CancelledError), ending
        await end_all(redis, fronts[0])

    assert set(codes) == {"queue_full", "rate_limited", ""}, (
        "both were reached, and nothing else went wrong"
    )
    assert not await redis.keys("aios:{00}:open:*"), "a leaked quota"
    assert set(await redis.hvals(keys.depth("00", "echo"))) == {b"0"}  # type: ignore[misc]


async def race_all(fronts: list[httpx.AsyncClient], turns: asyncio.Semaphore) -> list[str]:
    """Race on all fronts at once; return the codes of all requests."""
    racing = []
    for seed, front in enumerate(fronts):
        racing.append(race(front, random.Random(seed), turns))

    codes = []
    for codes_of_front in await asyncio.gather(*racing):
        codes += codes_of_front
    return codes


async def race(front: httpx.AsyncClient, rng: random.Random, turns: asyncio.Semaphore) -> list[str]:
    """Submit and cancel at random; return each submission's error code, "" for an accepted one."""
    codes = []
    locations: list[str] = []
    for _ in range(60):
        turns.release()
        if locations and rng.random() < 0.3:
            location = locations.pop(rng.randrange(len(locations)))
            await front.delete(location)

        headers = LATER | {"X-Priority": rng.choice(("interactive", "default"))}
        body = {"prompts": ["word " * rng.randint(1, 40)] * rng.randint(1, 3)}
        answer = await front.post("/generate", json=body, headers=headers)

        if answer.status_code == 202:
            locations.append(answer.headers["Location"])
            codes.append("")
        else:
            codes.append(answer.json()["error"]["code"])
    return codes


async def watch(redis: Redis) -> None:
    """Raise AssertionError as soon as a limit is exceeded."""
    while True:
        # One transaction: the numbers belong to the same moment.
        async with redis.pipeline(transaction=True) as pipe:
            pipe.zcard(keys.open_jobs("00", "public"))
            pipe.hgetall(keys.depth("00", "echo"))
            num_held, depth = await pipe.execute()

        assert num_held <= CONCURRENCY
        for priority in ("interactive", "default", "bulk"):
            assert int(depth.get(f"jobs:{priority}".encode(), 0)) <= DEPTH
        assert 0 <= int(depth.get(b"bytes", 0)) <= BYTES
        await asyncio.sleep(0)


async def work(redis: Redis, turns: asyncio.Semaphore) -> None:
    """Hold up to two jobs, and end the oldest when a third comes.

    Take one job for every four requests, however fast they come."""
    desk = Desk(redis, "echo")
    claims = []
    while True:
        for _ in range(4):
            await turns.acquire()
        claims += await desk.take(1)
        if len(claims) > 2:
            await desk.say(claims.pop(0), DONE)


async def end_all(redis: Redis, front: httpx.AsyncClient) -> None:
    """Cancel every request that Redis still has."""
    for key in await redis.keys("aios:{00}:request:*"):
        job_id = key.decode().rpartition(":")[2]
        answer = await front.delete(f"/v1/jobs/{job_id}")
        assert answer.status_code == 200


@pytest.mark.parametrize("burst", [1, 5])
async def test_a_rate_admits_its_burst_and_not_one_more(
    redis: Redis, redis_url: str, burst: int
) -> None:
    """Exactly the burst gets in, whichever fronts it comes to."""
    await announce(redis, "echo")
    # So slow a rate refills nothing during the test.
    async with several_fronts(redis_url, tenant_rate_per_s=0.001, tenant_burst=burst) as fronts:
        posting = []
        for front in fronts * 5:
            posting.append(front.post("/generate", json={"prompts": ["a"]}, headers=LATER))
        answers = await asyncio.gather(*posting)

    status_codes = [answer.status_code for answer in answers]
    assert status_codes.count(202) == burst
