"""Limits are the whole fleet's, on any number of shards: never one too many, no refusal while there
is room.

When all has ended nothing is held, whatever was killed on the way.
"""

import asyncio
import math
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, suppress

import pytest
from redis.asyncio import Redis

from shared.errors import BrokerUnavailable, FleetError, OverQuota, QueueFull, TooSlow
from shared.messages import Cancelled, Generate, Job, Priority, Sampling, encode
from shared.queue import keys, reservations
from shared.queue.broker import Broker, connect, open_broker
from shared.queue.janitor import Janitor
from shared.queue.leases import Claim
from shared.queue.submission import Key, QueueLimits, Quota, SubmitRequest
from tests.fixtures.desk import DONE, SAY_HI, Desk
from tests.fixtures.polling import DEADLINE_S
from tests.fixtures.queue_clients import now_ms
from tests.fixtures.redis_cluster import RedisCluster, redis_cluster

NUM_FRONTS = 4
SHARDS = 64
ROOM = QueueLimits(max_jobs=8, max_bytes=2_600)
QUOTAS = {"one": Quota(concurrency=5), "other": Quota(concurrency=9), "free": Quota()}
CLASSES: tuple[Priority, ...] = ("interactive", "default", "bulk")
COUNTS = pytest.mark.parametrize("shards", [1, 4, SHARDS])


class Killed(Exception):
    """A front dies here."""


