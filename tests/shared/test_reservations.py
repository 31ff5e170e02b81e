"""Limits hold for the whole fleet, on any number of shards.

Never is one job too many let in, and nothing is refused while there is room. When all jobs have
ended nothing is held, whatever was killed on the way.
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
from tests.fixtures.redis_server import patient

pytestmark = pytest.mark.usefixtures("waits_long")

NUM_FRONTS = 4
SHARDS = 64
ROOM = QueueLimits(max_jobs=8, max_bytes=2_600)
QUOTAS = {"one": Quota(concurrency=5), "other": Quota(concurrency=9), "free": Quota()}
CLASSES: tuple[Priority, ...] = ("interactive", "default", "bulk")
COUNTS = pytest.mark.parametrize("shards", [1, 4, SHARDS])


class Killed(Exception):
    """The end of a front."""


class Deadly:
    """Stand-in for a script. Its caller dies before the script runs."""

    async def call(self, *_: object, **__: object) -> None:
        raise Killed


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    with redis_cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture
async def connections(redis_url: str) -> AsyncIterator[list[Redis]]:
    clients = [patient(connect(redis_url)) for _ in range(NUM_FRONTS)]
    yield clients
    for client in clients:
        await client.aclose()


def desks(connections: list[Redis], shards: int) -> list[Desk]:
    """Return one desk per connection, as separate front processes would have."""
    return [Desk(Broker(client, shards), lease_s=60) for client in connections]


class Fleet:
    """Model of the queue by plain counting, beside the same queue in Redis with several fronts."""

    def __init__(self, fronts: list[Desk], seed: int) -> None:
        self.fronts = fronts
        self.rng = random.Random(seed)
        self.waiting: dict[str, Job] = {}
        self.claims: list[Claim] = []
        self.lost: list[Job] = []  # let in, and never queued, since their fronts died
        self.refusals: Counter[str] = Counter()

    async def submit(self, *, dies: bool) -> None:
        """Submit a random request, and check the answer against the count.

        A front that `dies` does so when the request is let in and not yet queued.
        """
        desk = self.rng.choice(self.fronts)
        task = Generate("x" * self.rng.choice((1, 30, 400)), Sampling(4, seed=0))
        tenant = self.rng.choice(list(QUOTAS))
        priority = self.rng.choice(CLASSES)
        num_tasks = self.rng.randint(1, 3)
        request = SubmitRequest("m", (task,) * num_tasks, tenant, priority)

        submissions = desk.submissions
        if dies:
            submissions = Desk(desk.broker).submissions
            submissions.submit_script = Deadly()  # type: ignore[assignment]

        request_id, jobs = submissions.jobs_of(request)

        expected = self.obstacle(jobs)
        message = ""

        try:
            await submissions.submit(request, request_id, jobs, QUOTAS[tenant], ROOM)
            for job in jobs:
                self.waiting[job.id] = job
        except Killed:
            self.lost += jobs
        except (OverQuota, QueueFull) as error:
            message = error.message
            # The message begins with the count, so each count is a refusal of its own.
            self.refusals[expected[:8]] += 1

        assert bool(message) == bool(expected), (message, expected)
        assert expected in message

    def obstacle(self, jobs: list[Job]) -> str:
        """Return the expected reason to refuse these jobs, or "" if they fit."""
        tenant = jobs[0].tenant
        priority = jobs[0].priority
        # Places of jobs whose front died stay taken until the reservation is overdue.
        in_line = [*self.waiting.values(), *self.lost]

        num_open = 0
        for job in in_line:
            if job.tenant == tenant:
                num_open += 1

        for claim in self.claims:
            if claim.job.tenant == tenant:
                num_open += 1

        limit = QUOTAS[tenant].concurrency
        if limit and num_open + len(jobs) > limit:
            return (
                f"{num_open} of the {limit} jobs that may be open are open, and the request opens "
                f"{len(jobs)} more"
            )

        in_class = 0
        for job in in_line:
            if job.priority == priority:
                in_class += 1

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
        """Take a job from a shard where one waits."""
        if not self.waiting:
            return

        shard = keys.shard_of(self.rng.choice(list(self.waiting)))
        queue = self.rng.choice(self.fronts).queue()
        taken = await queue.take(shard, 1, is_empty=True)
        self.claims += taken.claims
        for claim in taken.claims:
            del self.waiting[claim.job.id]

    async def end(self) -> None:
        """End a running job by its worker, or a waiting one from outside."""
        desk = self.rng.choice(self.fronts)
        if self.claims and self.rng.random() < 0.7:
            claim = self.claims.pop(self.rng.randrange(len(self.claims)))
            assert await desk.say(claim, DONE)
        elif self.waiting:
            job = self.waiting.pop(self.rng.choice(list(self.waiting)))
            assert await desk.submissions.end([job], Cancelled()) == 1

    async def wait_out(self) -> None:
        """Let so much time pass that fronts which have not confirmed must be dead."""
        await make_overdue(self.fronts[0].broker)
        self.lost.clear()

    async def run(self, steps: int) -> None:
        """Take random actions, then end every job that is left."""
        # With one shard a request is let in and queued by the same script: no front dies between.
        can_die = len(self.fronts[0].broker.shards) > 1
        actions = ("submit", "die", "take", "end", "wait out")
        weights = (10, can_die, 5, 4, 1)

        for _ in range(steps):
            [action] = self.rng.choices(actions, weights)
            match action:
                case "submit":
                    await self.submit(dies=False)
                case "die":
                    await self.submit(dies=True)
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
    """Date all unconfirmed reservations far back."""
    client = broker.client(keys.ADMISSION)
    for request_id in await client.zrange(keys.UNCONFIRMED, 0, -1):
        await client.zadd(keys.UNCONFIRMED, {request_id: 1}, xx=True)


async def check_nothing_is_held(broker: Broker) -> None:
    """Check that every counter is at zero once the janitor has settled all shards."""
    await make_overdue(broker)
    await Janitor(broker, grace_s=0).quotas()

    for tag in (*broker.shards, keys.ADMISSION):
        client = broker.client(tag)
        prefix = keys.prefix(tag)
        kinds = set()
        async for name in client.scan_iter(f"{prefix}*"):
            kind, _, _ = name.decode().removeprefix(prefix).partition(":")
            kinds.add(kind)

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
    """Each decision, and the numbers in its message, agree with plain counting.

    Meanwhile fronts die, and jobs are taken, ended and cancelled.
    """
    fleet = Fleet(desks(connections, shards), seed=3)
    await fleet.run(300)
    assert len(fleet.refusals) > 5, "each limit was met, by several numbers"
    await check_nothing_is_held(fleet.fronts[0].broker)


async def test_each_decision_is_right_on_a_cluster(cluster: RedisCluster) -> None:
    async with AsyncExitStack() as stack:
        brokers = []
        for _ in range(NUM_FRONTS):
            broker = await stack.enter_async_context(open_broker(cluster.url, 8))
            brokers.append(broker)

        for node in await brokers[0].nodes():
            await node.flushall()

        fronts = [Desk(broker, lease_s=60) for broker in brokers]
        fleet = Fleet(fronts, seed=5)
        await fleet.run(120)
        await check_nothing_is_held(brokers[0])


@COUNTS
async def test_a_depth_is_the_whole_fleets(connections: list[Redis], shards: int) -> None:
    """A request may take all places, however they are divided among the shards.

    Four fronts that submit at once get exactly as many as there are.
    """
    fronts = desks(connections, shards)
    whole = await fronts[0].submit(*[SAY_HI] * 8, max_jobs=8)
    with pytest.raises(QueueFull, match="8 of 8 places are taken, and the request takes 1"):
        await fronts[1].submit(max_jobs=8)

    await fronts[2].submissions.end(whole, Cancelled())

    async def fill(desk: Desk) -> int:
        num_jobs = 0
        for _ in range(6):
            with suppress(QueueFull):
                num_jobs += len(await desk.submit(max_jobs=8))
        return num_jobs

    let_in = await asyncio.gather(*[fill(desk) for desk in fronts])
    assert sum(let_in) == 8
    assert await fronts[3].counts() == (8, 0)


@COUNTS
async def test_keys_of_one_tenant_may_have_different_limits(
    connections: list[Redis], shards: int
) -> None:
    """Jobs of a key without a limit count against a key that has one.

    An idempotency key belongs to the tenant.
    """
    fronts = desks(connections, shards)
    for desk in fronts[:2]:
        await desk.submit(tenant="acme")

    once = Key("k")
    await fronts[2].submit(tenant="acme", key=once, quota=Quota(concurrency=3))
    for desk in fronts:
        with pytest.raises(OverQuota, match="3 of the 3 jobs"):
            await desk.submit(tenant="acme", quota=Quota(concurrency=3))

    await fronts[3].submit(tenant="acme", key=once)
    assert await fronts[3].counts() == (3, 0)

    await fronts[3].submit(tenant="acme")
    await fronts[3].submit(tenant="other", quota=Quota(concurrency=3))


@COUNTS
async def test_a_rate_is_the_whole_fleets(connections: list[Redis], shards: int) -> None:
    """A tenant gets its burst of seven and one more per thousand seconds, over all fronts.

    It never regains more than the burst.
    """
    fronts = desks(connections, shards)
    quota = Quota(rate_per_s=0.001, burst=7)
    answers: Counter[str] = Counter()

    async def submit_five(desk: Desk) -> None:
        for _ in range(5):
            try:
                await desk.submit(quota=quota)
                answers["in"] += 1
            except OverQuota as error:
                answers[error.message] += 1
                assert error.retry_after_s == 60, (
                    "a thousand, but no caller is sent away for longer"
                )

    async def submit_from_all_fronts() -> None:
        async with asyncio.TaskGroup() as group:
            for desk in fronts:
                group.create_task(submit_five(desk))

    await submit_from_all_fronts()
    assert answers == {"in": 7, "More than 0.001 requests a second.": 13}

    bucket = f"{keys.prefix(counted_at(shards))}bucket:public"
    assert 6_900_000 < await connections[0].pttl(bucket) <= 7_001_000, (
        "as long as it takes to fill, and a second"
    )

    for passed_s, regained in ((3_000, 3), (100_000, 7)):
        await connections[0].hincrby(bucket, "at_ms", -1000 * passed_s)  # type: ignore[misc]
        answers.clear()
        await submit_from_all_fronts()
        assert answers["in"] == regained


@COUNTS
async def test_the_same_key_takes_one_place(connections: list[Redis], shards: int) -> None:
    """Two fronts that submit the same idempotency key at once queue one job.

    The loser gives back its place. When the queue is full the key is still answered.
    """
    fronts = desks(connections, shards)
    quota = Quota(concurrency=2, rate_per_s=0.001, burst=2)
    limits = {"tenant": "acme", "quota": quota, "max_jobs": 2}

    (first, _), (second, _) = await asyncio.gather(
        fronts[0].request(key=Key("k"), **limits),  # type: ignore[arg-type]
        fronts[1].request(key=Key("k"), **limits),  # type: ignore[arg-type]
    )
    assert first.id == second.id
    assert await fronts[0].counts() == (1, 0)

    await fronts[2].submit(**limits)  # type: ignore[arg-type]
    with pytest.raises(FleetError, match="2 of the 2"):
        await fronts[3].submit(**limits)  # type: ignore[arg-type]

    again, _ = await fronts[3].request(key=Key("k"), **limits)  # type: ignore[arg-type]
    request = await fronts[3].requests.find(again.id, "acme")
    assert len(request.job_ids) == 1


async def test_those_who_settle_at_once_share_one_look(
    connections: list[Redis], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Callers that settle at once share one pass over the shards.

    Callers that come during a pass share the next one, since this one may miss what left meanwhile.
    """
    settler = reservations.Reservations(Broker(connections[0], 4))
    num_passes = 0
    has_begun = asyncio.Event()
    may_end = asyncio.Event()

    async def settle_all() -> None:
        nonlocal num_passes
        num_passes += 1
        has_begun.set()
        await may_end.wait()

    monkeypatch.setattr(settler, "settle_all", settle_all)
    first = [asyncio.create_task(settler.settle()) for _ in range(5)]
    await has_begun.wait()
    later = [asyncio.create_task(settler.settle()) for _ in range(5)]
    may_end.set()
    await asyncio.gather(*first, *later)
    assert num_passes == 2


