"""Jobs that are parked behind another one, on a real Redis.

They are in no line until that one has ended. If it settles their question they are never done.
"""

import random

import pytest
from redis.asyncio import Redis
from redis.asyncio.client import PubSub

from shared.errors import FleetError, QueueFull
from shared.messages import SKIPPED, Cancelled, Done, Failed, Job, Started, Terminal
from shared.queue import keys
from shared.queue.janitor import Janitor
from shared.queue.leases import Claim
from shared.queue.submission import Quota
from tests.fixtures.desk import DONE, SAY_HI, Desk

pytestmark = pytest.mark.usefixtures("waits_long")

SETTLED = Done("solve", 1, 0, settles=True)
SHARDS = pytest.mark.parametrize("shards", [1, 2])


def ids(claims: list[Claim]) -> list[str]:
    return [claim.job.id for claim in claims]


async def submit_group(desk: Desk, size: int = 4, **order: object) -> list[Job]:
    """Submit a request of one job and of others that are parked behind it."""
    return await desk.submit(*[SAY_HI] * size, leaders=(None, *[0] * (size - 1)), **order)


async def check_nothing_is_left(redis: Redis) -> None:
    """Assert that no counter is left above 0, and no key that would stay for ever."""
    async for name in redis.scan_iter():
        if b":depth:" in name:
            assert set(await redis.hvals(name)) <= {b"0"}, name  # type: ignore[misc]
        elif await redis.pttl(name) < 0:
            assert any(part in name for part in (b":bell:", b"unsettled")), name


@SHARDS
async def test_they_wait_until_the_first_has_ended(redis: Redis, shards: int) -> None:
    """Parked jobs are not taken, and are queued all at once when the first has not settled them."""
    desk = Desk(redis, shards=shards)
    first, *others = await submit_group(desk)
    assert await desk.counts() == (4, 0)
    [claim] = await desk.take(10)
    assert claim.job == first
    assert await desk.take(10) == []

    assert await desk.say(claim, Started(1, "w1", 1), DONE)

    claims = await desk.take(10, "w2")
    assert ids(claims) == [job.id for job in others]
    for claim in claims:
        assert await desk.say(claim, DONE)
    await desk.submissions.reservations.settle_all()
    await check_nothing_is_left(redis)


@SHARDS
async def test_a_job_that_settles_ends_those_behind_it(redis: Redis, shards: int) -> None:
    """Needless jobs end at once, each with one event, and hold nothing any more."""
    desk = Desk(redis, shards=shards)
    quota = Quota(concurrency=4)
    _, *others = await submit_group(desk, quota=quota)
    [claim] = await desk.take(10)
    assert await desk.say(claim, SETTLED)
    assert await desk.say(claim, SETTLED), "the same append again"

    for job in others:
        assert await desk.events(job) == [SKIPPED]
    assert await desk.counts() == (0, 0)
    assert await desk.take(10) == []
    await desk.submissions.reservations.settle_all()
    await check_nothing_is_left(redis)
    assert await submit_group(desk, quota=quota), "the tenant's places are free again"


async def test_one_of_the_others_settles_those_after_it(desk: Desk, redis: Redis) -> None:
    """A job that was parked makes those after it needless, running ones too, and none before it."""
    _, second, third, fourth, fifth = await submit_group(desk, 5)
    [claim] = await desk.take(10)
    await desk.say(claim, DONE)
    claims = {claim.job.id: claim for claim in await desk.take(3, "w2")}
    pubsub = redis.pubsub()
    await pubsub.subscribe(keys.control("00", "w2"))

    assert await desk.say(claims[third.id], SETTLED)

    assert await desk.events(fourth) == [SKIPPED]
    assert await desk.events(fifth) == [SKIPPED]
    assert not await desk.say(claims[fourth.id], DONE), "its worker is stale"
    assert await desk.events(second) == []
    assert await messages(pubsub) == [fourth.id.encode()]
    assert await desk.say(claims[second.id], DONE)
    assert await desk.take(10) == []
    await check_nothing_is_left(redis)


async def messages(pubsub: PubSub) -> list[bytes]:
    """Return what has been published until now."""
    published: list[bytes] = []
    while True:
        message = await pubsub.get_message(timeout=0.5)
        if message is None:
            return published
        if message["type"] == "message":
            published.append(message["data"])


@pytest.fixture
def desk(redis: Redis) -> Desk:
    return Desk(redis)


@pytest.mark.parametrize("how", ["failed", "cancelled", "late"])
async def test_none_is_stranded_behind_one_that_has_no_result(
    desk: Desk, redis: Redis, how: str
) -> None:
    """However the first ends, those behind it can be done, or ended, as any others."""
    first, *others = await submit_group(desk)
    if how == "failed":
        [claim] = await desk.take(1)
        await desk.say(claim, Failed("worker_failed", "bad luck"))
    elif how == "cancelled":
        assert await desk.submissions.end([first], Cancelled("client")) == 1
    else:
        await redis.hset(keys.job(first.id), "deadline_ms", "1")  # type: ignore[misc]
        claims = await desk.take(2)
        assert ids(claims) == [job.id for job in others[:2]]
        await desk.queue().give_back(claims)
    assert isinstance((await desk.events(first))[-1], Terminal)

    assert len(await desk.take(10, "w2")) == 3
    assert await desk.submissions.end(others, Cancelled("sibling")) == 3
    await check_nothing_is_left(redis)