class Deadly:
    """In place of a script: whoever calls it dies before."""

    async def call(self, *_: object, **__: object) -> None:
        raise Killed


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    with redis_cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine is no server that is away."""
    monkeypatch.setattr(reservations, "_ANSWER_S", 60.0)


@pytest.fixture
async def connections(redis_url: str) -> AsyncIterator[list[Redis]]:
    clients = [connect(redis_url) for _ in range(NUM_FRONTS)]
    yield clients
    for client in clients:
        await client.aclose()


def desks(connections: list[Redis], shards: int) -> list[Desk]:
    """Each as a process of its own would be."""
    return [Desk(Broker(client, shards), lease_s=60) for client in connections]


class Fleet:
    """What should be where, by plain counting, and the same in Redis, seen from several fronts."""

    def __init__(self, fronts: list[Desk], seed: int) -> None:
        self.fronts = fronts
        self.rng = random.Random(seed)
        self.waiting: dict[str, Job] = {}
        self.claims: list[Claim] = []
        self.lost: list[Job] = []  # let in, and never queued, since their fronts died
        self.told: Counter[str] = Counter()

    async def submit(self, *, dies: bool) -> None:
        """A front that `dies` does so when the request is let in and not yet queued."""
        desk = self.rng.choice(self.fronts)
        task = Generate("x" * self.rng.choice((1, 30, 400)), Sampling(4, seed=0))
        tenant = self.rng.choice(list(QUOTAS))
        priority = self.rng.choice(CLASSES)
        order = SubmitRequest("m", (task,) * self.rng.randint(1, 3), tenant, priority)
        submissions = Desk(desk.broker).submissions if dies else desk.submissions
        if dies:
            submissions._submit = Deadly()  # type: ignore[assignment]
        request_id, jobs = submissions.jobs_of(order)
        expected = self.obstacle(jobs)
        said = ""
        try:
            await submissions.submit(order, request_id, jobs, QUOTAS[tenant], ROOM)
            self.waiting |= {job.id: job for job in jobs}
        except Killed:
            self.lost += jobs
        except (OverQuota, QueueFull) as error:
            said = error.message
            self.told[expected[:8]] += 1
        assert bool(said) == bool(expected), (said, expected)
        assert expected in said

    def obstacle(self, jobs: list[Job]) -> str:
        """What is said against these jobs, by what is there; "" for nothing."""
        tenant = jobs[0].tenant
        priority = jobs[0].priority
        in_line = [*self.waiting.values(), *self.lost]
        limit = QUOTAS[tenant].concurrency
        num_open = sum(
            job.tenant == tenant for job in [*in_line, *(claim.job for claim in self.claims)]
        )
        if limit and num_open + len(jobs) > limit:
            return (
                f"{num_open} of the {limit} requests that may be open at once are, and this is "
                f"{len(jobs)} more"
            )
        in_class = sum(job.priority == priority for job in in_line)
        if in_class + len(jobs) > ROOM.max_jobs:
            return (
                f"{in_class} of {ROOM.max_jobs} places are taken, and the request takes {len(jobs)}"
            )
        num_bytes = size_of(in_line)
        more = size_of(jobs)
        if num_bytes + more > ROOM.max_bytes:
            return f"{num_bytes} of {ROOM.max_bytes} bytes wait, and the request has {more}"
        return ""

    async def take(self) -> None:
        """Whatever a worker gets on a shard that has something."""
        if self.waiting:
            shard = keys.shard_of(self.rng.choice(list(self.waiting)))
            taken = await self.rng.choice(self.fronts).queue().take(shard, 1, is_empty=True)
            self.claims += taken.claims
            for claim in taken.claims:
                del self.waiting[claim.job.id]

    async def end(self) -> None:
        """A running job, by its worker; or some waiting ones, from outside."""
        desk = self.rng.choice(self.fronts)
        if self.claims and self.rng.random() < 0.7:
            claim = self.claims.pop(self.rng.randrange(len(self.claims)))
            assert await desk.say(claim, DONE)
        elif self.waiting:
            job = self.waiting.pop(self.rng.choice(list(self.waiting)))
            assert await desk.submissions.end([job], Cancelled()) == 1

    async def wait_out(self) -> None:
        """So long that fronts which have not confirmed must be dead."""
        await make_overdue(self.fronts[0].broker)
        self.lost.clear()

    async def run(self, steps: int) -> None:
        can_die = len(self.fronts[0].broker.shards) > 1
        for _ in range(steps):
            deed = self.rng.choices(
                ("submit", "die", "take", "end", "wait out"), (10, can_die, 5, 4, 1)
            )[0]
            match deed:
                case "submit" | "die":
                    await self.submit(dies=deed == "die")
                case "take":
                    await self.take()
                case "end":
                    await self.end()
                case "wait out":
                    await self.wait_out()
        while self.claims or self.waiting:
            await self.end()


def size_of(jobs: list[Job]) -> int:
    return sum(len(encode(job)) for job in jobs)


async def make_overdue(broker: Broker) -> None:
    """Whatever is unconfirmed has been so for long."""
    client = broker.client(keys.ADMISSION)
    for request_id in await client.zrange(keys.UNCONFIRMED, 0, -1):
        await client.zadd(keys.UNCONFIRMED, {request_id: 1}, xx=True)


async def check_nothing_is_held(broker: Broker) -> None:
    """Every counter is at zero, of the shards and of all together, once that has been settled."""
    await make_overdue(broker)
    await Janitor(broker, grace_s=0).quotas()
    for tag in (*broker.shards, keys.ADMISSION):
        client = broker.client(tag)
        prefix = keys.prefix(tag)
        kinds = {
            name.decode().removeprefix(prefix).partition(":")[0]
            async for name in client.scan_iter(f"{prefix}*")
        }
        assert not kinds & {
            "open",
            "reserved",
            "unconfirmed",
            "entrants",
            "waiting",
            "line",
            "turns",
            "leases",
        }, kinds
        assert await client.xlen(keys.unsettled(tag)) == 0
        assert set(await client.hvals(keys.depth(tag, "m"))) <= {b"0"}  # type: ignore[misc]


@COUNTS
async def test_each_decision_is_right(connections: list[Redis], shards: int) -> None:
    """Against plain counting, with its numbers in the words; fronts die, jobs are taken, ended and
    called off."""
    fleet = Fleet(desks(connections, shards), 3)
    await fleet.run(300)
    assert len(fleet.told) > 5, "each limit was met, by several numbers"
    await check_nothing_is_held(fleet.fronts[0].broker)


async def test_each_decision_is_right_on_a_cluster(cluster: RedisCluster) -> None:
    async with AsyncExitStack() as stack:
        brokers = [
            await stack.enter_async_context(open_broker(cluster.url, 8)) for _ in range(NUM_FRONTS)
        ]
        for node in await brokers[0].nodes():
            await node.flushall()
        fleet = Fleet([Desk(broker, lease_s=60) for broker in brokers], 5)
        await fleet.run(120)
        await check_nothing_is_held(brokers[0])


@COUNTS
async def test_a_depth_is_the_whole_fleets(connections: list[Redis], shards: int) -> None:
    """However it is divided, a request may take all of it, and four fronts at once get just as many
    as there are."""
    fronts = desks(connections, shards)
    whole = await fronts[0].submit(*[SAY_HI] * 8, max_jobs=8)
    with pytest.raises(QueueFull, match="8 of 8 places are taken, and the request takes 1"):
        await fronts[1].submit(max_jobs=8)
    await fronts[2].submissions.end(whole, Cancelled())

    async def fill(desk: Desk) -> int:
        let_in = 0
        for _ in range(6):
            with suppress(QueueFull):
                let_in += len(await desk.submit(max_jobs=8))
        return let_in

    assert sum(await asyncio.gather(*map(fill, fronts))) == 8
    assert await fronts[3].counts() == (8, 0)


@COUNTS
async def test_keys_of_one_tenant_may_have_different_limits(
    connections: list[Redis], shards: int
) -> None:
    """What comes with one that has none counts for one that has three; and an idempotency key is
    the tenant's."""
    fronts = desks(connections, shards)
    for desk in fronts[:2]:
        await desk.submit(tenant="acme")
    once = Key("k")
    await fronts[2].submit(tenant="acme", key=once, quota=Quota(concurrency=3))
    for desk in fronts:
        with pytest.raises(OverQuota, match="3 of the 3 requests"):
            await desk.submit(tenant="acme", quota=Quota(concurrency=3))
    await fronts[3].submit(tenant="acme", key=once)
    assert await fronts[3].counts() == (3, 0)
    await fronts[3].submit(tenant="acme")
    await fronts[3].submit(tenant="other", quota=Quota(concurrency=3))