@COUNTS
async def test_what_comes_again_takes_one_turn_of_its_rate(
    connections: list[Redis], shards: int
) -> None:
    """A repeated request gives back exactly what it took from the rate."""
    fronts = desks(connections, shards)
    quota = Quota(rate_per_s=0.001, burst=5)
    for desk in fronts[:3]:
        await desk.request(key=Key("k"), quota=quota)

    bucket = f"{keys.prefix(counted_at(shards))}bucket:public"
    left = float(await connections[0].hget(bucket, "left") or 0)  # type: ignore[misc]
    assert 4 <= left < 4.5, "burst, less one"


async def test_fronts_are_killed_between_any_two_steps(connections: list[Redis]) -> None:
    """No limit is exceeded while fronts die at any step.

    When all has ended and been looked after, all of the room is free again.
    """
    rng = random.Random(7)
    desk = Desk(Broker(connections[0], 16), lease_s=60)
    watching = asyncio.create_task(watch(desk))

    async def submit_for_ever(connection: Redis) -> None:
        front = Desk(Broker(connection, 16))

        while True:
            with suppress(FleetError):
                tenant = rng.choice(list(QUOTAS))
                tasks = [SAY_HI] * rng.randint(1, 3)
                await front.submit(
                    *tasks, tenant=tenant, quota=QUOTAS[tenant], max_jobs=ROOM.max_jobs
                )

    for _ in range(20):
        living = [asyncio.create_task(submit_for_ever(connection)) for connection in connections]
        for task in rng.sample(living, len(living)):
            # Each turn of the loop may be one step of a front further.
            for _ in range(rng.randrange(30)):
                await asyncio.sleep(0)
            task.cancel()

        await asyncio.wait(living)
        for claim in await desk.take(rng.randrange(3)):
            await desk.say(claim, DONE)

    watching.cancel()
    [outcome] = await asyncio.gather(watching, return_exceptions=True)
    assert isinstance(outcome, asyncio.CancelledError), outcome

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
    """Raise AssertionError as soon as more jobs wait, or are open, than may."""
    shards = desk.broker.shards
    client = desk.broker.client(shards[0])

    while True:
        # One transaction: the numbers of all shards are of the same moment.
        async with client.pipeline(transaction=True) as pipe:
            for shard in shards:
                pipe.hget(keys.depth(shard, "m"), "jobs:default")
                for tenant in QUOTAS:
                    pipe.zcard(keys.open_jobs(shard, tenant))
            answers = iter(await pipe.execute())

        num_waiting = 0
        num_open: Counter[str] = Counter()

        for _ in shards:
            num_waiting += int(next(answers) or 0)
            for tenant in QUOTAS:
                num_open[tenant] += next(answers)

        assert num_waiting <= ROOM.max_jobs
        for tenant, quota in QUOTAS.items():
            if quota.concurrency:
                assert num_open[tenant] <= quota.concurrency

        await asyncio.sleep(0)


