"""The broker's benchmark runs and counts what it says: each token appended once, by few commands."""

from redis.asyncio import Redis

from scripts.bench.broker import measure


async def test_every_row_is_there(redis: Redis) -> None:
    report = await measure(redis, num_jobs=8, steps=25, warm_up=5)
    rows = {line[:30].strip(): float(line[30:].replace(",", "")) for line in report.splitlines()}
    assert all(value > 0 for value in rows.values())
    assert 4.0 <= rows["commands per token"] < 4.5
    lengths = [await redis.xlen(key) async for key in redis.scan_iter("aios:{00}:log:*")]
    assert lengths == [30] * 8