@COUNTS
async def test_a_rate_is_the_whole_fleets(connections: list[Redis], shards: int) -> None:
    """A burst of seven, and one more in a thousand seconds, by whichever front and shard; never
    more than the burst."""
    fronts = desks(connections, shards)
    quota = Quota(rate_per_s=0.001, burst=7)
    told: Counter[str] = Counter()

    async def come(desk: Desk) -> None:
        for _ in range(5):
            try:
                await desk.submit(quota=quota)
                told["in"] += 1
            except OverQuota as error:
                told[error.message] += 1
                assert error.retry_after_s == 60, (
                    "a thousand, but no caller is sent away for longer"
                )

    await asyncio.gather(*map(come, fronts))
    assert told == {"in": 7, "More than 0.001 requests a second.": 13}
    bucket = f"{keys.prefix(counted_at(shards))}bucket:public"
    assert 6_900_000 < await connections[0].pttl(bucket) <= 7_001_000, (
        "as long as it takes to fill, and a second"
    )
    for passed_s, regained in ((3_000, 3), (100_000, 7)):
        await connections[0].hincrby(bucket, "at_ms", -1000 * passed_s)  # type: ignore[misc]
        told.clear()
        await asyncio.gather(*map(come, fronts))
        assert told["in"] == regained


@COUNTS
async def test_the_same_key_takes_one_place(connections: list[Redis], shards: int) -> None:
    """Fronts that come with it at once, and again when the queue is full; what the others took
    comes back."""
    fronts = desks(connections, shards)
    quota = Quota(concurrency=2, rate_per_s=0.001, burst=2)
    limits = {"tenant": "acme", "quota": quota, "max_jobs": 2}
    same = [desk.request(key=Key("k"), **limits) for desk in fronts[:2]]  # type: ignore[arg-type]
    assert len({request.id for request, _ in await asyncio.gather(*same)}) == 1
    assert await fronts[0].counts() == (1, 0)
    await fronts[2].submit(**limits)  # type: ignore[arg-type]
    with pytest.raises(FleetError, match="2 of the 2"):
        await fronts[3].submit(**limits)  # type: ignore[arg-type]
    again, _ = await fronts[3].request(key=Key("k"), **limits)  # type: ignore[arg-type]
    [before, _] = (await fronts[3].requests.find(again.id, "acme")).job_ids, None
    assert len(before) == 1


