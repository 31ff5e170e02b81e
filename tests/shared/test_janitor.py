"""The janitor on a real Redis.

It finds the faults that were planted, repairs each once, and touches nothing that is in use.
"""

import asyncio
from typing import Any

import pytest
from redis.asyncio import Redis

from shared.fleet.presence import Presence
from shared.messages import Done, Failed, Generate, Sampling, Started, Tokens, WorkerInfo
from shared.queue import keys
from shared.queue.janitor import Janitor
from tests.fixtures.desk import DONE, Desk
from tests.fixtures.dumps import snapshot
from tests.fixtures.polling import ALL_DAY_S


@pytest.fixture
def desk(redis: Redis) -> Desk:
    return Desk(redis, shards=2)


def janitor(desk: Desk, dry_run: bool = False, grace_s: float = 0) -> Janitor:
    return Janitor(desk.broker, grace_s=grace_s, dry_run=dry_run)


async def sweep_all(desk: Desk, **options: Any) -> dict[str, int]:
    """Run all sweeps, and return how many faults of each kind they found."""
    faults: dict[str, int] = {}
    for sweep in janitor(desk, **options).sweeps.values():
        faults |= await sweep()
    return faults


async def check_found_once(redis: Redis, desk: Desk, expected: dict[str, int]) -> None:
    """Check that a dry run finds these faults, a real one repairs them, and the next finds none."""
    before = await snapshot(redis)
    assert await sweep_all(desk, dry_run=True) == expected
    assert await snapshot(redis) == before
    assert await sweep_all(desk) == expected
    assert await sweep_all(desk) == {}


async def set_to_past(redis: Redis, job_id: str, *fields: str) -> None:
    await redis.hset(keys.job(job_id), mapping=dict.fromkeys(fields, "1"))  # type: ignore[misc]


async def test_it_leaves_a_fleet_at_work_alone(redis: Redis) -> None:
    """The janitor leaves a live worker alone, and jobs of several tenants in every state.

    The jobs wait, run, have lapsed or have ended.
    """
    # With several shards a tenant's only job on one of them might end, which makes it idle there.
    desk = Desk(redis, lease_s=60)
    for tenant in ("a", "b", "a"):
        for _ in range(4):
            await desk.submit(tenant=tenant)

    claims = await desk.take(3)
    await desk.say(claims[0], Started(1, "w1", 1), DONE)
    await desk.queue().give_back([claims[1]])
    await Presence(redis, ttl_s=ALL_DAY_S).announce(WorkerInfo("w1", "ready", ()))
    before = await snapshot(redis)
    assert await sweep_all(desk) == {}
    assert await snapshot(redis) == before


async def test_what_waits_too_long_ends_though_nobody_takes_it(redis: Redis) -> None:
    desk = Desk(redis)
    (late,) = await desk.submit()
    (expired,) = await desk.submit()
    (fine,) = await desk.submit()
    await set_to_past(redis, late.id, "deadline_ms", "expires_ms")
    await set_to_past(redis, expired.id, "expires_ms")
    assert await sweep_all(desk, grace_s=10**10) == {}, "workers and fronts come first"

    await check_found_once(redis, desk, {"late_jobs": 1, "expired_jobs": 1})
    (late_end,) = await desk.events(late)
    assert isinstance(late_end, Failed)
    assert late_end.code == "deadline_exceeded"

    (expired_end,) = await desk.events(expired)
    assert isinstance(expired_end, Failed)
    assert expired_end.code == "queue_timeout"
    assert await desk.events(fine) == []
    assert await desk.counts() == (1, 0)


async def test_a_job_in_hand_is_its_workers_even_past_its_deadline(redis: Redis) -> None:
    """The janitor ends a late job only after its lease has lapsed."""
    desk = Desk(redis, lease_s=60)
    (job,) = await desk.submit()
    (claim,) = await desk.take(1)
    await set_to_past(redis, job.id, "deadline_ms", "expires_ms")
    assert await sweep_all(desk) == {}

    await desk.queue().give_back([claim])
    await check_found_once(redis, desk, {"late_jobs": 1})
    assert not await desk.say(claim, DONE), "its worker is stale"
    assert await desk.counts() == (0, 0)


async def test_jobs_that_the_queue_lost_are_found_again(redis: Redis) -> None:
    """A job whose lease is gone and a job whose line is gone are taken again.

    They go on where they were, and nobody is blamed.
    """
    desk = Desk(redis, lease_s=60)
    (begun,) = await desk.submit()
    (claim,) = await desk.take(1)
    await desk.say(claim, Started(1, "w1", 1), Tokens((5,), "a"))
    (waiting,) = await desk.submit(tenant="acme")
    await redis.zrem(keys.leases("00", "m"), begun.id)
    await redis.delete(f"{keys.prefix('00')}line:m:default:acme")

    await check_found_once(redis, desk, {"lost_jobs": 2, "idle_turns": 1, "wrong_depths": 3})
    last_indices = {}
    for claim in await desk.take(5, "w2"):
        last_indices[claim.job] = claim.last_index
        assert not claim.is_alone

    assert last_indices == {begun: 2, waiting: 0}
    assert await desk.counts() == (0, 2)


