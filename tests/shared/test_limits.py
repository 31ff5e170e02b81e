"""P5 under a race of fronts, each with a connection of its own: no limit is exceeded by one,
whatever their order.

Tenants' concurrency and rate, depth of each class and bytes, all at once; then deadlines by
themselves.
"""

import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from redis.asyncio import Redis

from shared.errors import FleetError, OverQuota, QueueFull, TooSlow
from shared.messages import Cancelled, Generate, Job, Priority, Sampling, Task
from shared.queue import keys
from shared.queue.broker import Broker, connect
from shared.queue.submission import Quota
from tests.fixtures.desk import DONE, SAY_HI, Desk
from tests.fixtures.queue_clients import now_ms, saturate

NUM_FRONTS = 6
DEPTH = 8
BYTES = 2_600
QUOTAS = {"one": Quota(5, 60, 9), "other": Quota(9, 2, 4), "free": Quota()}
CLASSES: tuple[Priority, ...] = ("default", "bulk")


@pytest.fixture
async def connections(redis_url: str) -> AsyncIterator[list[Redis]]:
    clients = [connect(redis_url) for _ in range(NUM_FRONTS + 2)]
    yield clients
    for client in clients:
        await client.aclose()


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("seed", range(3))
async def test_no_limit_is_exceeded_by_one(
    connections: list[Redis], seed: int, shards: int
) -> None:
    fronts = [Desk(Broker(client, shards)) for client in connections]
    working = asyncio.create_task(work(fronts[-1]))
    watching = asyncio.create_task(watch(fronts[-2].broker))
    racing = [
        race(front, random.Random(100 * seed + number))
        for number, front in enumerate(fronts[:NUM_FRONTS])
    ]
    told: Counter[str] = Counter()
    accepted: list[Accepted] = []
    for codes, requests in await asyncio.gather(*racing):
        told += codes
        accepted += requests
    for task in (working, watching):
        task.cancel()
    _, seen = await asyncio.gather(working, watching, return_exceptions=True)
    assert isinstance(seen, asyncio.CancelledError), seen
    assert {"one concurrency", "other rate", "depth", "bytes"} <= set(told), (
        "each limit was reached"
    )
    check_rates(accepted)
    await check_nothing_is_held(fronts[0], [request.job for request in accepted])


@dataclass(frozen=True)
class Accepted:
    """The first job of a request that was let in at some moment between two."""

    job: Job
    asked_s: float
    answered_s: float


async def race(desk: Desk, rng: random.Random) -> tuple[Counter[str], list[Accepted]]:
    """What was refused, by limit, and what was not."""
    told: Counter[str] = Counter()
    accepted: list[Accepted] = []
    open_requests: list[list[Job]] = []
    for _ in range(60):
        if open_requests and rng.random() < 0.25:
            await desk.submissions.end(
                open_requests.pop(rng.randrange(len(open_requests))), Cancelled()
            )
        tenant = rng.choice(list(QUOTAS))
        tasks = [Generate("x" * rng.choice((1, 30, 400)), Sampling(4, seed=0))] * rng.randint(1, 3)
        limits = {
            "max_jobs": DEPTH,
            "max_bytes": BYTES,
            "tenant": tenant,
            "priority": rng.choice(CLASSES),
        }
        asked_s = time.monotonic()
        try:
            jobs = await desk.submit(*tasks, quota=QUOTAS[tenant], **limits)  # type: ignore[arg-type]
        except OverQuota as error:
            told[f"{tenant} {'rate' if 'a second' in str(error) else 'concurrency'}"] += 1
        except QueueFull as error:
            told["bytes" if "bytes" in str(error) else "depth"] += 1
        else:
            open_requests.append(jobs)
            accepted.append(Accepted(jobs[0], asked_s, time.monotonic()))
        await asyncio.sleep(rng.choice((0, 0, 0.005)))
    return told, accepted


