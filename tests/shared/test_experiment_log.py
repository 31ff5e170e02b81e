"""The log of experiments on a real Redis: each job that ends is noted once, whatever befalls it."""

import pytest
from redis.asyncio import Redis

from shared.messages import Cancelled, Done, Failed, Started, Tokens
from shared.queue import keys
from shared.queue.experiment_log import Assignment, ExperimentLog, JobOutcome
from shared.queue.janitor import Janitor
from shared.queue.submission import Key
from tests.fixtures.desk import DONE, SAY_HI, Desk

EXPERIMENT = "split"
TOKEN = Tokens((5,), "a")
SHARDS = pytest.mark.parametrize("shards", [1, 2])


async def states(desk: Desk) -> dict[str, str]:
    """Return the states of all outcomes by job. Fail where a job has two."""
    outcomes = await ExperimentLog(desk.broker).outcomes(EXPERIMENT)
    by_job = {outcome.job_id: outcome.state for outcome in outcomes}
    assert len(by_job) == len(outcomes)
    return by_job


async def outcome(desk: Desk) -> JobOutcome:
    [only] = await ExperimentLog(desk.broker).outcomes(EXPERIMENT)
    return only


@SHARDS
async def test_a_job_that_is_done(redis: Redis, shards: int) -> None:
    desk = Desk(redis, shards=shards)
    request, [job] = await desk.request(experiment=EXPERIMENT)
    [claim] = await desk.take()
    assert await desk.say(claim, Started(1, "w1", 2), TOKEN)
    assert await states(desk) == {}

    assert await desk.say(claim, Done("stop", 2, 3), after=2)
    assert await desk.say(claim, Done("stop", 2, 3), after=2), "the same append again"

    found = await outcome(desk)
    assert found.job_id == job.id
    assert found.request_id == request.id
    assert found.arm == "m"
    assert found.state == "done"
    assert found.first_ms is not None
    assert 0 <= found.first_ms <= found.total_ms < 60_000
    assert found.cost == 5
    shard = keys.shard_of(job.id)
    assert await redis.pttl(keys.outcomes(shard, EXPERIMENT)) > 29 * 86_400_000


async def test_jobs_of_no_experiment_are_not_noted(redis: Redis) -> None:
    desk = Desk(redis)
    [job] = await desk.submit()
    [claim] = await desk.take()
    await desk.say(claim, DONE)
    assert await redis.keys("aios:{00}:outcomes:*") == []
    assert await redis.keys("aios:{00}:assigned:*") == []
    assert b"experiment" not in await redis.hkeys(keys.job(job.id))  # type: ignore[misc]


async def test_the_ways_to_end_before_a_take_cost_nothing(redis: Redis) -> None:
    desk = Desk(redis)
    [cancelled] = await desk.submit(experiment=EXPERIMENT)
    assert await desk.submissions.end([cancelled], Cancelled("client")) == 1
    assert await desk.submissions.end([cancelled], Cancelled("client")) == 0

    [expired] = await desk.submit(experiment=EXPERIMENT)
    await redis.hset(keys.job(expired.id), "expires_ms", 1)  # type: ignore[misc]
    assert await desk.take() == []

    request, [late] = await desk.request(experiment=EXPERIMENT)
    await redis.hset(keys.job(late.id), "deadline_ms", 1)  # type: ignore[misc]
    for _ in range(2):
        [snapshot] = await desk.requests.look(request)
        assert snapshot.state == "failed"

    ended = {cancelled.id: "cancelled", expired.id: "failed", late.id: "failed"}
    assert await states(desk) == ended
    for found in await ExperimentLog(desk.broker).outcomes(EXPERIMENT):
        assert found.cost == 0
        assert found.first_ms is None


async def test_a_job_that_is_cancelled_as_it_runs_costs_what_was_charged(redis: Redis) -> None:
    desk = Desk(redis)
    [job] = await desk.submit(experiment=EXPERIMENT)
    [claim] = await desk.take()
    await desk.submissions.end([job], Cancelled("client"))
    assert not await desk.say(claim, DONE), "its worker is stale"
    assert await states(desk) == {job.id: "cancelled"}
    cost = await redis.hget(keys.job(job.id), "cost")  # type: ignore[misc]
    assert (await outcome(desk)).cost == int(cost or 0) > 0


async def test_a_job_that_is_taken_over_counts_once(redis: Redis) -> None:
    """The worker that was killed is stale, and what it says late is not noted."""
    desk = Desk(redis, lease_s=0)
    [job] = await desk.submit(experiment=EXPERIMENT)
    [killed] = await desk.take()
    await desk.say(killed, Started(1, "w1", 1), TOKEN)
    [heir] = await desk.take(1, "w2")
    assert heir.epoch == 2
    assert not await desk.say(killed, DONE, after=2)
    assert await states(desk) == {}

    assert await desk.say(heir, Started(2, "w2", 1), DONE)
    assert not await desk.say(killed, DONE, after=2)
    assert await desk.take(1, "w3") == []
    assert await states(desk) == {job.id: "done"}


