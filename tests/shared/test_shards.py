"""Many shards on one server cost what one does.

There is one look for work, one wait and one connection for all of them.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from redis.asyncio import Redis

from shared.events.log import Append
from shared.messages import Cancelled, Job, Priority, Tokens
from shared.queue import keys
from shared.queue.broker import Broker, open_broker
from shared.queue.submission import Key
from tests.fixtures.desk import Desk
from worker.host.intake import Doorbells

SHARDS = 64


@pytest.fixture
async def desk(redis_url: str) -> AsyncIterator[Desk]:
    async with open_broker(redis_url, SHARDS) as broker:
        yield Desk(broker)


async def submit(desk: Desk, tenant: str, priority: Priority = "default") -> Job:
    """Submit a job on the tenant's own shard, by a key that leads there."""
    while True:
        key = Key(secrets.token_hex(8))
        if keys.shard_for(f"{tenant}/{key.text}", SHARDS) == keys.shard_for(tenant, SHARDS):
            _, jobs = await desk.request(tenant=tenant, priority=priority, key=key)
            return jobs[0]


def shard_of(job: Job) -> str:
    return keys.shard_of(job.id)


async def test_work_is_found_on_its_shards_in_the_order_asked(desk: Desk) -> None:
    """Jobs that wait or have lapsed are work, and jobs that another worker holds are not."""
    waiting = await submit(desk, "a")
    lapsed = await submit(desk, "b")
    held = await submit(desk, "c")
    assert len({shard_of(waiting), shard_of(lapsed), shard_of(held)}) == 3

    queue = desk.queue()
    await queue.take(shard_of(held), 1, is_empty=True)
    taken = await queue.take(shard_of(lapsed), 1, is_empty=True)
    await queue.give_back(taken.claims)

    shards = list(desk.broker.shards)
    with_work = sorted([shard_of(waiting), shard_of(lapsed)])
    assert await queue.shards_with_work(shards) == with_work
    assert await queue.shards_with_work(shards[::-1]) == with_work[::-1]

    interactive = await queue.shards_with_work(shards, priorities=("interactive",))
    assert interactive == [shard_of(lapsed)], "its class is not known yet"


@pytest.mark.parametrize("count", [1, SHARDS])
async def test_whether_there_is_work_is_looked_up_even_on_a_single_shard(
    redis_url: str, count: int
) -> None:
    async with open_broker(redis_url, count) as broker:
        desk = Desk(broker)
        queue = desk.queue()
        assert not await queue.has_work(broker.shards)

        job = await submit(desk, "a")
        assert await queue.has_work(broker.shards)

        [claim] = (await queue.take(shard_of(job), 1, is_empty=True)).claims
        assert not await queue.has_work(broker.shards)

        await queue.give_back([claim])
        assert await queue.has_work(broker.shards)


async def test_one_wait_hears_every_bell(desk: Desk) -> None:
    queue = desk.queue()
    shards = list(desk.broker.shards)
    waiting = asyncio.create_task(queue.await_bell(shards, 5))
    job = await submit(desk, "a")
    assert await waiting == shard_of(job)
    assert await queue.await_bell(shards, 0.01) is None


async def test_what_rang_for_work_that_is_gone_is_silenced_by_a_thorough_look(desk: Desk) -> None:
    queue = desk.queue()
    shards = list(desk.broker.shards)
    job = await submit(desk, "a")
    bell = keys.bell(shard_of(job), desk.model)
    await desk.submissions.end([job], Cancelled())
    client = desk.broker.client(shard_of(job))
    assert await queue.shards_with_work(shards, priorities=("interactive",)) == []
    assert await client.exists(bell), (
        "others may wait in other classes, and it was not asked about them"
    )
    assert await queue.shards_with_work(shards) == []
    assert not await client.exists(bell)

    again = await submit(desk, "a")
    assert await queue.shards_with_work(shards) == [shard_of(again)]
    assert await client.exists(bell)


@pytest.mark.parametrize("are_scripts_lost", [False, True])
async def test_one_append_for_jobs_of_many_shards(
    desk: Desk, redis: Redis, are_scripts_lost: bool
) -> None:
    """Each job has its own answer: of three claims the second is stale."""
    for tenant in ("a", "b", "c"):
        await submit(desk, tenant)

    claims = sorted(await desk.take(), key=lambda claim: claim.job.tenant)
    stale = claims[1]
    await desk.submissions.end([stale.job], Cancelled())
    if are_scripts_lost:
        await redis.script_flush()

    assert await desk.queue().renew(claims) == [stale]

    appends = []
    for claim in claims:
        appends.append(Append(claim.job, claim.epoch, 0, (Tokens((5,), "a"),)))

    assert await desk.writer.append(appends) == [True, False, True]
    assert await desk.writer.append(appends[::-1]) == [True, False, True], "by an earlier try"


async def test_few_connections_do(desk: Desk, redis: Redis) -> None:
    """A worker that waits on all shards and writes to all of them has few connections."""
    before = len(await redis.client_list())
    bells = Doorbells(desk.queue(), 1)
    waiting = asyncio.create_task(bells.wait(desk.broker.shards))
    claims = []
    for number in range(20):
        await submit(desk, f"t{number}")
        claims += await desk.take()

    assert len({keys.shard_of(claim.job.id) for claim in claims}) > 10
    assert await desk.queue().renew(claims) == []
    assert (await desk.submissions.depth(desk.model)).running == len(claims)
    assert len(await redis.client_list()) - before <= 4

    waiting.cancel()
    with suppress(asyncio.CancelledError):
        await waiting

    await bells.close()


def test_a_single_server_is_one_part(redis: Redis) -> None:
    shards = Broker(redis, SHARDS).shards
    assert Broker(redis, SHARDS).together(shards) == [list(shards)]
