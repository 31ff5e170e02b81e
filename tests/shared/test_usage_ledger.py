"""Usage on a real Redis: each job that ends is counted once, with what it has used."""

import asyncio
import random
import time
from datetime import date, timedelta

import pytest
from redis.asyncio import Redis

from shared.messages import (
    ArtifactRef,
    Cancelled,
    Done,
    Event,
    Failed,
    Progress,
    Solution,
    Started,
    Tokens,
)
from shared.queue import keys
from shared.queue.broker import Broker
from shared.queue.dead_letters import DeadLetters
from shared.queue.janitor import Janitor
from shared.queue.submission import Key
from shared.queue.usage_ledger import (
    Usage,
    UsageGroup,
    UsageLedger,
    UsageRow,
    as_csv,
    grouped,
    total,
)
from tests.fixtures.desk import DONE, SAY_HI, Desk

THREE_TOKENS = Tokens((5, 6, 7), "abc")
SHARDS = pytest.mark.parametrize("shards", [1, 3])


async def rows(desk: Desk, **only: str) -> list[UsageRow]:
    ledger = UsageLedger(desk.broker)
    today = await ledger.today()
    # A test may run over midnight.
    return await ledger.read(today - timedelta(days=1), today, **only)


async def counted(desk: Desk, **only: str) -> dict[str, int]:
    """Return the sums without the time, which differs from run to run, and without zeros."""
    values = dict(vars(total(await rows(desk, **only))))
    assert values.pop("compute_ms") >= 0
    return {name: value for name, value in values.items() if value}


@SHARDS
async def test_a_job_that_is_done(redis: Redis, shards: int) -> None:
    desk = Desk(redis, shards=shards)
    [job] = await desk.submit(tenant="ann", api_key="0a")
    [claim] = await desk.take()
    assert await desk.say(claim, Started(1, "w1", 7), THREE_TOKENS)
    assert await rows(desk) == []

    done = Done("stop", 7, 3, num_cached_tokens=4)
    assert await desk.say(claim, done, after=2)
    assert await desk.say(claim, done, after=2), "the same append again"

    [row] = await rows(desk)
    assert (row.tenant, row.key, row.model) == ("ann", "0a", "m")
    assert 0 <= row.usage.compute_ms < 60_000
    assert await counted(desk) == {
        "requests": 1,
        "jobs": 1,
        "prompt_tokens": 7,
        "cached_tokens": 4,
        "completion_tokens": 3,
    }
    shard = keys.shard_of(job.id)
    day = (row.day - date(1970, 1, 1)).days
    for name in (
        keys.usage(shard, day, "ann", "0a:m"),
        keys.usage_rows(shard, day, "ann"),
        keys.usage_tenants(shard, day),
    ):
        assert 400 * 86_400_000 < await redis.pttl(name) <= 401 * 86_400_000


async def test_the_time_is_that_in_the_hands_of_workers(redis: Redis) -> None:
    """From the first take to the end, also where another worker goes on."""
    desk = Desk(redis)
    await desk.submit()
    await asyncio.sleep(0.3)
    begun_s = time.monotonic()
    [claim] = await desk.take()
    await asyncio.sleep(0.05)
    await desk.queue().give_back([claim])
    [claim] = await desk.take()
    await asyncio.sleep(0.05)
    await desk.say(claim, DONE)
    most_ms = 1000 * (time.monotonic() - begun_s)
    usage = total(await rows(desk))
    assert 95 <= usage.compute_ms <= most_ms + 2
    assert usage.as_json()["compute_seconds"] == usage.compute_ms / 1000


async def test_segments_and_artifacts(redis: Redis) -> None:
    desk = Desk(redis)
    await desk.submit(SAY_HI, SAY_HI)
    solved, painted = await desk.take(2)
    solution = Solution(("12",), confidence=0.5, steps=6, is_halted=True)
    pictures = (ArtifactRef("a", "image/png", 700), ArtifactRef("b", "image/png", 77))
    await desk.say(solved, Done("solve", 81, 0, result=solution))
    await desk.say(painted, Done("text-to-image", 0, 0, artifacts=pictures))
    assert await counted(desk) == {
        "requests": 1,
        "jobs": 2,
        "prompt_tokens": 81,
        "act_segments": 6,
        "artifact_bytes": 777,
    }


async def test_a_request_of_several_jobs_counts_once(redis: Redis) -> None:
    desk = Desk(redis)
    _, jobs = await desk.request(SAY_HI, SAY_HI, SAY_HI)
    claims = await desk.take(3)
    # The others end first, and in other ways.
    await desk.submissions.end([jobs[2]], Cancelled("client"))
    await desk.say(claims[1], Failed("worker_failed", "no"))
    assert await counted(desk) == {"jobs": 2, "failed_jobs": 1, "cancelled_jobs": 1}
    await desk.say(claims[0], DONE)
    assert await counted(desk) == {
        "requests": 1,
        "jobs": 3,
        "failed_jobs": 1,
        "cancelled_jobs": 1,
        "prompt_tokens": 1,
        "completion_tokens": 1,
    }


