"""`aios dead` on a real Redis: what was convicted is listed, shown, tried again and forgotten."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from scripts.cli.aios import main
from shared.messages import Job, Started
from shared.queue import keys
from tests.fixtures.desk import DONE, SAY_HI, Desk

Aios = Callable[..., Any]


@pytest.fixture
def aios(redis_url: str, capsys: pytest.CaptureFixture[str]) -> Aios:
    """Runs `aios dead ...`: its exit status and what it printed, as JSON where it is."""

    async def run(*words: str) -> tuple[int, Any]:
        status = await asyncio.to_thread(main, ["dead", "--redis-url", redis_url, *words])
        out = capsys.readouterr().out
        return status, [json.loads(line) for line in out.splitlines()] if "--json" in words else out

    return run


async def convict(redis: Redis, desk: Desk) -> Job:
    """A job whose third worker died."""
    (job,) = await desk.submit(tenant="acme", priority="bulk")
    for number in range(3):
        (claim,) = await desk.take(1, f"w{number}")
        await desk.say(claim, Started(claim.epoch, f"w{number}", 1))
        await redis.zadd(keys.leases("00", desk.model), {job.id: 1}, xx=True)
    assert await desk.take(1, "w3") == []
    return job


async def test_the_dead_are_listed_and_shown(redis: Redis, aios: Aios) -> None:
    desk = Desk(redis)
    assert await aios("list", "--json") == (0, [])
    first = await convict(redis, desk)
    second = await convict(redis, desk)
    status, (dead, other) = await aios("list", "--json")
    assert (status, dead["id"], other["id"]) == (0, second.id, first.id), "the latest first"
    assert {name: dead[name] for name in ("model", "tenant", "worker", "epochs")} == {
        **{"model": "m", "tenant": "acme", "worker": "w2", "epochs": 3}
    }
    _, (shown,) = await aios("show", first.id, "--json")
    assert (shown["task"]["type"], shown["task"]["prompt"]) == ("generate", "hi")
    assert [event["type"] for event in shown["log"]] == ["started"] * 3 + ["failed"]
    assert (
        first.id in (await aios("list"))[1]
        and "worker_crashed" in (await aios("show", first.id))[1]
    )
    week_ms = 7 * 86_400_000
    assert [
        await redis.pttl(name) > week_ms - 60_000
        for name in (keys.job(first.id), keys.log(first.id))
    ] == [*(True, True)]


async def test_one_is_tried_again_as_a_new_job(redis: Redis, aios: Aios) -> None:
    desk = Desk(redis)
    job = await convict(redis, desk)
    status, (made,) = await aios("retry", job.id, "--json")
    assert status == 0 and made["id"] != job.id
    (claim,) = await desk.take(5, is_empty=False)
    assert (claim.job.id, claim.job.task, claim.job.tenant, claim.job.priority) == (
        made["id"],
        SAY_HI,
        "acme",
        "bulk",
    )
    assert (claim.epoch, claim.is_alone) == (1, False), "its deaths are forgotten"
    assert await desk.say(claim, DONE)
    assert await aios("list", "--json") == (0, [])
    assert not await redis.exists(keys.job(job.id), keys.log(job.id))


async def test_a_retry_that_was_cut_off_queues_nothing_twice(redis: Redis, aios: Aios) -> None:
    desk = Desk(redis)
    job = await convict(redis, desk)
    entries = await redis.xrange(keys.dead("00"))
    kept = await redis.dump(keys.job(job.id))
    (made,) = (await aios("retry", job.id, "--json"))[1]
    await redis.xadd(keys.dead("00"), entries[0][1])  # as if it had not come to this
    await redis.restore(keys.job(job.id), 0, kept)
    assert (await aios("retry", job.id, "--json"))[1] == [made]
    assert await desk.counts() == (1, 0)


async def test_one_is_dropped_with_its_keys(redis: Redis, aios: Aios) -> None:
    desk = Desk(redis)
    job = await convict(redis, desk)
    other = await convict(redis, desk)
    assert await aios("drop", job.id) == (0, "")
    assert [dead["id"] for dead in (await aios("list", "--json"))[1]] == [other.id]
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
    assert (
        await asyncio.to_thread(main, ["dead", "list", "--redis-url", "redis://127.0.0.1:1/0"]) == 1
    )
    assert "aios dead:" in capsys.readouterr().err