async def test_a_request_that_was_given_up_does_not_come_any_more(redis: Redis) -> None:
    """A front that sleeps too long between the two steps queues nothing any more."""
    slow = Desk(redis, shards=4)
    other = Desk(redis, shards=4)
    request = SubmitRequest("m", (SAY_HI,))
    request_id, jobs = slow.submissions.jobs_of(request)
    submit_script = slow.submissions.submit_script

    class SleepyScript:
        async def call(self, *args: str, **kwargs: object) -> object:
            await make_overdue(slow.broker)
            await other.submit(max_jobs=1)
            return await submit_script.call(*args, **kwargs)

    slow.submissions.submit_script = SleepyScript()  # type: ignore[assignment]
    with pytest.raises(BrokerUnavailable):
        await slow.submissions.submit(request, request_id, jobs, Quota(), QueueLimits(1))
    assert await other.counts() == (1, 0)
    with pytest.raises(QueueFull, match="1 of 1"):
        await other.submit(max_jobs=1)


async def test_what_a_request_took_is_settled_once(redis: Redis) -> None:
    """Two fronts that read the same departures settle them once."""
    desk = Desk(redis, shards=4)
    never_settle(desk)
    kept = await desk.submit(SAY_HI, SAY_HI, tenant="acme")
    gone = await desk.submit(SAY_HI, tenant="acme")
    first = reservations.Reservations(desk.broker)
    second = reservations.Reservations(desk.broker)
    await desk.submissions.end(gone, Cancelled())

    # Both read before either settles.
    by_shard = await first.departures()
    assert by_shard != {}
    assert await second.departures() == by_shard

    departures = []
    for entries in by_shard.values():
        departures += list(entries.values())

    await first.settle_departures(departures)
    await second.settle_departures(departures)
    depth = keys.depth(keys.ADMISSION, "m")
    num_jobs = await redis.hget(depth, "jobs:default")  # type: ignore[misc]
    assert num_jobs == b"2"
    assert await redis.zcard(keys.open_jobs(keys.ADMISSION, "acme")) == len(kept)


