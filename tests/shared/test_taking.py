"""The order in which jobs are taken (P1, P7).

It follows classes with ageing, tenants by what they were served, and jobs whose workers died.
"""

import asyncio
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from shared.messages import Done, Event, Failed, Generate, Job, Priority, Sampling, Started, Tokens
from shared.queue import keys
from shared.queue.leases import Claim
from shared.queue.requests import JobTimes
from tests.fixtures.desk import DONE, Desk
from tests.fixtures.logged import fields_of
from tests.fixtures.polling import until

TOKEN = Tokens((5,), "a")


def task(cost: int) -> Generate:
    return Generate("", Sampling(max_tokens=cost - 1, seed=0))


async def submit(
    desk: Desk, tenant: str, count: int, *, cost: int = 10, priority: Priority = "default"
) -> list[Job]:
    jobs = []
    for _ in range(count):
        jobs += await desk.submit(task(cost), tenant=tenant, priority=priority)
    return jobs


def jobs_of(claims: list[Claim]) -> list[Job]:
    return [claim.job for claim in claims]


async def take_tenants(desk: Desk, count: int) -> list[str]:
    """Take this many jobs one by one, and return their tenants in order."""
    tenants = []
    for _ in range(count):
        (claim,) = await desk.take(1)
        tenants.append(claim.job.tenant)
    return tenants


async def test_the_better_class_comes_first(redis: Redis) -> None:
    desk = Desk(redis)
    for priority in ("bulk", "default", "interactive", "bulk", "interactive"):
        await submit(desk, "t", 1, priority=priority)  # type: ignore[arg-type]
    priorities = [job.priority for job in jobs_of(await desk.take(9))]
    assert priorities == ["interactive", "interactive", "default", "bulk", "bulk"]


async def test_waiting_lifts_a_job_so_that_none_starves(redis: Redis) -> None:
    """A bulk job that has aged by two classes goes before fresh interactive jobs."""
    desk = Desk(redis, ageing_s=0.05)
    (old,) = await submit(desk, "t", 1, priority="bulk")
    await asyncio.sleep(0.16)
    await submit(desk, "t", 2, priority="interactive")
    assert (await desk.take(1))[0].job == old


async def test_tenants_share_by_what_they_are_served(redis: Redis) -> None:
    """A tenant with costly jobs does not keep out one that comes later with cheap ones."""
    desk = Desk(redis)
    await submit(desk, "greedy", 20, cost=100)
    await submit(desk, "modest", 20, cost=25)
    order = await take_tenants(desk, 20)
    assert order.count("modest") == 16, "at four times the cost, a quarter of the jobs"


async def test_a_rest_earns_no_advantage(redis: Redis) -> None:
    desk = Desk(redis)
    await submit(desk, "busy", 30)
    for _ in range(20):
        await desk.take(1)
    await submit(desk, "late", 30)
    order = await take_tenants(desk, 10)
    assert order.count("late") in (5, 6)


async def test_what_was_not_used_is_given_back(redis: Redis) -> None:
    """A tenant's share counts the tokens that were served, not those that were requested."""
    desk = Desk(redis)
    await submit(desk, "brief", 6, cost=1000)
    await submit(desk, "long", 6, cost=100)
    num_brief = 0
    for _ in range(10):
        (claim,) = await desk.take(1)
        if claim.job.tenant == "brief":
            num_brief += 1
            await desk.say(claim, Done("stop", 1, 9))
        else:
            await desk.say(claim, Done("length", 1, 99))

    assert num_brief == 6


async def lapse(redis: Redis, desk: Desk, claims: list[Claim]) -> None:
    """Let the leases lapse, as if the worker had died."""
    for claim in claims:
        await redis.zadd(keys.leases("00", desk.model), {claim.job.id: 1}, xx=True)


async def test_what_was_begun_goes_on_only_where_the_same_tokens_come_out(redis: Redis) -> None:
    desk = Desk(redis)
    await submit(desk, "t", 2)
    begun, untouched = await desk.take(2)
    await desk.say(begun, Started(1, "w1", 1), TOKEN)
    await desk.say(untouched, Started(1, "w1", 1))
    await desk.queue().give_back([begun, untouched])
    assert jobs_of(await desk.take(2, "w2", fingerprint="other")) == [untouched.job]
    assert jobs_of(await desk.take(2, "w3")) == [begun.job]


