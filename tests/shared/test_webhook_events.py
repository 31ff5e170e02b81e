"""The end of a job or a batch is an event, once, put out by the script that ends it."""

from typing import Any, get_args

import pytest
from redis.asyncio import Redis

from shared.errors import BatchEnded
from shared.messages import Cancelled, Done, Failed
from shared.queue import keys
from shared.queue.batches import BatchEnding, Batches, BatchSpec
from shared.queue.evaluation_runs import EvaluationRuns, RunSpec
from shared.queue.janitor import Janitor
from shared.queue.submission import Key
from tests.fixtures.desk import DONE, SAY_HI, Desk

FAILED = Failed("internal_error", "broke")


@pytest.fixture
def desk(redis: Redis) -> Desk:
    return Desk(redis)


async def events(redis: Redis, tag: str = "00") -> list[tuple[str, str, str]]:
    """Return id, type and object of each event in an outbox."""
    found = []
    for _, fields in await redis.xrange(keys.outbox(tag)):
        assert fields[b"tenant"] == b"ann"
        assert int(fields[b"at_ms"]) > 0
        names = (b"event", b"type", b"object")
        event_id, kind, object_id = (fields[name].decode() for name in names)
        found.append((event_id, kind, object_id))
    return found


async def untold(redis: Redis) -> list[bytes]:
    """Return the requests whose end is to be an event yet. What is known of them expires."""
    names = [name async for name in redis.scan_iter("aios:*:untold:*")]
    for name in names:
        assert await redis.pttl(name) > 6 * 86_400_000
    return names


async def submit(desk: Desk, *tasks: Any, **order: Any) -> str:
    request, _ = await desk.request(*tasks, tenant="ann", **({"has_webhook": True} | order))
    return request.id


@pytest.mark.parametrize("end", [DONE, FAILED, Cancelled("client")])
async def test_each_end_that_a_worker_tells_is_an_event(desk: Desk, redis: Redis, end: Any) -> None:
    request_id = await submit(desk)
    [claim] = await desk.take()
    assert await events(redis) == []
    assert len(await untold(redis)) == 1
    assert await desk.say(claim, end)

    kind = {DONE: "job.completed", FAILED: "job.failed"}.get(end, "job.cancelled")
    assert await events(redis) == [(f"evt_{request_id}", kind, request_id)]
    assert await untold(redis) == []

    # The answer to the append was lost, and it is sent again.
    assert await desk.say(claim, end)
    assert len(await events(redis)) == 1


async def test_a_request_without_a_webhook_leaves_nothing(desk: Desk, redis: Redis) -> None:
    await submit(desk, SAY_HI, SAY_HI, has_webhook=False)
    for claim in await desk.take(2):
        assert await desk.say(claim, DONE)
    assert await events(redis) == []
    assert await untold(redis) == []


async def test_the_end_of_a_worker_that_was_taken_over_is_no_event(redis: Redis) -> None:
    """A zombie is fenced: only the end that lands in the log is an event."""
    desk = Desk(redis, lease_s=0)
    request_id = await submit(desk)
    [zombie] = await desk.take(worker="zombie")
    [heir] = await desk.take(worker="heir")
    assert not await desk.say(zombie, FAILED)
    assert await events(redis) == []

    assert await desk.say(heir, DONE)
    assert not await desk.say(zombie, FAILED)
    assert await events(redis) == [(f"evt_{request_id}", "job.completed", request_id)]


async def test_several_jobs_of_one_request_are_one_event_when_the_last_is_done(
    desk: Desk, redis: Redis
) -> None:
    request_id = await submit(desk, SAY_HI, SAY_HI, SAY_HI)
    claims = await desk.take(3)
    for claim in claims[:2]:
        assert await desk.say(claim, DONE)
    assert await events(redis) == []
    assert await desk.say(claims[2], DONE)
    assert await events(redis) == [(f"evt_{request_id}", "job.completed", request_id)]
    assert await untold(redis) == []


async def test_the_first_job_that_fails_ends_the_request(desk: Desk, redis: Redis) -> None:
    """`/v1/jobs` says failed by then, too. The others are no further events."""
    request_id = await submit(desk, SAY_HI, SAY_HI, SAY_HI)
    claims = await desk.take(3)
    assert await desk.say(claims[0], DONE)
    assert await desk.say(claims[1], FAILED)
    assert await desk.say(claims[2], DONE)
    assert await events(redis) == [(f"evt_{request_id}", "job.failed", request_id)]
    assert await untold(redis) == []


