"""Budgets of keys on a real Redis: never exceeded, used up to the last request that fits.

At the end of each job what it used is counted, and the rest of what was reserved is free again.
"""

import asyncio
import random
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from redis.asyncio import Redis

from shared.access import Budget
from shared.errors import BudgetExceeded, InvalidRequest
from shared.messages import Cancelled, Done, Failed, Generate, Job, Sampling, Started, Tokens
from shared.queue import keys
from shared.queue.broker import Broker, open_broker
from shared.queue.janitor import Janitor
from shared.queue.leases import Claim
from shared.queue.submission import Key, QueueLimits, Quota, SubmitRequest
from shared.queue.usage_ledger import UsageLedger, total
from tests.fixtures.desk import DONE, Desk
from tests.fixtures.queue_clients import now_ms
from tests.fixtures.redis_cluster import redis_cluster

pytestmark = pytest.mark.usefixtures("waits_long")

SHARDS = pytest.mark.parametrize("shards", [1, 4])
MARKS = 8
ROOM = QueueLimits(10_000)


def ask(prompt: str, max_tokens: int, n: int = 1) -> Generate:
    return Generate(prompt, Sampling(max_tokens, seed=0, n=n))


async def standing(desk: Desk, key: str, budget: Budget) -> tuple[int, int]:
    """Return the tokens used and reserved in the present period."""
    await desk.submissions.reservations.settle_all()
    start_ms = budget.starts_ms(datetime.now(UTC))[1]
    name = keys.budget(desk.broker.admission, key, start_ms)
    used, reserved = await desk.broker.client(desk.broker.admission).hmget(
        name, ["used", "reserved"]
    )  # type: ignore[misc]
    return int(used or 0), int(reserved or 0)