async def test_all_jobs_of_a_request_are_cancelled_together(desk: Desk, redis: Redis) -> None:
    jobs = await submit_group(desk)
    assert await desk.submissions.end(jobs, Cancelled("client")) == 4
    for job in jobs:
        assert await desk.events(job) == [Cancelled("client")]
    assert await desk.take(10) == []
    await check_nothing_is_left(redis)

    first, *others = await submit_group(desk)
    assert await desk.submissions.end(others, Cancelled("client")) == 3, "while they are parked"
    [claim] = await desk.take(10)
    assert claim.job == first
    await desk.say(claim, DONE)
    assert await desk.take(10) == []
    await check_nothing_is_left(redis)


async def test_their_time_in_line_begins_when_they_are_in_line(desk: Desk, redis: Redis) -> None:
    """A queue timeout does not count the time for which a job is parked."""
    request, (_, *others) = await desk.request(
        SAY_HI, SAY_HI, leaders=(None, 0), queue_timeout_s=1000.0
    )
    [claim] = await desk.take(1)
    timeout = Failed("queue_timeout", "nobody came")
    assert await desk.submissions.end(others, timeout, if_waiting=True) == 0
    for name in ("expires_ms", "queued_ms"):
        value = int(await redis.hget(keys.job(others[0].id), name))  # type: ignore[misc,arg-type]
        await redis.hset(keys.job(others[0].id), name, value - 5_000_000)  # type: ignore[misc]
    assert [snapshot.state for snapshot in await desk.requests.look(request)] == [
        "running",
        "queued",
    ]

    await desk.say(claim, DONE)

    assert await desk.submissions.end(others, timeout, if_waiting=True) == 0
    assert ids(await desk.take(1)) == [others[0].id]


@SHARDS
async def test_they_count_as_waiting_but_their_cost_does_not(redis: Redis, shards: int) -> None:
    """The cap of a queue counts them, so that it is never exceeded when they go into line."""
    desk = Desk(redis, shards=shards)
    await submit_group(desk, 4, max_jobs=5)
    with pytest.raises(QueueFull):
        await desk.submit(SAY_HI, SAY_HI, max_jobs=5)
    costs = []
    for shard in desk.broker.shards:
        costs.append(int(await redis.hget(keys.depth(shard, "m"), "cost:default") or 0))  # type: ignore[misc]
    [claim] = await desk.take(1)
    assert sum(costs) > 0
    await desk.say(claim, DONE)
    in_line = 0
    for shard in desk.broker.shards:
        in_line += int(await redis.hget(keys.depth(shard, "m"), "cost:default") or 0)  # type: ignore[misc]
    assert in_line == 3 * sum(costs)


@SHARDS
async def test_the_janitor_leaves_them_alone_unless_they_are_stranded(
    redis: Redis, shards: int
) -> None:
    """Parked jobs are counted by a recount. One whose leader has ended goes into its line."""
    desk = Desk(redis, shards=shards)
    first, *others = await submit_group(desk)
    janitor = Janitor(desk.broker, grace_s=0)

    async def faults() -> dict[str, int]:
        found: dict[str, int] = {}
        for sweep in janitor.sweeps.values():
            found |= await sweep()
        return found

    assert await faults() == {}
    assert len(await desk.take(10)) == 1
    assert await faults() == {}
    assert await desk.take(10) == []

    # As after a partial loss of Redis's data.
    await redis.hset(keys.job(first.id), "state", "done")  # type: ignore[misc]
    found = await faults()
    assert found["lost_jobs"] == 3
    assert sorted(ids(await desk.take(10, "w2"))) == sorted(job.id for job in others)


async def test_random_groups_end_as_plain_counting_says(desk: Desk, redis: Redis) -> None:
    """Groups of all sizes, taken and ended in any order: each job has one end, none is done behind
    one that settled, and each job before the first that settled is done."""
    rng = random.Random(18)
    groups = [await submit_group(desk, rng.randint(1, 6), max_jobs=1000) for _ in range(40)]
    settles = {job.id: rng.random() < 0.3 for group in groups for job in group}
    held: list[Claim] = []
    while True:
        held += await desk.take(rng.randint(1, 4), rng.choice(("w1", "w2")), is_empty=True)
        if not held:
            break
        claim = held.pop(rng.randrange(len(held)))
        try:
            await desk.say(claim, SETTLED if settles[claim.job.id] else DONE)
        except FleetError:
            pytest.fail("an append may be stale, and never fails")

    for group in groups:
        ends = []
        for job in group:
            [end] = await desk.events(job)
            ends.append(end)
        settled = [settles[job.id] for job in group]
        first = settled.index(True) if True in settled else len(group)
        for number, end in enumerate(ends):
            if number < first:
                assert end == DONE
            elif number == first:
                assert end == SETTLED
            else:
                # One that had ended before may have a result of its own.
                assert end in (SKIPPED, DONE, SETTLED)
    assert await desk.counts() == (0, 0)
    await check_nothing_is_left(redis)
