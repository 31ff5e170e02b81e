"""The broker's benchmarks append each token once, by few commands, and count admitted submits."""

import pytest
from redis.asyncio import Redis

from scripts.bench import submits
from scripts.bench.broker import measure, measure_ends
from shared.queue import keys
from shared.queue.broker import Broker
from shared.queue.submission import Submissions


async def test_every_row_is_there(redis: Redis) -> None:
    report = await measure(redis, num_jobs=8, steps=25, warm_up=5)

    rows = {}
    for line in report.splitlines():
        value = float(line[30:].replace(",", ""))
        assert value > 0, line
        rows[line[:30].strip()] = value
    # HMGET, XADD and HSET for each token; EVALSHA and PUBLISH for the step of 8.
    assert 3.0 <= rows["commands per token"] < 3.5

    lengths = [await redis.xlen(key) async for key in redis.scan_iter("aios:{00}:log:*")]
    assert lengths == [30] * 8


async def test_ends_take_few_commands(redis: Redis) -> None:
    report = await measure_ends(redis, num_jobs=8, num_appends=3)
    [line] = [line for line in report.splitlines() if line.startswith("commands per end")]
    # Five of them count the usage: a counter each, but for zeros.
    assert 19.0 <= float(line[30:]) < 22.0
    assert await redis.zcard(keys.open_jobs("00", "public")) == 0
    assert await redis.xlen(keys.outbox("00")) == 0


async def test_an_event_takes_three_commands_more(redis: Redis) -> None:
    """Each of those jobs is a request of its own, which is counted by a fourth."""

    async def commands(has_webhook: bool) -> float:
        report = await measure_ends(redis, num_jobs=8, num_appends=3, has_webhook=has_webhook)
        return float(report.splitlines()[-1][30:])

    without = await commands(has_webhook=False)
    assert await commands(has_webhook=True) - without == pytest.approx(4, abs=0.3)
    assert await redis.xlen(keys.outbox("00")) == 24


@pytest.mark.parametrize("shards", [1, 4])
async def test_submits_are_let_in_and_refused(redis: Redis, shards: int) -> None:
    submissions = Submissions(Broker(redis, shards))
    for max_jobs, num_queued in ((100, 20), (20, 20)):
        line = await submits.measure(redis, submissions, 20, 4, max_jobs)
        assert line.endswith("us of the front")
        assert (await submissions.depth("bench")).queued == num_queued