class Kept:
    """The budgets of some keys by plain counting, beside those in Redis."""

    def __init__(self, desks: Sequence[Desk], budgets: dict[str, Budget], seed: int) -> None:
        self.desks = desks
        self.budgets = budgets
        self.rng = random.Random(seed)
        self.used = dict.fromkeys(budgets, 0)
        self.reserved: dict[str, tuple[str, int]] = {}  # by job: its key, and its tokens
        self.waiting: dict[str, Job] = {}
        self.running: dict[str, tuple[Claim, int]] = {}  # by job: its claim, and tokens in its log
        self.num_refused = 0
        self.num_dead = 0

    def taken(self, key: str) -> int:
        open_tokens = sum(tokens for owner, tokens in self.reserved.values() if owner == key)
        return self.used[key] + open_tokens

    async def submit(self, *, dies: bool = False) -> None:
        """Submit a random request. A front that dies has let it in and not queued it."""
        desk = self.rng.choice(self.desks)
        key = self.rng.choice(list(self.budgets))
        tasks = []
        mosts = []
        for _ in range(self.rng.randint(1, 3)):
            length, max_tokens, n = self.rng.randint(1, 9), self.rng.randint(1, 20), 1
            if self.rng.random() < 0.3:
                n = 3
            tasks.append(ask("x" * length, max_tokens, n))
            mosts.append(length + MARKS + n * max_tokens)
        request = SubmitRequest("m", tuple(tasks), api_key=key, budget=self.budgets[key])
        submissions = desk.submissions
        request_id, jobs = submissions.jobs_of(request)
        fits = self.taken(key) + sum(mosts) <= self.budgets[key].tokens

        if dies:
            submissions = Desk(desk.broker).submissions

            class Deadly:
                async def call(self, *_: object, **__: object) -> None:
                    raise KeyError("dead")

            submissions.submit_script = Deadly()  # type: ignore[assignment]
        try:
            await submissions.submit(request, request_id, jobs, Quota(), ROOM)
        except BudgetExceeded as error:
            assert not fits
            assert error.retry_after_s is not None
            assert 0 < error.retry_after_s <= 31 * 86_400
            self.num_refused += 1
            return
        except KeyError:
            self.num_dead += 1
        else:
            for job in jobs:
                self.waiting[job.id] = job
        assert fits
        for job, most in zip(jobs, mosts, strict=True):
            self.reserved[job.id] = (key, most)

    async def take(self) -> None:
        for claim in await self.rng.choice(self.desks).take(4):
            del self.waiting[claim.job.id]
            await self.desks[0].say(claim, Started(1, "w1", len(claim.job.task.prompt)))  # type: ignore[attr-defined]
            self.running[claim.job.id] = (claim, 0)

    async def go_on(self) -> None:
        """Log some tokens of a running job."""
        if not self.running:
            return
        job_id = self.rng.choice(list(self.running))
        claim, logged = self.running[job_id]
        sampling = claim.job.task.sampling  # type: ignore[attr-defined]
        if logged or sampling.max_tokens < 2:
            return
        count = self.rng.randint(1, sampling.max_tokens)
        await self.desks[0].say(claim, Tokens(tuple(range(count)), "x"), after=1)
        self.running[job_id] = (claim, count)

    def settle(self, job_id: str, tokens: int) -> None:
        key, most = self.reserved.pop(job_id)
        assert tokens <= most
        self.used[key] += tokens

    async def end(self) -> None:
        """End a job that waits or runs, in one of the ways to end."""
        everything = [*self.waiting, *self.running]
        if not everything:
            return
        job_id = self.rng.choice(everything)
        desk = self.rng.choice(self.desks)
        way = self.rng.choice(("done", "done", "cancelled", "failed"))
        if job_id in self.waiting:
            del self.waiting[job_id]
            await desk.submissions.end([job_id], Cancelled("client"))
            self.settle(job_id, 0)
            return
        claim, logged = self.running.pop(job_id)
        prompt = len(claim.job.task.prompt)  # type: ignore[attr-defined]
        sampling = claim.job.task.sampling  # type: ignore[attr-defined]
        after = 2 if logged else 1
        if way == "cancelled":
            await desk.submissions.end([job_id], Cancelled("client"))
            self.settle(job_id, prompt + logged)
        elif way == "failed":
            await desk.say(claim, Failed("worker_failed", "no"), after=after)
            self.settle(job_id, prompt + logged)
        else:
            tokens = self.rng.randint(logged, sampling.n * sampling.max_tokens)
            await desk.say(claim, Done("stop", prompt, tokens), after=after)
            self.settle(job_id, prompt + tokens)

    async def check(self) -> None:
        for key, budget in self.budgets.items():
            used, reserved = await standing(self.desks[0], key, budget)
            assert used == self.used[key]
            assert used + reserved == self.taken(key) <= budget.tokens

    async def end_all(self) -> None:
        while self.waiting:
            await self.take()
        while self.running:
            await self.end()


@pytest.mark.parametrize("seed", range(3))
@SHARDS
async def test_each_decision_is_right(redis: Redis, shards: int, seed: int) -> None:
    await check_decisions([Desk(redis, shards=shards) for _ in range(4)], seed)


async def test_each_decision_is_right_on_a_cluster(tmp_path: Path) -> None:
    with redis_cluster(tmp_path) as cluster:
        async with AsyncExitStack() as stack:
            desks = []
            for _ in range(4):
                broker = await stack.enter_async_context(open_broker(cluster.url, 8))
                desks.append(Desk(broker))
            await check_decisions(desks, seed=5)


async def check_decisions(desks: list[Desk], seed: int) -> None:
    """Check that each decision agrees with plain counting, as jobs end in all ways."""
    budgets = {"0a": Budget(250, "day"), "0b": Budget(500, "month"), "0c": Budget(900, "month")}
    kept = Kept(desks, budgets, seed)
    for number in range(200):
        step = kept.rng.choice((kept.submit, kept.submit, kept.take, kept.go_on, kept.end))
        await step()
        if number % 20 == 0:
            await kept.check()
    await kept.end_all()
    await kept.check()
    assert kept.num_refused > 5
    desk = kept.desks[0]
    assert (
        await desk.broker.client(desk.broker.admission).hlen(keys.budgeted(desk.broker.admission))
        == 0
    )  # type: ignore[misc]

    # The ledger knows the same sums by another way.
    ledger = UsageLedger(desk.broker)
    today = await ledger.today()
    for key in budgets:
        usage = total(await ledger.read(today - timedelta(days=1), today, key=key))
        assert usage.prompt_tokens + usage.completion_tokens == kept.used[key]