async def test_a_job_that_was_not_done_has_used_what_its_log_has(redis: Redis) -> None:
    desk = Desk(redis)
    [job] = await desk.submit()
    [claim] = await desk.take()
    await desk.say(claim, Started(1, "w1", 7), THREE_TOKENS)
    await desk.say(claim, THREE_TOKENS, after=2)
    await desk.say(claim, THREE_TOKENS, after=2)  # the same append again
    await desk.submissions.end([job], Cancelled("client"))
    assert not await desk.say(claim, DONE, after=3), "its worker is stale"
    assert await counted(desk) == {
        "requests": 1,
        "jobs": 1,
        "cancelled_jobs": 1,
        "prompt_tokens": 7,
        "completion_tokens": 6,
    }


async def test_a_job_that_never_began_has_used_nothing(redis: Redis) -> None:
    desk = Desk(redis)
    [cancelled] = await desk.submit()
    for _ in range(2):
        await desk.submissions.end([cancelled], Cancelled("client"))
    [expired] = await desk.submit()
    await redis.hset(keys.job(expired.id), "expires_ms", 1)  # type: ignore[misc]
    assert await desk.take() == []
    request, [late] = await desk.request()
    await redis.hset(keys.job(late.id), "deadline_ms", 1)  # type: ignore[misc]
    for _ in range(2):
        await desk.requests.look(request)
    assert await counted(desk) == {
        "requests": 3,
        "jobs": 3,
        "failed_jobs": 2,
        "cancelled_jobs": 1,
    }
    assert total(await rows(desk)).compute_ms == 0


@SHARDS
async def test_a_job_that_is_taken_over_counts_once(redis: Redis, shards: int) -> None:
    """Nothing counts twice: not the prompt that is read again, nor what the dead worker says."""
    desk = Desk(redis, shards=shards, lease_s=0)
    await desk.submit()
    [killed] = await desk.take()
    await desk.say(killed, Started(1, "w1", 7), THREE_TOKENS)
    [heir] = await desk.take(1, "w2")
    assert heir.epoch == 2
    assert not await desk.say(killed, DONE, after=2)
    assert await desk.say(heir, Started(2, "w2", 7), Tokens((8,), "d"), Done("stop", 7, 4))
    assert not await desk.say(killed, DONE, after=2)
    for sweep in Janitor(desk.broker, grace_s=0).sweeps.values():
        await sweep()
    assert await counted(desk) == {
        "requests": 1,
        "jobs": 1,
        "prompt_tokens": 7,
        "completion_tokens": 4,
    }


async def test_a_dead_letter_that_is_tried_again_counts_for_the_same_key(redis: Redis) -> None:
    desk = Desk(redis, lease_s=60)
    [job] = await desk.submit(tenant="ann", api_key="0a")
    for worker in ("w1", "w2", "w3"):
        [claim] = await desk.take(1, worker)
        await desk.say(claim, Started(claim.epoch, worker, 7))
        await redis.zadd(keys.leases("00", "m"), {job.id: 1})  # its lease has lapsed
    assert await desk.take(1, "w4") == []
    once = {"requests": 1, "jobs": 1, "failed_jobs": 1, "prompt_tokens": 7}
    assert await counted(desk) == once

    await DeadLetters(desk.broker).retry(job.id)
    [claim] = await desk.take()
    await desk.say(claim, DONE)
    expected = {
        "requests": 2,
        "jobs": 2,
        "failed_jobs": 1,
        "prompt_tokens": 8,
        "completion_tokens": 1,
    }
    assert await counted(desk, tenant="ann", key="0a") == expected


async def test_jobs_that_became_needless_have_used_nothing(redis: Redis) -> None:
    desk = Desk(redis)
    await desk.submit(*[SAY_HI] * 3, leaders=(None, 0, 0))
    [claim] = await desk.take(9)
    await desk.say(claim, Done("solve", 9, 0, settles=True))
    assert await counted(desk) == {"requests": 1, "jobs": 3, "prompt_tokens": 9}


async def test_a_replayed_request_counts_nothing_new(redis: Redis) -> None:
    desk = Desk(redis)
    first, _ = await desk.request(key=Key("order"))
    [claim] = await desk.take()
    await desk.say(claim, DONE)
    before = await counted(desk)
    again, _ = await desk.request(key=Key("order"))
    assert again.id == first.id
    assert await counted(desk) == before