async def watch(broker: Broker) -> None:
    """AssertionError at the first moment at which all shards together hold more than a limit."""
    shards = broker.shards
    while True:
        async with broker.client(shards[0]).pipeline(transaction=True) as pipe:
            for shard in shards:
                pipe.hgetall(keys.depth(shard, "m"))
                for tenant in QUOTAS:
                    pipe.zcard(keys.open_jobs(shard, tenant))
            answers = iter(await pipe.execute())
        waiting: Counter[str] = Counter()
        held: Counter[str] = Counter()
        for _ in shards:
            waiting.update({name.decode(): int(value) for name, value in next(answers).items()})
            held.update({tenant: next(answers) for tenant in QUOTAS})
        assert all(waiting[f"jobs:{name}"] <= DEPTH for name in CLASSES), waiting
        assert 0 <= waiting["bytes"] <= BYTES, waiting
        assert all(
            held[name] <= quota.concurrency for name, quota in QUOTAS.items() if quota.concurrency
        ), held
        await asyncio.sleep(0)


async def work(desk: Desk) -> None:
    """Has up to four jobs in hand, and ends the oldest of them."""
    held = []
    while True:
        held += await desk.take(1)
        if len(held) > 4:
            await desk.say(held.pop(0), DONE)
        await asyncio.sleep(0.005)


def check_rates(accepted: list[Accepted]) -> None:
    """In no time did a tenant get more requests in than its burst and what its rate gave back
    meanwhile."""
    for tenant, quota in QUOTAS.items():
        if not quota.rate_per_s:
            continue
        requests = [request for request in accepted if request.job.tenant == tenant]
        for first in requests:
            later = [request.answered_s for request in requests if request.asked_s >= first.asked_s]
            for number, last_s in enumerate(sorted(later), start=1):
                # Redis counts milliseconds.
                allowed = quota.burst + quota.rate_per_s * (last_s - first.asked_s + 0.001)
                assert number <= allowed, (tenant, number, last_s - first.asked_s)


async def field_of(broker: Broker, job: Job, name: str) -> bytes:
    value: bytes = await broker.client(keys.shard_of(job.id)).hget(keys.job(job.id), name)  # type: ignore[misc, assignment]
    return value


async def check_nothing_is_held(desk: Desk, accepted: list[Job]) -> None:
    """Whatever raced, every counter is at zero when all has ended."""
    for job in accepted:
        request = (await field_of(desk.broker, job, "request")).decode()
        await desk.submissions.end(
            (await desk.requests.find(request, job.tenant)).job_ids, Cancelled()
        )
    assert await desk.counts() == (0, 0)
    for shard in desk.broker.shards:
        client = desk.broker.client(shard)
        assert not await client.keys(f"{keys.prefix(shard)}held:*")
        assert set(await client.hvals(keys.depth(shard, "m"))) <= {b"0"}  # type: ignore[misc]


async def test_no_more_is_let_in_than_can_begin_before_its_deadline(
    connections: list[Redis],
) -> None:
    """Each of those let in has as much before it as the measured rate can do by its deadline, and
    the next had more."""
    deadline_s = 60.0
    served = 500
    fronts = [Desk(client) for client in connections]
    await saturate(fronts[0], connections[0], since_s=60)
    ahead = await waiting_cost(connections[0])

    async def race(desk: Desk) -> tuple[list[tuple[int, Job]], int]:
        """What was let in, each with a moment before that, and how many were refused."""
        accepted = []
        refused = 0
        for _ in range(100):
            asked_ms = await now_ms(desk)
            try:
                jobs = await desk.submit(max_jobs=10_000, deadline_s=deadline_s, is_urgent=True)
            except TooSlow:
                refused += 1
            else:
                accepted.append((asked_ms, jobs[0]))
        return accepted, refused

    def rate_at(ms: int) -> float:
        """Over this bucket of ten seconds and the one before."""
        return served / ((ms % 10_000 + 10_000) / 1000)

    raced = await asyncio.gather(*map(race, fronts))
    assert all(refused > 0 for _, refused in raced)
    accepted = [request for requests, _ in raced for request in requests]
    waits = sorted(
        [(*await line_place(connections[0], job), asked_ms) for asked_ms, job in accepted]
    )
    assert len(waits) > 100
    for (queued_ms, _), cost, asked_ms in waits:
        # The decision fell between the two moments. The rate falls within a bucket, and rises where
        # the next begins.
        rate = max(rate_at(asked_ms), rate_at(queued_ms))
        assert ahead / rate <= deadline_s + 1e-6
        ahead += cost
    assert ahead == await waiting_cost(connections[0])