async def test_what_fronts_that_died_have_reserved_comes_back(redis: Redis) -> None:
    budgets = {"0a": Budget(300, "day")}
    kept = Kept([Desk(redis, shards=4) for _ in range(4)], budgets, seed=1)
    with suppress(BudgetExceeded):
        while kept.num_dead < 5:
            await kept.submit(dies=True)
            if kept.num_refused:
                break
    await kept.check()
    assert kept.taken("0a") > 0

    # Their requests are overdue.
    unconfirmed = await redis.zrange(keys.UNCONFIRMED, 0, -1)
    for request_id in unconfirmed:
        await redis.zadd(keys.UNCONFIRMED, {request_id: 1})
    await kept.desks[0].submissions.reservations.settle_all()
    assert await standing(kept.desks[0], "0a", budgets["0a"]) == (0, 0)
    assert await redis.hlen(keys.budgeted(keys.ADMISSION)) == 0  # type: ignore[misc]


@SHARDS
async def test_four_fronts_at_once_use_it_up_and_no_more(redis: Redis, shards: int) -> None:
    """Those of a hundred requests at once get in that fit, whatever the order."""
    desks = [Desk(redis, shards=shards) for _ in range(4)]
    most = 3 + MARKS + 9
    budget = Budget(37 * most + most - 1, "month")

    async def submit(desk: Desk) -> bool:
        try:
            await desk.submit(ask("abc", 9), api_key="0a", budget=budget, tenant="ann")
        except BudgetExceeded:
            return False
        return True

    answers = await asyncio.gather(*[submit(desks[number % 4]) for number in range(100)])
    assert sum(answers) == 37
    assert await standing(desks[0], "0a", budget) == (0, 37 * most)

    # Jobs that use less than was reserved make room for others: up to the last that fits.
    used = 0
    while claims := await desks[1].take(100):
        for claim in claims:
            await desks[2].say(claim, Done("stop", 3, 4))
            used += 7
        again = await asyncio.gather(*[submit(desks[number % 4]) for number in range(60)])
        if not any(again):
            break
    assert used <= budget.tokens < used + most
    assert await standing(desks[0], "0a", budget) == (used, 0)


@SHARDS
async def test_a_request_that_comes_again_reserves_nothing_more(redis: Redis, shards: int) -> None:
    desk = Desk(redis, shards=shards)
    budget = Budget(20, "day")
    order = {"api_key": "0a", "budget": budget, "key": Key("order")}
    request, _ = await desk.request(ask("abc", 9), **order)
    again, _ = await desk.request(ask("abc", 9), **order)
    assert again.id == request.id
    assert await standing(desk, "0a", budget) == (0, 20)
    with pytest.raises(BudgetExceeded, match="20 of the 20 tokens") as caught:
        await desk.submit(ask("a", 1), api_key="0a", budget=budget)
    assert caught.value.status == 429
    assert caught.value.code == "budget_exceeded"


async def test_a_request_larger_than_the_budget_is_told_so(redis: Redis) -> None:
    """Waiting would not help it."""
    desk = Desk(redis)
    with pytest.raises(
        InvalidRequest, match="may use 1008 tokens, and the budget of the key is 99"
    ):
        await desk.submit(ask("", 1000), api_key="0a", budget=Budget(99, "day"))