async def test_a_job_that_kills_its_workers_has_failed_once(redis: Redis) -> None:
    desk = Desk(redis, lease_s=60)
    [job] = await desk.submit(experiment=EXPERIMENT)
    for worker in ("w1", "w2", "w3"):
        [claim] = await desk.take(1, worker)
        await desk.say(claim, Started(claim.epoch, worker, 1))
        await redis.zadd(keys.leases("00", "m"), {job.id: 1})  # its lease has lapsed
    for _ in range(2):
        assert await desk.take(1, "w4") == []
    assert await redis.xlen(keys.dead("00")) == 1
    assert await states(desk) == {job.id: "failed"}


async def test_the_janitor_notes_a_job_that_it_ends_once(redis: Redis) -> None:
    desk = Desk(redis, lease_s=0)
    [job] = await desk.submit(experiment=EXPERIMENT)
    await desk.take()
    await redis.hset(keys.job(job.id), "deadline_ms", 1)  # type: ignore[misc]
    for _ in range(2):
        for sweep in Janitor(desk.broker, grace_s=0).sweeps.values():
            await sweep()
    assert await states(desk) == {job.id: "failed"}


async def test_jobs_that_became_needless_are_no_outcomes(redis: Redis) -> None:
    """A parked job counts once it has run, and one that was settled by another never does."""
    desk = Desk(redis)
    settles = Done("solve", 1, 0, settles=True)
    leaders = (None, 0, 0)
    first, *_ = await desk.submit(*[SAY_HI] * 3, leaders=leaders, experiment=EXPERIMENT)
    [claim] = await desk.take(9)
    await desk.say(claim, settles)
    assert await states(desk) == {first.id: "done"}

    group = await desk.submit(*[SAY_HI] * 3, leaders=leaders, experiment=EXPERIMENT)
    [claim] = await desk.take(9)
    await desk.say(claim, DONE)
    second, third = await desk.take(9)
    await desk.say(second, settles)
    assert not await desk.say(third, DONE), "it was cut off"
    assert await states(desk) == {first.id: "done"} | {job.id: "done" for job in group}


async def test_a_request_that_comes_again_counts_once(redis: Redis) -> None:
    """An idempotency key leads to the first request, whichever arm the second one got."""
    one = Desk(redis, "one")
    other = Desk(redis, "other")
    key = Key("k", b"body")
    request, [job] = await one.request(key=key, experiment=EXPERIMENT)
    again, _ = await other.request(key=key, experiment=EXPERIMENT)
    assert again.id == request.id
    [claim] = await one.take()
    await one.say(claim, Failed("worker_failed", "it broke"))
    assert await states(one) == {job.id: "failed"}
    assert (await outcome(one)).arm == "one"


@SHARDS
async def test_feedback_on_a_request(redis: Redis, shards: int) -> None:
    desk = Desk(redis, shards=shards)
    log = ExperimentLog(desk.broker)
    request, _ = await desk.request(tenant="ann", experiment=EXPERIMENT)
    other, _ = await desk.request(tenant="ann", experiment=EXPERIMENT)
    plain, _ = await desk.request(tenant="ann")

    assigned = Assignment(EXPERIMENT, "m")
    assert await log.rate(request.id, "ann", score=-1.0, comment="no") == assigned
    assert await log.rate(other.id, "ann", score=0.1, comment="") == assigned
    assert await log.rate(request.id, "ann", score=0.3, comment="yes: \u00fc") == assigned
    assert await log.rate(request.id, "bob", score=1.0, comment="") is None
    assert await log.rate(plain.id, "ann", score=1.0, comment="") is None
    assert await log.rate(keys.new_id("00"), "ann", score=1.0, comment="") is None

    given = {}
    for feedback in await log.feedback(EXPERIMENT):
        assert feedback.request_id not in given
        given[feedback.request_id] = (feedback.arm, feedback.score, feedback.comment)
    assert given == {request.id: ("m", 0.3, "yes: \u00fc"), other.id: ("m", 0.1, "")}
    assert await log.feedback("nothing") == []


async def test_feedback_comes_after_the_result_has_expired(redis: Redis) -> None:
    desk = Desk(redis)
    request, [job] = await desk.request(experiment=EXPERIMENT)
    await redis.delete(keys.request(request.id), keys.job(job.id))
    log = ExperimentLog(desk.broker)
    assert await log.rate(request.id, "public", score=1.0, comment="") is not None
    assert 0 < await redis.pttl(keys.assigned(request.id)) <= 86_400_000


async def test_long_logs_are_read_page_by_page(redis: Redis) -> None:
    desk = Desk(redis)
    [job] = await desk.submit(experiment=EXPERIMENT)
    await desk.submissions.end([job], Cancelled("client"))
    stream = keys.outcomes("00", EXPERIMENT)
    [(_, fields)] = await redis.xrange(stream)
    pipe = redis.pipeline(transaction=False)
    for number in range(2500):
        pipe.xadd(stream, fields | {b"job": str(number)})
    await pipe.execute()
    assert len(await states(desk)) == 2501
