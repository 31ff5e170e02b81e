"""P5: no limit is exceeded while fronts race, each with a connection of its own.

The first test has all limits at once: each tenant's concurrency and rate, and the queue's depth and
bytes. The others have deadlines and Retry-After by themselves.
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
from tests.fixtures.redis_server import patient

pytestmark = pytest.mark.usefixtures("waits_long")

NUM_FRONTS = 6
DEPTH = 8
BYTES = 2_600
QUOTAS = {
    "one": Quota(concurrency=5, rate_per_s=60, burst=9),
    "other": Quota(concurrency=9, rate_per_s=2, burst=4),
    "free": Quota(),
}
CLASSES: tuple[Priority, ...] = ("default", "bulk")


@pytest.fixture
async def connections(redis_url: str) -> AsyncIterator[list[Redis]]:
    clients = [patient(connect(redis_url)) for _ in range(NUM_FRONTS + 2)]
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

    races = []
    for number, front in enumerate(fronts[:NUM_FRONTS]):
        races.append(race(front, random.Random(100 * seed + number)))

    refusals: Counter[str] = Counter()
    accepted: list[Accepted] = []
    for refused, requests in await asyncio.gather(*races):
        refusals += refused
        accepted += requests

    working.cancel()
    watching.cancel()
    _, outcome = await asyncio.gather(working, watching, return_exceptions=True)
    assert isinstance(outcome, asyncio.CancelledError), outcome
    assert {"one concurrency", "other rate", "depth", "bytes"} <= set(refusals), (
        "each limit was reached"
    )

    check_rates(accepted)
    await check_nothing_is_held(fronts[0], accepted)


@dataclass(frozen=True)
class Accepted:
    """First job of a request that was let in, with the moments before and after that."""

    job: Job
    before_s: float
    after_s: float


async def race(desk: Desk, rng: random.Random) -> tuple[Counter[str], list[Accepted]]:
    """Submit and cancel at random; return the refusals by limit, and the accepted requests."""
    refusals: Counter[str] = Counter()
    accepted: list[Accepted] = []
    open_requests: list[list[Job]] = []
    for _ in range(60):
        if open_requests and rng.random() < 0.25:
            jobs = open_requests.pop(rng.randrange(len(open_requests)))
            await desk.submissions.end(jobs, Cancelled())

        tenant = rng.choice(list(QUOTAS))
        task = Generate("x" * rng.choice((1, 30, 400)), Sampling(4, seed=0))
        tasks = [task] * rng.randint(1, 3)
        priority = rng.choice(CLASSES)
        before_s = time.monotonic()

        try:
            jobs = await desk.submit(
                *tasks,
                quota=QUOTAS[tenant],
                max_jobs=DEPTH,
                max_bytes=BYTES,
                tenant=tenant,
                priority=priority,
            )
        except OverQuota as error:
            if "a second" in str(error):
                refusals[f"{tenant} rate"] += 1
            else:
                refusals[f"{tenant} concurrency"] += 1
        except QueueFull as error:
            if "bytes" in str(error):
                refusals["bytes"] += 1
            else:
                refusals["depth"] += 1
        else:
            open_requests.append(jobs)
            accepted.append(Accepted(jobs[0], before_s, time.monotonic()))

        await asyncio.sleep(rng.choice((0, 0, 0.005)))

    return refusals, accepted


async def watch(broker: Broker) -> None:
    """Raise AssertionError as soon as all shards together hold more than a limit."""
    shards = broker.shards

    while True:
        # One transaction: the numbers of all shards are of the same moment.
        async with broker.client(shards[0]).pipeline(transaction=True) as pipe:
            for shard in shards:
                pipe.hgetall(keys.depth(shard, "m"))
                for tenant in QUOTAS:
                    pipe.zcard(keys.open_jobs(shard, tenant))
            answers = iter(await pipe.execute())

        waiting: Counter[str] = Counter()
        num_open: Counter[str] = Counter()

        for _ in shards:
            for name, value in next(answers).items():
                waiting[name.decode()] += int(value)
            for tenant in QUOTAS:
                num_open[tenant] += next(answers)

        for priority in CLASSES:
            assert waiting[f"jobs:{priority}"] <= DEPTH, waiting

        assert 0 <= waiting["bytes"] <= BYTES, waiting
        for tenant, quota in QUOTAS.items():
            if quota.concurrency:
                assert num_open[tenant] <= quota.concurrency, num_open

        await asyncio.sleep(0)


async def work(desk: Desk) -> None:
    """Keep up to four jobs in hand, and end the oldest of them."""
    held = []
    while True:
        held += await desk.take(1)
        if len(held) > 4:
            await desk.say(held.pop(0), DONE)
        await asyncio.sleep(0.005)


def check_rates(accepted: list[Accepted]) -> None:
    """Check each stretch of time that begins with a request of a tenant.

    The tenant has at most its burst let in, and what its rate gave back meanwhile.
    """
    for tenant, quota in QUOTAS.items():
        if not quota.rate_per_s:
            continue

        requests = [request for request in accepted if request.job.tenant == tenant]
        for first in requests:
            ends_s = []
            for request in requests:
                if request.before_s >= first.before_s:
                    ends_s.append(request.after_s)

            for number, end_s in enumerate(sorted(ends_s), start=1):
                # Redis counts whole milliseconds.
                elapsed_s = end_s - first.before_s + 0.001
                allowed = quota.burst + quota.rate_per_s * elapsed_s
                assert number <= allowed, (tenant, number, elapsed_s)


async def request_id_of(broker: Broker, job: Job) -> str:
    client = broker.client(keys.shard_of(job.id))
    value: bytes = await client.hget(keys.job(job.id), "request")  # type: ignore[misc, assignment]
    return value.decode()


async def check_nothing_is_held(desk: Desk, accepted: list[Accepted]) -> None:
    """Check that every counter is at zero when all requests have ended."""
    for first in accepted:
        request_id = await request_id_of(desk.broker, first.job)
        request = await desk.requests.find(request_id, first.job.tenant)
        await desk.submissions.end(request.job_ids, Cancelled())

    assert await desk.counts() == (0, 0)

    for shard in desk.broker.shards:
        client = desk.broker.client(shard)
        assert not await client.keys(f"{keys.prefix(shard)}held:*")
        assert set(await client.hvals(keys.depth(shard, "m"))) <= {b"0"}  # type: ignore[misc]


async def test_no_more_is_let_in_than_can_begin_before_its_deadline(
    connections: list[Redis],
) -> None:
    """Each accepted request can begin by its deadline, at the measured rate.

    What waits before it costs at most what the rate serves until then, and the rest is refused.
    """
    deadline_s = 60.0
    served = 500
    fronts = [Desk(client) for client in connections]
    await saturate(fronts[0], connections[0], since_s=60)
    cost_before = await waiting_cost(connections[0])

    accepted: list[tuple[int, Job]] = []

    async def race(desk: Desk) -> None:
        num_refused = 0
        for _ in range(100):
            before_ms = await now_ms(desk)
            try:
                [job] = await desk.submit(max_jobs=10_000, deadline_s=deadline_s, is_urgent=True)
            except TooSlow:
                num_refused += 1
            else:
                accepted.append((before_ms, job))

        assert num_refused > 0

    def rate_at(ms: int) -> float:
        """Return the rate over this bucket of ten seconds and the one before."""
        return served / ((ms % 10_000 + 10_000) / 1000)

    await asyncio.gather(*[race(desk) for desk in fronts])

    line = []
    for before_ms, job in accepted:
        queued_ms, number, cost = await place_in_line(connections[0], job)
        line.append((queued_ms, number, cost, before_ms))

    assert len(line) > 100

    for queued_ms, _, cost, before_ms in sorted(line):
        # The decision fell between the two moments. The rate falls within a bucket, and rises where
        # the next begins.
        rate = max(rate_at(before_ms), rate_at(queued_ms))
        assert cost_before / rate <= deadline_s + 1e-6
        cost_before += cost

    assert cost_before == await waiting_cost(connections[0])


async def place_in_line(redis: Redis, job: Job) -> tuple[int, int, int]:
    """Return when a job was queued, its number within that millisecond, and its cost."""
    entry, cost = await redis.hmget(keys.job(job.id), ["entry", "cost"])  # type: ignore[misc]
    queued_ms, _, number = entry.partition(b"-")
    return int(queued_ms), int(number), int(cost)


async def waiting_cost(redis: Redis) -> int:
    return int(await redis.hget(keys.depth("00", "m"), "cost:default") or 0)  # type: ignore[misc]


@pytest.mark.parametrize("shards", [1, 4])
async def test_when_to_come_again_is_told_by_what_ended_lately(
    connections: list[Redis], shards: int
) -> None:
    """Retry-After follows what ended in this and the last bucket of ten seconds.

    After twenty jobs the next place is free in a twentieth of that time.
    """
    desk = Desk(Broker(connections[0], shards), lease_s=60)
    with pytest.raises(QueueFull) as unknown:
        await desk.submit(max_jobs=0)
    assert unknown.value.retry_after_s == 5, "nothing has ended yet"

    await desk.submit(*[SAY_HI] * 20)
    for claim in await desk.take(20):
        assert await desk.say(claim, DONE)

    await desk.submit(*[SAY_HI] * 30)
    await desk.submissions.reservations.settle()
    tag = keys.ADMISSION if shards > 1 else "00"
    await connections[0].set(f"{keys.prefix(tag)}busy:m", 1)

    five = [SAY_HI] * 5
    await check_retry_after(desk, five, share=15 / 20, max_jobs=20)
    await check_retry_after(desk, five, share=10 / 20, quota=Quota(concurrency=25))
    await check_retry_after(desk, five, share=1 / 20, max_bytes=2000)
    await check_retry_after(desk, five, share=30 / 20, less_s=2, is_urgent=True, deadline_s=2)

    await desk.submit(tenant="slow", quota=Quota(rate_per_s=0.1, burst=1))
    with pytest.raises(OverQuota) as late:
        await desk.submit(tenant="slow", quota=Quota(rate_per_s=0.1, burst=1))
    assert late.value.retry_after_s in (9, 10)


async def check_retry_after(
    desk: Desk, tasks: list[Task], *, share: float, less_s: float = 0, **options: object
) -> None:
    """Check that the request is refused, with this share of the measured time as Retry-After."""
    while True:
        before_ms = await now_ms(desk)
        with pytest.raises(FleetError) as refused:
            await desk.submit(*tasks, **options)  # type: ignore[arg-type]

        after_ms = await now_ms(desk)
        # At a bucket's end the measured time jumps back, so the bounds hold within one bucket.
        if before_ms // 10_000 == after_ms // 10_000:
            break

    retry_after_s = refused.value.retry_after_s
    assert retry_after_s is not None

    earliest = retry_after_at(before_ms, share=share, less_s=less_s)
    latest = retry_after_at(after_ms, share=share, less_s=less_s)
    assert earliest <= retry_after_s <= latest


def retry_after_at(ms: int, *, share: float, less_s: float) -> int:
    """Return Retry-After at this moment, from whole milliseconds as Redis has them."""
    wait_ms = math.floor(share * (ms % 10_000 + 10_000) - 1000 * less_s)
    return max(1, math.ceil(wait_ms / 1000))