@pytest.mark.parametrize("why", ["class", "fingerprint", "suspicion"])
async def test_jobs_that_a_worker_may_not_take_hide_none_that_it_may(
    redis: Redis, why: str
) -> None:
    desk = Desk(redis)
    await desk.submit(*[task(10)] * 150, priority="bulk", max_jobs=150)
    others = await desk.take(150)
    events: list[Event] = [Started(1, "w1", 1)]
    deaths = 0
    priorities: tuple[Priority, ...] = ("interactive", "default", "bulk")

    if why == "class":
        priorities = ("interactive",)
    elif why == "fingerprint":
        events.append(TOKEN)
    else:
        deaths = 1

    for other in others:
        await desk.say(other, *events)
        await redis.hset(keys.job(other.job.id), "deaths", deaths)  # type: ignore[misc]

    (wanted,) = await submit(desk, "t", 1, priority="interactive")
    (claim,) = await desk.take(1)
    await lapse(redis, desk, others)
    # The lease of the wanted job lapses after all others.
    await redis.zadd(keys.leases("00", "m"), {claim.job.id: 2})

    taken = await desk.take(1, "w2", fingerprint="other", is_empty=False, priorities=priorities)
    assert jobs_of(taken) == [wanted]


async def test_beyond_what_is_looked_at_in_one_go_the_parts_come_in_turn(redis: Redis) -> None:
    desk = Desk(redis)
    await desk.submit(*[task(10)] * 600, max_jobs=600)
    others = await desk.take(600)
    for other in others:
        await desk.say(other, TOKEN)

    (wanted,) = await submit(desk, "t", 1)
    (claim,) = await desk.take(1)
    await lapse(redis, desk, others)
    await redis.zadd(keys.leases("00", "m"), {claim.job.id: 2})

    async def is_taken() -> bool:
        return jobs_of(await desk.take(1, "w2", fingerprint="other")) == [wanted]

    await until(is_taken, "another part is looked at")


@pytest.mark.parametrize("has_died", [True, False])
async def test_a_lapsed_job_past_its_deadline_ends_and_is_nobodys(
    redis: Redis, has_died: bool
) -> None:
    """A late job is not taken again, whether its worker died or gave it back.

    Other jobs that lapsed with it are.
    """
    desk = Desk(redis, lease_s=60)
    late, fine = await submit(desk, "t", 2)
    claims = await desk.take(2, "w1")
    await desk.say(claims[0], Started(1, "w1", 1), TOKEN)
    await redis.hset(keys.job(late.id), "deadline_ms", 1)  # type: ignore[misc]

    if has_died:
        await lapse(redis, desk, claims)
    else:
        await desk.queue().give_back(claims)

    assert jobs_of(await desk.take(5, "w2")) == [fine]

    *before, end = await desk.events(late)
    assert before == [Started(1, "w1", 1), TOKEN]
    assert isinstance(end, Failed)
    assert end.code == "deadline_exceeded"
    assert not await desk.say(claims[0], TOKEN, after=2), "its worker is stale"
    assert await desk.counts() == (0, 1)
    assert await redis.zrange(keys.open_jobs("00", "t"), 0, -1) == [fine.id.encode()]


async def crash(redis: Redis, desk: Desk, claim: Claim) -> None:
    """Let the worker of this claim die after it has begun."""
    await desk.say(claim, Started(claim.epoch, "w", 1))
    await lapse(redis, desk, [claim])


