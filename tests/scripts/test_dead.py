"""`aios dead` on a real Redis lists, shows, retries and drops convicted jobs."""

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from scripts.cli.aios import main
from shared.queue import keys
from tests.fixtures.dead_letters import convict
from tests.fixtures.desk import DONE, SAY_HI, Desk

Aios = Callable[..., Any]


@pytest.fixture
def aios(redis_url: str, capsys: pytest.CaptureFixture[str]) -> Aios:
    """Run `aios dead ...` and return its exit status and its output.

    With `--json` each line of the output is parsed.
    """

    async def run(*words: str) -> tuple[int, Any]:
        status = await asyncio.to_thread(main, ["dead", "--redis-url", redis_url, *words])
        out = capsys.readouterr().out
        if "--json" in words:
            return status, [json.loads(line) for line in out.splitlines()]
        return status, out

    return run


async def test_the_dead_are_listed_and_shown(redis: Redis, aios: Aios) -> None:
    desk = Desk(redis)
    assert await aios("list", "--json") == (0, [])
    first = await convict(redis, desk)
    second = await convict(redis, desk)

    # The latest comes first.
    status, (dead, other) = await aios("list", "--json")
    assert status == 0
    assert other["id"] == first.id
    assert dead["id"] == second.id
    assert dead["model"] == "m"
    assert dead["tenant"] == "acme"
    assert dead["worker"] == "w2"
    assert dead["epochs"] == 3

    _, (shown,) = await aios("show", first.id, "--json")
    assert shown["task"]["type"] == "generate"
    assert shown["task"]["prompt"] == "hi"
    event_types = [event["type"] for event in shown["log"]]
    assert event_types == ["started", "started", "started", "failed"]

    assert first.id in (await aios("list"))[1]
    assert "worker_crashed" in (await aios("show", first.id))[1]

    week_ms = 7 * 86_400_000
    for key in (keys.job(first.id), keys.log(first.id)):
        assert await redis.pttl(key) > week_ms - 60_000


async def test_a_terminal_gets_a_table(
    redis: Redis, aios: Aios, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "120")
    assert await aios("list") == (0, "no dead jobs\n")
    job = await convict(redis, Desk(redis))
    title, row = (await aios("list"))[1].splitlines()
    assert title.split() == ["ID", "AT", "MODEL", "TENANT", "WORKERS", "LAST", "WORKER"]
    assert row.split()[0] == job.id
    assert row.split()[2:] == ["m", "acme", "3", "w2"]


async def test_one_is_tried_again_as_a_new_job(redis: Redis, aios: Aios) -> None:
    desk = Desk(redis)
    job = await convict(redis, desk)

    status, (retried,) = await aios("retry", job.id, "--json")
    assert status == 0
    assert retried["id"] != job.id

    (claim,) = await desk.take(5, is_empty=False)
    assert claim.job.id == retried["id"]
    assert claim.job.task == SAY_HI
    assert claim.job.tenant == "acme"
    assert claim.job.priority == "bulk"
    # The deaths of its workers are forgotten.
    assert claim.epoch == 1
    assert claim.is_alone is False

    assert await desk.say(claim, DONE)
    assert await aios("list", "--json") == (0, [])
    assert not await redis.exists(keys.job(job.id), keys.log(job.id))


async def test_a_retry_that_was_cut_off_queues_nothing_twice(redis: Redis, aios: Aios) -> None:
    desk = Desk(redis)
    job = await convict(redis, desk)
    entries = await redis.xrange(keys.dead("00"))
    kept = await redis.dump(keys.job(job.id))
    _, (retried,) = await aios("retry", job.id, "--json")

    # The entry and the job come back, as if the retry had been cut off before their removal.
    await redis.xadd(keys.dead("00"), entries[0][1])
    await redis.restore(keys.job(job.id), 0, kept)

    _, again = await aios("retry", job.id, "--json")
    assert again == [retried]
    assert await desk.counts() == (1, 0)


async def test_one_is_dropped_with_its_keys(redis: Redis, aios: Aios) -> None:
    desk = Desk(redis)
    job = await convict(redis, desk)
    other = await convict(redis, desk)

    assert await aios("drop", job.id) == (0, "")

    _, (dead,) = await aios("list", "--json")
    assert dead["id"] == other.id
    assert not await redis.exists(keys.job(job.id), keys.log(job.id))


@pytest.mark.parametrize("command", ["show", "retry", "drop"])
async def test_the_living_and_the_unknown_are_left_alone(
    redis: Redis, aios: Aios, command: str
) -> None:
    (job,) = await Desk(redis).submit()
    for name in (job.id, keys.new_id("00"), keys.new_id("fe"), "nonsense", "00*"):
        assert (await aios(command, name))[0] == 1
    assert await Desk(redis).counts() == (1, 0)


async def test_without_a_redis_it_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AIOS_REDIS_URL", raising=False)
    assert await asyncio.to_thread(main, ["dead", "list"]) == 2
    assert "redis_url" in capsys.readouterr().err

    away = ["--redis-url", "redis://127.0.0.1:1/0"]
    assert await asyncio.to_thread(main, ["dead", "list", *away]) == 1
    assert "aios dead:" in capsys.readouterr().err