@SHARDS
async def test_rows_are_apart_by_tenant_key_and_model(redis: Redis, shards: int) -> None:
    for model, tenant, key in (
        ("m", "ann", "0a"),
        ("m", "ann", "0b"),
        ("hf:org/m", "ann", "0a"),
        ("m", "bob", ""),
    ):
        desk = Desk(redis, model, shards=shards)
        for _ in range(3):
            await desk.submit(tenant=tenant, api_key=key)
        for claim in await desk.take(9):
            await desk.say(claim, Done("stop", 2, 1))

    nine = Usage(requests=3, jobs=3, prompt_tokens=6, completion_tokens=3)
    found = await rows(desk)
    names = [(row.tenant, row.key, row.model) for row in found]
    assert names == [
        ("ann", "0a", "hf:org/m"),
        ("ann", "0a", "m"),
        ("ann", "0b", "m"),
        ("bob", "", "m"),
    ]
    for row in found:
        assert vars(row.usage) | {"compute_ms": 0} == vars(nine)
    assert [row.key for row in await rows(desk, tenant="ann")] == ["0a", "0a", "0b"]
    assert [row.model for row in await rows(desk, tenant="ann", key="0b")] == ["m"]
    assert await rows(desk, tenant="eve") == []


async def test_other_days_are_left_out(redis: Redis) -> None:
    desk = Desk(redis)
    await desk.submit()
    [claim] = await desk.take()
    await desk.say(claim, DONE)
    ledger = UsageLedger(desk.broker)
    today = await ledger.today()
    before, after = today - timedelta(days=2), today + timedelta(days=1)
    assert await ledger.read(before - timedelta(days=400), before) == []
    assert await ledger.read(after, after) == []


async def test_usage_is_not_counted_where_it_is_kept_for_no_day(redis: Redis) -> None:
    desk = Desk(Broker(redis, usage_days=0))
    await desk.submit()
    [claim] = await desk.take()
    await desk.say(claim, DONE)
    assert await rows(desk) == []
    assert await redis.keys("aios:{00}:us*") == []


def test_rows_are_grouped_and_written_as_csv() -> None:
    day = date(2026, 11, 29)
    one = Usage(requests=1, jobs=2, compute_ms=1500)
    found = [
        UsageRow(day, "ann", "0a", "m", one),
        UsageRow(day, "ann", "0b", "m", one),
        UsageRow(day - timedelta(days=1), "bob", "", 'a "b", c', one),
    ]
    groups = grouped(found, ["day", "model"])
    assert [group.values for group in groups] == [("2026-11-28", 'a "b", c'), ("2026-11-29", "m")]
    assert groups[1].usage == one + one
    assert as_csv(groups, ["day", "model"]).splitlines() == [
        "day,model,requests,jobs,failed_jobs,cancelled_jobs,prompt_tokens,cached_tokens,"
        "completion_tokens,act_segments,compute_seconds,artifact_bytes",
        '2026-11-28,"a ""b"", c",1,2,0,0,0,0,0,0,1.5,0',
        "2026-11-29,m,2,4,0,0,0,0,0,0,3.0,0",
    ]
    assert grouped(found, []) == [UsageGroup((), one + one + one)]


@pytest.mark.parametrize("seed", range(4))
async def test_the_tokens_of_a_log_are_those_of_its_events(redis: Redis, seed: int) -> None:
    """The log of a job that is called off may have any events, by any number of workers."""
    rng = random.Random(seed)
    desk = Desk(redis)
    num_tokens = 0
    num_jobs = 12
    for _ in range(num_jobs):
        [job] = await desk.submit(is_streamed=rng.random() < 0.5)
        num_takes = rng.randint(1, 3)
        for epoch in range(1, num_takes + 1):
            [claim] = await desk.take(1, f"w{epoch}")
            index = claim.last_index
            events: list[Event] = [Started(epoch, f"w{epoch}", 7)]
            for _ in range(rng.randint(0, 4)):
                ids = tuple(range(rng.choice((0, 1, 1, 1, 5))))
                events.append(rng.choice((Tokens(ids, "x"), Progress(index))))
            while events:
                part = events[: rng.randint(1, 3)]
                del events[: len(part)]
                assert await desk.say(claim, *part, after=index)
                assert await desk.say(claim, *part, after=index), "the same append again"
                index += len(part)
            if epoch < num_takes:
                await desk.queue().give_back([claim])
        if rng.random() < 0.5:
            await desk.say(claim, Failed("worker_failed", "no"), after=index)
        else:
            await desk.submissions.end([job], Cancelled("client"))
        for event in await desk.events(job):
            if isinstance(event, Tokens):
                num_tokens += len(event.ids)
    found = await counted(desk)
    assert found.pop("completion_tokens") == num_tokens > 0
    assert found.pop("prompt_tokens") == 7 * num_jobs