async def test_those_who_settle_at_once_share_one_look(
    connections: list[Redis], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And who comes while it goes on gets the next one: what left meanwhile may not have been
    seen."""
    reservations = Desk(Broker(connections[0], 4)).submissions._reservations
    num_looks = 0
    goes_on = asyncio.Event()
    may_end = asyncio.Event()

    async def look() -> None:
        nonlocal num_looks
        num_looks += 1
        goes_on.set()
        await may_end.wait()

    monkeypatch.setattr(reservations, "settle_all", look)
    first = [asyncio.create_task(reservations.settle()) for _ in range(5)]
    await goes_on.wait()
    later = [asyncio.create_task(reservations.settle()) for _ in range(5)]
    may_end.set()
    await asyncio.gather(*first, *later)
    assert num_looks == 2


@COUNTS
async def test_what_comes_again_takes_one_turn_of_its_rate(
    connections: list[Redis], shards: int
) -> None:
    """What a repetition took comes back, and no more than that."""
    fronts = desks(connections, shards)
    quota = Quota(rate_per_s=0.001, burst=5)
    for desk in fronts[:3]:
        await desk.request(key=Key("k"), quota=quota)
    bucket = f"{keys.prefix(counted_at(shards))}bucket:public"
    left = float(await connections[0].hget(bucket, "left") or 0)  # type: ignore[misc]
    assert 4 <= left < 4.5, "burst, less one"


async def test_fronts_are_killed_between_any_two_steps(connections: list[Redis]) -> None:
    """No limit is exceeded meanwhile; when all has ended and been looked after, all of the room is
    there again."""
    rng = random.Random(7)
    desk = Desk(Broker(connections[0], 16), lease_s=60)
    watching = asyncio.create_task(watch(desk))

    async def life(connection: Redis) -> None:
        front = Desk(Broker(connection, 16))
        while True:
            with suppress(FleetError):
                tenant = rng.choice(list(QUOTAS))
                limits = {"quota": QUOTAS[tenant], "max_jobs": ROOM.max_jobs}
                await front.submit(*[SAY_HI] * rng.randint(1, 3), tenant=tenant, **limits)  # type: ignore[arg-type]

    for _ in range(20):
        living = [asyncio.create_task(life(connection)) for connection in connections]
        for task in rng.sample(living, len(living)):
            for _ in range(rng.randrange(30)):
                await asyncio.sleep(0)
            task.cancel()
        await asyncio.wait(living)
        for claim in await desk.take(rng.randrange(3)):
            await desk.say(claim, DONE)
    watching.cancel()
    [seen] = await asyncio.gather(watching, return_exceptions=True)
    assert isinstance(seen, asyncio.CancelledError), seen
    for claim in await desk.take(ROOM.max_jobs):
        await desk.say(claim, DONE)
    assert await desk.counts() == (0, 0)
    assert await connections[0].zcard(keys.UNCONFIRMED) > 0, (
        "somebody died between being let in and saying so"
    )
    await make_overdue(desk.broker)
    await desk.submit(
        *[SAY_HI] * ROOM.max_jobs, tenant="other", quota=QUOTAS["other"], max_jobs=ROOM.max_jobs
    )
    for claim in await desk.take(ROOM.max_jobs):
        await desk.say(claim, DONE)
    await check_nothing_is_held(desk.broker)


async def watch(desk: Desk) -> None:
    """AssertionError at the first moment at which more waits, or is open, than may."""
    shards = desk.broker.shards
    while True:
        async with desk.broker.client(shards[0]).pipeline(transaction=True) as pipe:
            for shard in shards:
                pipe.hget(keys.depth(shard, "m"), "jobs:default")
                for tenant in QUOTAS:
                    pipe.zcard(keys.open_jobs(shard, tenant))
            answers = await pipe.execute()
        each = len(QUOTAS) + 1
        assert sum(int(number or 0) for number in answers[::each]) <= ROOM.max_jobs
        for place, quota in enumerate(QUOTAS.values(), start=1):
            assert not quota.concurrency or sum(answers[place::each]) <= quota.concurrency
        await asyncio.sleep(0)


async def test_a_request_that_was_given_up_does_not_come_any_more(redis: Redis) -> None:
    """Its front slept longer between the two steps than anybody believes in it."""
    slow = Desk(redis, shards=4)
    other = Desk(redis, shards=4)
    order = SubmitRequest("m", (SAY_HI,))
    request_id, jobs = slow.submissions.jobs_of(order)
    queueing = slow.submissions._submit

    class Sleepy:
        async def call(self, *args: str, **kwargs: object) -> object:
            await make_overdue(slow.broker)
            await other.submit(max_jobs=1)
            return await queueing.call(*args, **kwargs)

    slow.submissions._submit = Sleepy()  # type: ignore[assignment]
    with pytest.raises(BrokerUnavailable):
        await slow.submissions.submit(order, request_id, jobs, Quota(), QueueLimits(1))
    assert await other.counts() == (1, 0)
    with pytest.raises(QueueFull, match="1 of 1"):
        await other.submit(max_jobs=1)


async def test_what_a_request_took_is_settled_once(redis: Redis) -> None:
    """Two fronts read the same notes, and both tell."""
    desk = Desk(redis, shards=4)
    kept = await desk.submit(SAY_HI, SAY_HI, tenant="acme")
    gone = await desk.submit(SAY_HI, tenant="acme")
    fronts = [Desk(redis, shards=4).submissions._reservations for _ in range(2)]
    await desk.submissions.end(gone, Cancelled())
    noted = [await one.departures() for one in fronts]
    assert noted[0] == noted[1] != {}
    for one, entries in zip(fronts, noted, strict=True):
        await one.settle_departures([left for some in entries.values() for left in some.values()])
    assert await redis.hget(keys.depth(keys.ADMISSION, "m"), "jobs:default") == b"2"  # type: ignore[misc]
    assert await redis.zcard(keys.open_jobs(keys.ADMISSION, "acme")) == len(kept)


async def test_notes_do_not_heap_up(redis: Redis) -> None:
    """Whoever submits settles what has left, once a second; nobody is refused here."""
    desk = Desk(redis, shards=4)
    for _ in range(20):
        await desk.submissions.end(await desk.submit(), Cancelled())
    desk.submissions._reservations._settled_s = 0.0
    await desk.submit()

    async def noted() -> int:
        return sum([await redis.xlen(keys.unsettled(shard)) for shard in desk.broker.shards])

    async with asyncio.timeout(DEADLINE_S):
        while await noted():
            await asyncio.sleep(0.01)


async def test_the_janitor_finds_what_no_shard_has_noted(redis: Redis) -> None:
    """A shard lost its last moments, with notes and jobs."""
    desk = Desk(redis, shards=4, lease_s=60)
    lost, running, waiting = [(await desk.submit(tenant="acme"))[0] for _ in range(3)]
    for claim in await desk.take(3):
        if claim.job == running:
            continue
        await desk.queue().give_back([claim])
    await redis.delete(keys.job(lost.id), *map(keys.unsettled, desk.broker.shards))
    found = await Janitor(desk.broker, grace_s=60).quotas()
    assert "stale_reservations" not in found, "it may be on its way"
    for dry_run in (True, False):
        found = await Janitor(desk.broker, grace_s=0, dry_run=dry_run).quotas()
        assert found == {"stale_reservations": 4}, (
            "three that do not wait, and one that is not open"
        )
    assert await Janitor(desk.broker, grace_s=0).quotas() == {}
    held = await redis.zrange(keys.open_jobs(keys.ADMISSION, "acme"), 0, -1)
    assert set(held) == {running.id.encode(), waiting.id.encode()}


@pytest.mark.parametrize("shards", [4, SHARDS])
async def test_a_deadline_is_judged_by_what_all_shards_do(redis: Redis, shards: int) -> None:
    """The rate is what ended everywhere; what waits is what waits everywhere."""
    desk = Desk(redis, shards=shards, lease_s=60)
    for claim in [claim for _ in range(20) for claim in await taken_at_once(desk)]:
        await desk.say(claim, DONE)
    await desk.submit(*[SAY_HI] * 30)
    await desk.submissions._reservations.settle()
    busy = f"{keys.prefix(keys.ADMISSION)}busy:m"
    await redis.set(busy, 1)
    ended = [name async for name in redis.scan_iter(f"{keys.prefix(keys.ADMISSION)}ended:m:*")]
    assert sum([int(await redis.hget(name, "jobs") or 0) for name in ended]) == 20  # type: ignore[misc]
    with pytest.raises(TooSlow):
        await desk.submit(is_urgent=True, deadline_s=2.0)
    await desk.submit(is_urgent=True, deadline_s=60.0)


@pytest.mark.parametrize("shards", [1, 4])
async def test_a_queue_that_was_empty_meanwhile_has_not_been_busy_for_long(
    redis: Redis, shards: int
) -> None:
    """Workers that had time to spare could do more than they did: their rate refuses nobody."""
    desk = Desk(redis, shards=shards, lease_s=60)
    quiet(desk)
    await desk.submit()
    await redis.set(f"{keys.prefix(counted_at(shards))}busy:m", 1)
    for claim in await desk.take(1):
        await desk.say(claim, DONE)
    await desk.submit()
    await desk.submit(is_urgent=True, deadline_s=0.1)


@pytest.mark.parametrize("shards", [1, 4])
async def test_a_queue_is_busy_for_as_long_as_somebody_waits(redis: Redis, shards: int) -> None:
    """Whoever that is: those who leave before the next ones come end it, however late that is
    settled."""
    desk = Desk(redis, shards=shards, lease_s=60)
    quiet(desk)
    busy = f"{keys.prefix(counted_at(shards))}busy:m"
    waiting = await desk.submit()
    since = await redis.get(busy)
    for _ in range(3):
        waiting += await desk.submit()
        await asyncio.sleep(0.003)
        await desk.submissions.end([waiting.pop(0)], Cancelled())
        await desk.submissions._reservations.settle()
        assert await redis.get(busy) == since
    for _ in range(3):
        waiting += await desk.submit()
        await asyncio.sleep(0.003)
        await desk.submissions.end([waiting.pop(0)], Cancelled())
    await desk.submissions._reservations.settle()
    assert await redis.get(busy) == since, (
        "what left before the last of them came, and what came before it left"
    )
    await desk.submissions.end([waiting.pop()], Cancelled())
    await asyncio.sleep(0.003)
    before_ms = await now_ms(desk)
    waiting += await desk.submit()
    await desk.submissions._reservations.settle()
    assert before_ms <= int(await redis.get(busy) or 0) <= await now_ms(desk)


def counted_at(shards: int) -> str:
    """The hash tag of what counts for all of them."""
    return keys.ADMISSION if shards > 1 else "00"


def quiet(desk: Desk) -> None:
    """It settles nothing by itself."""
    desk.submissions._reservations._settled_s = math.inf


async def taken_at_once(desk: Desk) -> list[Claim]:
    await desk.submit()
    return await desk.take(1)
