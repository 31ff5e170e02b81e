"""How full the queues are, told exactly: jobs, cost and bytes by class, and how long the oldest has
waited."""

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
    await desk.submit(SAY_HI, SAY_HI, priority="bulk")
    await asyncio.sleep(0.05)
    states, num_dead = await QueueStats(desk.broker).look(["m", "other"])
    state = states["m"]
    assert (state.queued, state.running, num_dead) == (6, 0, 0)
    assert (state.lines["default"].jobs, state.lines["default"].cost) == (4, 4 * cost_of(LONG))
    assert (state.lines["bulk"].jobs, state.lines["bulk"].cost) == (2, 2 * cost_of(SAY_HI))
    assert state.lines["interactive"] == WaitingLine(0, 0, 0.0)
    assert 0.04 < state.lines["bulk"].oldest_s <= state.lines["default"].oldest_s < 10
    assert state.num_bytes > 4 * 400
    assert states["other"].queued == 0


async def test_cost_goes_with_the_jobs_whatever_their_end(redis: Redis) -> None:
    """Taken, called off, given back and found again by the janitor: the sum is what waits, to the
    token."""
    desk = Desk(redis)
    queues = QueueStats(desk.broker)
    jobs = [(await desk.submit(LONG))[0] for _ in range(4)]
    await desk.take()
    await desk.submissions.end([jobs[3]], Cancelled())
    states, _ = await queues.look(["m"])
    assert (states["m"].lines["default"].cost, states["m"].running) == (2 * cost_of(LONG), 1)
    await redis.hset("aios:{00}:depth:m", "cost:default", 7)  # type: ignore[misc]
    await Janitor(desk.broker).depths()
    states, _ = await queues.look(["m"])
    assert states["m"].lines["default"].cost == 2 * cost_of(LONG)


async def test_given_up_jobs_are_counted(redis: Redis) -> None:
    await redis.xadd("aios:{00}:dead", {"job": "x"})
    _, num_dead = await QueueStats(Broker(redis)).look([])
    assert num_dead == 1