async def test_a_job_that_kills_its_workers_is_convicted_alone(
    redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """P7: two deaths make a suspect, which runs alone, and the third death convicts it."""
    desk = Desk(redis)
    poison, *innocent = await submit(desk, "t", 4)
    for claim in await desk.take(4, "w1"):
        await crash(redis, desk, claim)

    second = await desk.take(4, "w2", is_empty=True)
    assert len(second) == 4
    for claim in second:
        assert not claim.is_alone

    for claim in second:
        if claim.job == poison:
            await crash(redis, desk, claim)
        else:
            assert await desk.say(claim, TOKEN, DONE)

    assert await desk.take(4, "w3", is_empty=False) == [], "it waits for the worker to be empty"

    (suspect,) = await desk.take(4, "w3", is_empty=True)
    assert suspect.job == poison
    assert suspect.is_alone

    await crash(redis, desk, suspect)
    assert await desk.take(4, "w4") == []

    (*_, end) = await desk.events(poison)
    assert isinstance(end, Failed)
    assert end.code == "worker_crashed"

    ((_, dead),) = await redis.xrange(keys.dead("00"))
    assert dead[b"job"].decode() == poison.id

    [conviction] = fields_of(caplog, "job convicted")
    assert conviction["job_id"] == poison.id
    assert conviction["tenant"] == "t"
    assert conviction["last_worker"] == "w3"
    assert conviction["epochs"] == 3

    assert await desk.counts() == (0, 0)
    assert len(innocent) == 3

    for job in innocent:
        (*_, end) = await desk.events(job)
        assert end == DONE


async def make_suspect(redis: Redis, desk: Desk) -> None:
    """Submit a job under which two workers die."""
    await submit(desk, "t", 1)
    for worker in ("w1", "w2"):
        (claim,) = await desk.take(1, worker)
        await crash(redis, desk, claim)


async def test_a_suspect_runs_with_nothing_beside_it(redis: Redis) -> None:
    """A suspect runs alone, although places are free and other jobs have lapsed or wait."""
    desk = Desk(redis)
    (other,) = await submit(desk, "t", 1)
    (begun,) = await desk.take(1)
    await make_suspect(redis, desk)
    await submit(desk, "t", 1)
    # This job lapses after the suspect.
    await redis.zadd(keys.leases("00", "m"), {other.id: 2}, xx=True)

    (suspect,) = await desk.take(4, "w3", is_empty=True)
    assert suspect.is_alone
    assert suspect.job != begun.job

    rest = await desk.take(4, "w4", is_empty=True)
    assert rest
    for claim in rest:
        assert not claim.is_alone


@pytest.mark.parametrize("kind", ["over", "late", "deadly"])
async def test_what_ends_in_passing_hides_nothing(redis: Redis, kind: str) -> None:
    """A job that can be taken comes behind more than a page of jobs that end in the take."""
    desk = Desk(redis)
    await desk.submit(*[task(10)] * 70)
    others = await desk.take(70)
    (wanted,) = await submit(desk, "t", 1)
    (claim,) = await desk.take(1)

    event = DONE if kind == "over" else Started(1, "w1", 1)

    if kind == "late":
        change = {"deadline_ms": 1}
    elif kind == "deadly":
        change = {"deaths": 2}
    else:
        change = {"slots": 1}

    for other in others:
        await desk.say(other, event)
        await redis.hset(keys.job(other.job.id), mapping=change)  # type: ignore[arg-type, misc]
        await redis.zadd(keys.leases("00", "m"), {other.job.id: 1})

    await redis.zadd(keys.leases("00", "m"), {claim.job.id: 2}, xx=True)

    assert jobs_of(await desk.take(1, "w2")) == [wanted]
    assert await redis.zcard(keys.leases("00", "m")) == 1
    assert await desk.counts() == (0, 1)


async def test_the_dead_and_what_they_said_are_kept_for_long(redis: Redis) -> None:
    desk = Desk(redis, result_ttl_s=600, dead_ttl_s=7200)
    await make_suspect(redis, desk)
    (claim,) = await desk.take(1, "w3", is_empty=True)
    await crash(redis, desk, claim)
    assert await desk.take(1, "w4") == []
    for name in (keys.job(claim.job.id), keys.log(claim.job.id)):
        assert 7_100_000 < await redis.pttl(name) <= 7_200_000


async def test_one_worker_at_a_time_empties_itself_for_a_suspect(redis: Redis) -> None:
    desk = Desk(redis)
    await make_suspect(redis, desk)
    await submit(desk, "t", 3)

    busy = await desk.queue("w3").take("00", 4, is_empty=False)
    assert busy.claims == ()
    assert busy.should_empty

    other = await desk.queue("w4").take("00", 1, is_empty=False)
    (innocent,) = other.claims
    assert not innocent.is_alone
    assert not other.should_empty

    empty = await desk.queue("w3").take("00", 4, is_empty=True)
    (suspect,) = empty.claims
    assert suspect.is_alone
    assert empty.should_empty


async def test_an_empty_worker_need_not_wait_for_one_that_empties_itself(redis: Redis) -> None:
    desk = Desk(redis)
    await make_suspect(redis, desk)
    await submit(desk, "t", 1)

    busy = await desk.queue("w3").take("00", 4, is_empty=False)
    assert busy.should_empty

    (suspect,) = await desk.take(4, "w4", is_empty=True)
    assert suspect.is_alone

    freed = await desk.queue("w3").take("00", 4, is_empty=False)
    assert len(freed.claims) == 1
    assert not freed.should_empty


async def test_what_is_given_back_rings_for_others(redis: Redis) -> None:
    """Each job that is given back rings once, at once. A renewed lease does not ring."""
    desk = Desk(redis, lease_s=60)
    await submit(desk, "t", 2)
    claims = await desk.take(2)
    await redis.delete(keys.bell("00", "m"))
    queue = desk.queue()
    assert await queue.renew(claims) == []
    assert await redis.llen(keys.bell("00", "m")) == 0  # type: ignore[misc]

    await queue.give_back(claims)
    assert await redis.llen(keys.bell("00", "m")) == 2  # type: ignore[misc]
    assert await queue.await_bell(["00"], 5) == "00"
    assert len(await desk.take(2, "w2")) == 2


async def test_the_first_take_and_the_first_token_are_noted_once(redis: Redis) -> None:
    """A takeover changes neither the time of the first take nor that of the first token."""
    desk = Desk(redis)
    request, _ = await desk.request(task(10))

    async def times() -> JobTimes:
        [standing] = await desk.requests.look(request)
        return standing.times

    (first,) = await desk.take(1, "w1")
    taken = await times()
    assert taken.taken_s is not None
    assert taken.queued_s <= taken.taken_s
    assert taken.first_s is None
    assert taken.ended_s is None

    await desk.say(first, Started(1, "w1", 1), TOKEN)
    begun = await times()
    assert begun.first_s is not None
    assert begun.first_s >= taken.taken_s

    await lapse(redis, desk, [first])
    await asyncio.sleep(0.005)
    (second,) = await desk.take(1, "w2")
    await desk.say(second, Started(2, "w2", 1), TOKEN)
    assert await times() == begun

    await desk.say(second, DONE, after=4)
    ended = await times()
    assert ended.ended_s is not None
    assert replace(ended, ended_s=None) == begun
    assert ended.ended_s > begun.first_s


async def test_who_gets_on_is_not_to_blame(redis: Redis) -> None:
    """A long job is no suspect while each worker that dies under it appends some tokens."""
    desk = Desk(redis)
    (job,) = await submit(desk, "t", 1)

    for number in range(10):
        (claim,) = await desk.take(1, f"w{number}")
        assert claim.job == job
        assert not claim.is_alone
        await desk.say(claim, Started(claim.epoch, "w", 1), TOKEN)
        await lapse(redis, desk, [claim])


@pytest.mark.parametrize("how", ["given back", "not begun"])
async def test_a_death_needs_somebody_who_had_begun(redis: Redis, how: str) -> None:
    """A job is not blamed for workers that drain, or that die before they begin it."""
    desk = Desk(redis)
    await submit(desk, "t", 1)

    for number in range(6):
        (claim,) = await desk.take(1, f"w{number}")
        assert not claim.is_alone

        if how == "given back":
            await desk.say(claim, Started(claim.epoch, "w", 1))
            await desk.queue(f"w{number}").give_back([claim])
        else:
            await lapse(redis, desk, [claim])


async def test_a_job_that_no_worker_finishes_is_given_up(redis: Redis) -> None:
    """P4: a job fails after sixteen takes, whatever the reason."""
    desk = Desk(redis)
    (job,) = await submit(desk, "t", 1)
    epochs = 0
    while claims := await desk.take(1):
        epochs += 1
        await lapse(redis, desk, claims)

    assert epochs == 16

    (*_, end) = await desk.events(job)
    assert isinstance(end, Failed)
    assert end.code == "worker_crashed"