@SHARDS
async def test_the_next_period_begins_afresh(
    redis: Redis, shards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(redis, shards=shards)
    budget = Budget(20, "day")
    today = datetime.now(UTC)
    await desk.submit(ask("abc", 9), api_key="0a", budget=budget)
    [claim] = await desk.take()

    # Redis's clock stays, and the day that it finds is the one after.
    starts_ms = budget.starts_ms(today)
    later = [starts_ms[0], starts_ms[0] + 1, starts_ms[0] + 2, *starts_ms[2:]]
    monkeypatch.setattr(Budget, "starts_ms", lambda self, now: later)
    await desk.submit(ask("abc", 9), api_key="0a", budget=budget)
    monkeypatch.undo()

    # A job counts in the period in which it came.
    await desk.say(claim, DONE)
    assert await standing(desk, "0a", budget) == (2, 0)


@pytest.mark.parametrize("present", [0, 1, 2])
@SHARDS
async def test_the_period_is_that_of_redis_whatever_a_front_thinks(
    redis: Redis, shards: int, present: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of a front is a period ahead, right, or a period behind."""
    desk = Desk(redis, shards=shards)
    hour_ms = 3_600_000
    start_ms = await now_ms(desk) - hour_ms // 2
    starts_ms = [start_ms + hour_ms * (number - present) for number in range(4)]
    monkeypatch.setattr(Budget, "starts_ms", lambda self, now: starts_ms)
    budget = Budget(20, "day")
    await desk.submit(ask("abc", 9), api_key="0a", budget=budget)
    client = desk.broker.client(desk.broker.admission)
    name = keys.budget(desk.broker.admission, "0a", start_ms)
    assert await client.hget(name, "reserved") == b"20"  # type: ignore[misc]
    # It stays a week longer than its period.
    left_ms = await client.pttl(name)
    assert 0 < left_ms - 7 * 24 * hour_ms <= hour_ms // 2
    with pytest.raises(BudgetExceeded) as caught:
        await desk.submit(ask("a", 1), api_key="0a", budget=budget)
    assert caught.value.retry_after_s is not None
    assert 1_700 < caught.value.retry_after_s <= 1_800


@SHARDS
async def test_the_janitor_settles_what_was_lost(redis: Redis, shards: int) -> None:
    """All that is reserved for a job that is gone counts as used, and once."""
    desk = Desk(redis, shards=shards)
    budget = Budget(100, "month")
    [gone] = await desk.submit(ask("abc", 9), api_key="0a", budget=budget)
    [held] = await desk.submit(ask("abc", 9), api_key="0a", budget=budget)
    await redis.delete(keys.job(gone.id))
    if shards > 1:
        await redis.zrem(keys.open_jobs(keys.ADMISSION, "public"), gone.id)
    assert await standing(desk, "0a", budget) == (0, 40)

    dry = await Janitor(desk.broker, grace_s=0, dry_run=True).budgets()
    assert dry == {"leaked_budgets": 1}
    assert await standing(desk, "0a", budget) == (0, 40)
    assert await Janitor(desk.broker, grace_s=60).budgets() == {}
    for expected in ({"leaked_budgets": 1}, {}):
        assert await Janitor(desk.broker, grace_s=0).budgets() == expected
        assert await standing(desk, "0a", budget) == (20, 20)
    await desk.submissions.end([held], Cancelled("client"))
    assert await standing(desk, "0a", budget) == (20, 0)
    assert await Janitor(desk.broker, grace_s=0).budgets() == {}


def test_the_starts_of_days_and_months() -> None:
    def days(budget: Budget, now: datetime) -> list[str]:
        starts = []
        for start_ms in budget.starts_ms(now):
            start = datetime.fromtimestamp(start_ms / 1000, UTC)
            assert start.time().isoformat() == "00:00:00"
            starts.append(start.date().isoformat())
        return starts

    new_year = datetime(2026, 12, 31, 23, 59, tzinfo=UTC)
    assert days(Budget(1, "day"), new_year) == [
        "2026-12-30",
        "2026-12-31",
        "2027-01-01",
        "2027-01-02",
    ]
    assert days(Budget(1, "month"), new_year) == [
        "2026-11-01",
        "2026-12-01",
        "2027-01-01",
        "2027-02-01",
    ]
    in_january = datetime(2027, 1, 31, tzinfo=UTC)
    assert days(Budget(1, "month"), in_january)[0] == "2026-12-01"
    # What is another day elsewhere is the day of UTC here.
    elsewhere = datetime.fromisoformat("2027-01-01T00:30:00+02:00")
    assert days(Budget(1, "day"), elsewhere)[1] == "2026-12-31"


async def test_a_key_without_a_budget_reserves_nothing(redis: Redis) -> None:
    desk = Desk(Broker(redis))
    await desk.submit(ask("abc", 9), api_key="0a")
    assert await redis.keys("aios:*:budget*") == []
