"""Queue statistics are exact: jobs, cost and bytes by class, and the age of the oldest job."""

import asyncio

from redis.asyncio import Redis

from shared.messages import Cancelled, Generate, Sampling
from shared.queue.broker import Broker
from shared.queue.janitor import Janitor
from shared.queue.queue_stats import QueueStats, WaitingLine
from shared.tasks.task_table import cost_of
from tests.fixtures.desk import SAY_HI, Desk

LONG = Generate("x" * 400, Sampling(max_tokens=100, seed=0))


async def test_what_waits_is_told_by_class_over_all_shards(redis: Redis) -> None:
    desk = Desk(redis, shards=3)
    for tenant in ("a", "b", "c", "d"):
        await desk.submit(LONG, tenant=tenant)

    # Shards are read one after the other, so ages that differ by less may come in any order.
    await asyncio.sleep(0.05)
    await desk.submit(SAY_HI, SAY_HI, priority="bulk")
    await asyncio.sleep(0.05)
    states, num_dead = await QueueStats(desk.broker).look(["m", "other"])

    state = states["m"]
    assert state.queued == 6
    assert state.running == 0
    assert num_dead == 0

    default = state.lines["default"]
    assert default.jobs == 4
    assert default.cost == 4 * cost_of(LONG)

    bulk = state.lines["bulk"]
    assert bulk.jobs == 2
    assert bulk.cost == 2 * cost_of(SAY_HI)
    assert state.lines["interactive"] == WaitingLine(0, 0, 0.0)
    assert 0.04 < bulk.oldest_s <= default.oldest_s < 10
    assert state.num_bytes > 4 * 400
    assert states["other"].queued == 0


async def test_cost_goes_with_the_jobs_whatever_their_end(redis: Redis) -> None:
    """The cost of a line is that of the jobs that wait, to the token.

    It goes down when a job is taken or cancelled, and the janitor corrects a wrong sum.
    """
    desk = Desk(redis)
    queues = QueueStats(desk.broker)
    for _ in range(3):
        await desk.submit(LONG)

    last = await desk.submit(LONG)
    await desk.take()
    await desk.submissions.end(last, Cancelled())
    states, _ = await queues.look(["m"])
    assert states["m"].lines["default"].cost == 2 * cost_of(LONG)
    assert states["m"].running == 1

    await redis.hset("aios:{00}:depth:m", "cost:default", 7)  # type: ignore[misc]
    await Janitor(desk.broker).depths()
    states, _ = await queues.look(["m"])
    assert states["m"].lines["default"].cost == 2 * cost_of(LONG)


async def test_given_up_jobs_are_counted(redis: Redis) -> None:
    await redis.xadd("aios:{00}:dead", {"job": "x"})
    _, num_dead = await QueueStats(Broker(redis)).look([])
    assert num_dead == 1