async def line_place(redis: Redis, job: Job) -> tuple[tuple[int, int], int]:
    """Where a job stands in its line, by when it came, and its cost."""
    entry, cost = await redis.hmget(keys.job(job.id), ["entry", "cost"])  # type: ignore[misc]
    queued_ms, number = map(int, entry.split(b"-"))
    return (queued_ms, number), int(cost)


async def waiting_cost(redis: Redis) -> int:
    return int(await redis.hget(keys.depth("00", "m"), "cost:default") or 0)  # type: ignore[misc]


@pytest.mark.parametrize("shards", [1, 4])
async def test_when_to_come_again_is_told_by_what_ended_lately(
    connections: list[Redis], shards: int
) -> None:
    """Twenty jobs in this and the last bucket of ten seconds: the next place is free after a
    twentieth of that time."""
    desk = Desk(Broker(connections[0], shards), lease_s=60)
    with pytest.raises(QueueFull) as unknown:
        await desk.submit(max_jobs=0)
    assert unknown.value.retry_after_s == 5, "nothing has ended yet"
    await desk.submit(*[SAY_HI] * 20)
    for claim in await desk.take(20):
        assert await desk.say(claim, DONE)
    await desk.submit(*[SAY_HI] * 30)
    await desk.submissions._reservations.settle()
    tag = keys.ADMISSION if shards > 1 else "00"
    await connections[0].set(f"{keys.prefix(tag)}busy:m", 1)
    five = [SAY_HI] * 5
    await told(desk, five, 15 / 20, max_jobs=20)
    await told(desk, five, 10 / 20, quota=Quota(concurrency=25))
    await told(desk, five, 1 / 20, max_bytes=2000)
    await told(desk, five, 30 / 20, less_s=2, is_urgent=True, deadline_s=2)
    await desk.submit(tenant="slow", quota=Quota(rate_per_s=0.1, burst=1))
    with pytest.raises(OverQuota) as late:
        await desk.submit(tenant="slow", quota=Quota(rate_per_s=0.1, burst=1))
    assert late.value.retry_after_s in (9, 10)


async def told(
    desk: Desk, tasks: list[Task], share: float, *, less_s: float = 0, **order: object
) -> None:
    """The request is refused, and it is said that there is room after this share of the time that
    is looked back at."""
    before_ms = after_ms = 1
    retry_after_s: int | None = None
    while not 0 < before_ms // 10_000 == after_ms // 10_000:
        before_ms = await now_ms(desk)
        with pytest.raises(FleetError) as refused:
            await desk.submit(*tasks, **order)  # type: ignore[arg-type]
        after_ms = await now_ms(desk)
        retry_after_s = refused.value.retry_after_s
    assert retry_after_s is not None
    assert _told_at(before_ms, share, less_s) <= retry_after_s <= _told_at(after_ms, share, less_s)


def _told_at(ms: int, share: float, less_s: float) -> int:
    """The seconds that are told at this moment. Redis tells whole milliseconds, and parts of one
    are left out."""
    wait_ms = math.floor(share * (ms % 10_000 + 10_000) - 1000 * less_s)
    return max(1, math.ceil(wait_ms / 1000))