async def test_keys_that_nothing_needs_expire(redis: Redis, desk: Desk) -> None:
    orphan = keys.new_id("01")
    await redis.xadd(keys.log(orphan), {"e": "x"}, id="1-0")
    await redis.hset(keys.request(orphan), "follower:f", "1")  # type: ignore[misc]
    (over,) = await desk.submit()
    (claim,) = await desk.take(1)
    await desk.say(claim, DONE)
    await redis.persist(keys.job(over.id))
    await redis.persist(keys.log(over.id))
    await redis.xadd(
        keys.dead("01"), {"job": orphan, "model": "m", "tenant": "t", "worker": "w", "epochs": 3}
    )

    expected = {"lasting_jobs": 1, "orphan_logs": 1, "orphan_requests": 1, "expired_dead": 1}
    await check_found_once(redis, desk, expected)
    for name in (keys.log(orphan), keys.request(orphan), keys.job(over.id), keys.log(over.id)):
        assert 0 < await redis.pttl(name) <= 600_000

    assert await desk.events(over) == [DONE]


async def test_quotas_are_not_held_by_what_is_over(redis: Redis, desk: Desk) -> None:
    (job,) = await desk.submit(tenant="acme:x")
    held = keys.open_jobs(keys.shard_of(job.id), "acme:x")
    (over,) = await desk.submit(tenant="acme:x")
    for claim in await desk.take(2):
        if claim.job == over:
            await desk.say(claim, DONE)

    unknown_id = keys.new_id(keys.shard_of(job.id))
    await redis.zadd(held, {unknown_id: 1, over.id: 1})

    await check_found_once(redis, desk, {"leaked_holders": 2})
    assert await redis.zrange(held, 0, -1) == [job.id.encode()]


async def test_the_depth_is_counted_again_and_blocked_lines_move(redis: Redis) -> None:
    """An entry without a job leaves the head of its line, which it would block for ever."""
    desk = Desk(redis)
    (gone,) = await desk.submit(tenant="a")
    (job,) = await desk.submit(tenant="a")
    await redis.delete(keys.job(gone.id))
    wrong = {"jobs:bulk": 7, "bytes": -3}
    await redis.hset(keys.depth("00", "m"), mapping=wrong)  # type: ignore[misc]
    await redis.zadd(f"{keys.prefix('00')}turns:m:bulk", {"nobody": 0})

    assert await janitor(desk).quotas() == {"leaked_holders": 1}

    expected = {"stray_entries": 1, "idle_turns": 1, "wrong_depths": 4}
    await check_found_once(redis, desk, expected)
    assert [claim.job for claim in await desk.take(5)] == [job]
    assert set(await redis.hvals(keys.depth("00", "m"))) == {b"0"}  # type: ignore[misc]


async def test_virtual_times_without_advantage_are_forgotten(redis: Redis) -> None:
    """A tenant's virtual time is kept while it is ahead of its class or has a job open."""
    desk = Desk(redis)
    cheap = Generate("", Sampling(max_tokens=9, seed=0))
    costly = Generate("", Sampling(max_tokens=99, seed=0))
    await desk.submit(cheap, tenant="idle")
    await desk.submit(costly, tenant="ahead")
    await desk.submit(cheap, tenant="busy")

    for claim in await desk.take(3):
        if claim.job.tenant == "idle":
            await desk.say(claim, Done("length", 1, 9))
        elif claim.job.tenant == "ahead":
            await desk.say(claim, Done("length", 1, 99))

    # The class's time passes that of `idle`, and not that of `ahead`.
    for _ in range(3):
        await desk.submit(cheap, tenant="driver")
        (claim,) = await desk.take(1)
        await desk.say(claim, Done("length", 1, 9))

    await check_found_once(redis, desk, {"idle_tenants": 1})
    left = await redis.hkeys(keys.served("00", "m:default"))  # type: ignore[misc]
    assert set(left) == {b"*", b"ahead", b"busy", b"driver"}


async def test_names_of_gone_workers_leave_the_list(redis: Redis, desk: Desk) -> None:
    await Presence(redis, ttl_s=ALL_DAY_S).announce(WorkerInfo("here", "ready", ()))
    await redis.sadd(keys.WORKERS, "gone")  # type: ignore[misc]
    await check_found_once(redis, desk, {"gone_workers": 1})
    assert await redis.smembers(keys.WORKERS) == {b"here"}  # type: ignore[misc]


async def test_many_keys_are_swept_in_small_batches_beside_work(redis: Redis, desk: Desk) -> None:
    """Every job ends exactly once while two janitors and a worker end jobs at once."""
    jobs = []
    for _ in range(300):
        jobs += await desk.submit(tenant="t", max_jobs=1000)

    for job in jobs[::3]:
        await set_to_past(redis, job.id, "expires_ms")

    async def work() -> None:
        while claims := await desk.take(20):
            for claim in claims:
                await desk.say(claim, DONE)

    await asyncio.gather(work(), janitor(desk).jobs(), janitor(desk).jobs())
    await sweep_all(desk)
    for job in jobs:
        assert len(await desk.events(job)) == 1

    assert await desk.counts() == (0, 0)
    assert await sweep_all(desk) == {}