async def test_a_cancel_is_an_event_in_any_phase(desk: Desk, redis: Redis) -> None:
    waiting, jobs = await desk.request(SAY_HI, SAY_HI, tenant="ann", has_webhook=True)
    await desk.submissions.end(jobs, Cancelled("client"))
    running, jobs = await desk.request(tenant="ann", has_webhook=True)
    [claim] = await desk.take()
    await desk.submissions.end(jobs, Cancelled("client"))
    assert not await desk.say(claim, DONE)

    expected = [(f"evt_{one.id}", "job.cancelled", one.id) for one in (waiting, running)]
    assert await events(redis) == expected

    # Ended jobs stay as they are, and so do events.
    await desk.submissions.end(jobs, Cancelled("client"))
    assert await events(redis) == expected


async def test_a_job_that_nobody_takes_in_time_is_an_event(desk: Desk, redis: Redis) -> None:
    """The janitor ends it, also after the record of its request has expired."""
    request, [job] = await desk.request(tenant="ann", has_webhook=True)
    times = {"expires_ms": "1", "deadline_ms": "1"}
    await redis.hset(keys.job(job.id), mapping=times)  # type: ignore[misc]
    await redis.delete(keys.request(request.id))
    await Janitor(desk.broker, grace_s=0).jobs()
    assert await events(redis) == [(f"evt_{request.id}", "job.failed", request.id)]


async def test_jobs_that_one_makes_needless_count_as_done(desk: Desk, redis: Redis) -> None:
    """A parked job whose leader settles the question ends with it, in one script."""
    request_id = await submit(desk, SAY_HI, SAY_HI, leaders=(None, 0))
    [claim] = await desk.take(2)
    assert await desk.say(claim, Done("solve", 1, 0, settles=True))
    assert await events(redis) == [(f"evt_{request_id}", "job.completed", request_id)]


async def test_a_request_that_comes_twice_is_one_event(desk: Desk, redis: Redis) -> None:
    key = Key("k", b"body")
    first = await submit(desk, key=key)
    assert await submit(desk, key=key) == first
    [claim] = await desk.take(2)
    assert await desk.say(claim, DONE)
    assert len(await events(redis)) == 1


async def test_each_shard_has_an_outbox_beside_its_jobs(redis: Redis) -> None:
    desk = Desk(redis, shards=4)
    ids = [await submit(desk) for _ in range(12)]
    for claim in await desk.take(12):
        assert await desk.say(claim, DONE)
    found = []
    for shard in desk.broker.shards:
        for event_id, _, object_id in await events(redis, shard):
            assert keys.shard_of(object_id) == shard
            assert event_id == f"evt_{object_id}"
            found.append(object_id)
    assert sorted(found) == sorted(ids)


@pytest.mark.parametrize("ending", get_args(BatchEnding))
async def test_each_end_of_a_batch_is_an_event(desk: Desk, redis: Redis, ending: Any) -> None:
    batches = Batches(desk.broker)
    batch = await batches.create("ann", BatchSpec("/generate", "file", "1h"), window_s=3600)
    claim = await batches.claim()
    assert claim is not None
    assert await batches.begin(claim, 1)
    if ending == "cancelled":
        await batches.cancel("ann", batch.id)
    else:
        assert await batches.finalize(claim, ending)
    assert await events(redis, keys.BATCHES) == []

    assert await batches.end(claim, ending)
    event_id = batch.id.replace("batch_", "evt_")
    expected = [(event_id, f"batch.{ending}", batch.id)]
    assert await events(redis, keys.BATCHES) == expected

    # Neither a script that is sent again nor a cancel that comes too late is another event.
    assert not await batches.end(claim, ending)
    if ending != "cancelled":
        with pytest.raises(BatchEnded):
            await batches.cancel("ann", batch.id)
    assert await events(redis, keys.BATCHES) == expected


async def test_a_process_that_has_lost_its_batch_ends_nothing(desk: Desk, redis: Redis) -> None:
    zombie_batches = Batches(desk.broker, lease_s=0)
    await zombie_batches.create("ann", BatchSpec("/generate", "file", "1h"), window_s=3600)
    zombie = await zombie_batches.claim()
    heir = await zombie_batches.claim()
    assert zombie is not None and heir is not None
    assert not await zombie_batches.end(zombie, "failed")
    assert await events(redis, keys.BATCHES) == []
    assert await zombie_batches.end(heir, "completed")
    [(_, kind, _)] = await events(redis, keys.BATCHES)
    assert kind == "batch.completed"


async def test_the_end_of_an_evaluation_is_no_event(desk: Desk, redis: Redis) -> None:
    """It is kept by the same scripts, and nobody would read its outbox."""
    runs = EvaluationRuns(desk.broker)
    await runs.create(RunSpec(tasks=("maths",)), window_s=60)
    claim = await runs.claim()
    assert claim is not None
    assert await runs.end(claim, error="no model")
    assert await redis.exists(keys.outbox(keys.EVALUATIONS)) == 0