async def test_notes_do_not_heap_up(redis: Redis) -> None:
    """A submission settles the departures once a second, although no request is refused."""
    desk = Desk(redis, shards=4)
    for _ in range(20):
        await desk.submissions.end(await desk.submit(), Cancelled())

    # Long ago, so that the next submission settles.
    desk.submissions.reservations.settled_s = 0.0
    await desk.submit()

    async def count_departures() -> int:
        count = 0
        for shard in desk.broker.shards:
            count += await redis.xlen(keys.unsettled(shard))
        return count

    async with asyncio.timeout(DEADLINE_S):
        while await count_departures():
            await asyncio.sleep(0.01)


async def test_the_janitor_finds_what_no_shard_has_noted(redis: Redis) -> None:
    """The janitor settles reservations of a shard that lost its last jobs and departures."""
    desk = Desk(redis, shards=4, lease_s=60)
    never_settle(desk)
    [lost] = await desk.submit(tenant="acme")
    [running] = await desk.submit(tenant="acme")
    [waiting] = await desk.submit(tenant="acme")
    for claim in await desk.take(3):
        if claim.job != running:
            await desk.queue().give_back([claim])

    await redis.delete(keys.job(lost.id))
    for shard in desk.broker.shards:
        await redis.delete(keys.unsettled(shard))

    repairs = await Janitor(desk.broker, grace_s=60).quotas()
    assert "stale_reservations" not in repairs, "it may be on its way"

    for dry_run in (True, False):
        repairs = await Janitor(desk.broker, grace_s=0, dry_run=dry_run).quotas()
        assert repairs == {"stale_reservations": 4}, (
            "three that do not wait, and one that is not open"
        )

    assert await Janitor(desk.broker, grace_s=0).quotas() == {}

    held = await redis.zrange(keys.open_jobs(keys.ADMISSION, "acme"), 0, -1)
    assert set(held) == {running.id.encode(), waiting.id.encode()}


