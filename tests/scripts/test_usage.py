"""`aios usage` on a real Redis: a table, CSV or JSON of what keys have used."""

import asyncio
import csv
import json
from datetime import timedelta

import pytest
from redis.asyncio import Redis

from scripts.cli.aios import main
from shared.messages import Done
from shared.queue.broker import Broker
from shared.queue.usage_ledger import UsageLedger
from tests.fixtures.desk import Desk


async def use(redis: Redis, *, shards: int) -> None:
    """Let two keys of one tenant, and one of another, end jobs of two models."""
    # As the first process of a fleet does, which notes how Redis is divided.
    await Broker(redis, shards).settle()
    for model, tenant, key, tokens in (
        ("m", "ann", "0a", 1000),
        ("n", "ann", "0b", 200),
        ("m", "bob", "0c", 30),
    ):
        desk = Desk(redis, model, shards=shards)
        await desk.submit(tenant=tenant, api_key=key)
        [claim] = await desk.take()
        await desk.say(claim, Done("stop", tokens, 4))


async def aios(redis_url: str, capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    status = await asyncio.to_thread(main, ["usage", "--redis-url", redis_url, *words])
    assert status == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("shards", [1, 4])
async def test_the_table(
    redis: Redis, redis_url: str, capsys: pytest.CaptureFixture[str], shards: int
) -> None:
    await use(redis, shards=shards)
    lines = await aios(redis_url, capsys, "--by", "tenant,model", "--days", "2")
    table = [line.split() for line in lines]
    # The time is some milliseconds, and its column is left out where all are 0.
    assert table[0][:2] == ["tenant", "model"]
    assert "cached" not in lines[0]
    assert [row[:5] for row in table[1:]] == [
        ["ann", "m", "1", "1", "1,000"],
        ["ann", "n", "1", "1", "200"],
        ["bob", "m", "1", "1", "30"],
        ["total", "3", "3", "1,230", "12"],
    ]
    for name, number in (("prompt tokens", "1,000"), ("completion tokens", "4")):
        end = lines[0].index(name) + len(name)
        assert lines[1][:end].endswith(number)

    one = await aios(redis_url, capsys, "--tenant", "ann", "--by", "key", "--days", "2")
    assert [line.split()[0] for line in one] == ["key", "0a", "0b", "total"]


async def test_csv_and_json(
    redis: Redis, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await use(redis, shards=1)
    rows = list(csv.DictReader(await aios(redis_url, capsys, "--csv", "--days", "2")))
    assert [(row["tenant"], row["key"], row["model"]) for row in rows] == [
        ("ann", "0a", "m"),
        ("ann", "0b", "n"),
        ("bob", "0c", "m"),
    ]
    lines = await aios(redis_url, capsys, "--json", "--days", "2")
    for line, row in zip(lines, rows, strict=True):
        assert {name: str(value) for name, value in json.loads(line).items()} == row


async def test_days_without_usage(
    redis: Redis, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await use(redis, shards=1)
    end = await UsageLedger(Broker(redis)).today() - timedelta(days=9)
    [line] = await aios(redis_url, capsys, "--days", "3", "--end", str(end))
    assert line == f"no job has ended from {end - timedelta(days=2)} to {end}"
    [head] = await aios(redis_url, capsys, "--days", "3", "--end", str(end), "--csv")
    assert head.startswith("day,tenant,key,model,requests,")


@pytest.mark.parametrize("words", [["--by", "hour"], ["--by", "day,day"], ["--end", "soon"]])
def test_nonsense_is_refused(words: list[str]) -> None:
    assert main(["usage", *words]) == 2


async def test_no_days(redis_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["usage", "--redis-url", redis_url, "--days", "0"]
    assert await asyncio.to_thread(main, words) == 1
    assert "--days: expected at least 1" in capsys.readouterr().err


def test_without_redis_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["usage", "--redis-url", "redis://127.0.0.1:1"]) == 1
    assert "aios usage" in capsys.readouterr().err