@pytest.mark.parametrize("shards", [4, SHARDS])
async def test_a_deadline_is_judged_by_what_all_shards_do(redis: Redis, shards: int) -> None:
    """A deadline is judged by the rate of all shards and by the jobs that wait in all of them."""
    desk = Desk(redis, shards=shards, lease_s=60)
    claims = []
    for _ in range(20):
        await desk.submit()
        claims += await desk.take(1)

    for claim in claims:
        await desk.say(claim, DONE)

    await desk.submit(*[SAY_HI] * 30)
    await reservations.Reservations(desk.broker).settle()
    # The queue has been busy since long ago, so its rate is believed.
    busy = f"{keys.prefix(keys.ADMISSION)}busy:m"
    await redis.set(busy, 1)

    num_ended = 0
    async for name in redis.scan_iter(f"{keys.prefix(keys.ADMISSION)}ended:m:*"):
        num_ended += int(await redis.hget(name, "jobs") or 0)  # type: ignore[misc]

    assert num_ended == 20

    with pytest.raises(TooSlow):
        await desk.submit(is_urgent=True, deadline_s=2.0)

    await desk.submit(is_urgent=True, deadline_s=60.0)


@pytest.mark.parametrize("shards", [1, 4])
async def test_a_queue_that_was_empty_meanwhile_has_not_been_busy_for_long(
    redis: Redis, shards: int
) -> None:
    """The rate of workers that had time to spare refuses nobody: they could do more."""
    desk = Desk(redis, shards=shards, lease_s=60)
    never_settle(desk)
    await desk.submit()
    await redis.set(f"{keys.prefix(counted_at(shards))}busy:m", 1)
    for claim in await desk.take(1):
        await desk.say(claim, DONE)

    await desk.submit()
    await desk.submit(is_urgent=True, deadline_s=0.1)


@pytest.mark.parametrize("shards", [1, 4])
async def test_a_queue_is_busy_for_as_long_as_somebody_waits(redis: Redis, shards: int) -> None:
    """A queue is busy without a break while at least one job waits.

    If the last job leaves before the next comes, the busy time ends, however late that is settled.
    """
    desk = Desk(redis, shards=shards, lease_s=60)
    never_settle(desk)
    busy = f"{keys.prefix(counted_at(shards))}busy:m"
    waiting = await desk.submit()
    since = await redis.get(busy)

    for _ in range(3):
        waiting += await desk.submit()
        await asyncio.sleep(0.003)
        await desk.submissions.end([waiting.pop(0)], Cancelled())
        await reservations.Reservations(desk.broker).settle()
        assert await redis.get(busy) == since

    for _ in range(3):
        waiting += await desk.submit()
        await asyncio.sleep(0.003)
        await desk.submissions.end([waiting.pop(0)], Cancelled())

    await reservations.Reservations(desk.broker).settle()
    assert await redis.get(busy) == since, (
        "what left before the last of them came, and what came before it left"
    )

    await desk.submissions.end([waiting.pop()], Cancelled())
    await asyncio.sleep(0.003)
    before_ms = await now_ms(desk)
    waiting += await desk.submit()
    await reservations.Reservations(desk.broker).settle()
    assert before_ms <= int(await redis.get(busy) or 0) <= await now_ms(desk)


def counted_at(shards: int) -> str:
    """Return the hash tag of the fleet's counters."""
    if shards > 1:
        return keys.ADMISSION
    return "00"


def never_settle(desk: Desk) -> None:
    """Keep the desk from settling departures by itself."""
    desk.submissions.reservations.settled_s = math.inf
