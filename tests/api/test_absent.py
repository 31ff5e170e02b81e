"""Work for a model whose workers have just gone waits for the next one. It is refused if none was
there lately."""

import asyncio

import httpx
import pytest
from redis.asyncio import Redis

from shared.fleet.presence import Presence
from shared.queue import keys
from shared.settings.types import MOST_ABSENT_S
from tests.fixtures.api.echo_worker import EchoWorker, announce
from tests.fixtures.api.fronts import in_memory, live
from tests.fixtures.desk import Desk
from tests.fixtures.polling import until

ASK = {"prompts": ["a b"]}
LATER = {"Prefer": "respond-async"}


async def leave_ago(redis: Redis, absent_s: float = 0.0) -> None:
    """Let a worker have served the model, and have left so long ago."""
    await announce(redis, "echo")
    await Presence(redis).leave("idle")
    await redis.pexpire(keys.last_served("echo"), int(1000 * (MOST_ABSENT_S - absent_s)))


async def test_it_waits_in_line_and_is_done_by_the_next_one(redis: Redis, redis_url: str) -> None:
    await leave_ago(redis, absent_s=20)

    async with live(redis) as (client, _):
        assert (await client.get("/readyz")).status_code == 200, "new work is taken"
        waiting = asyncio.create_task(client.post("/generate", json=ASK))
        await until(lambda: has_queued(redis, 1), "the first waits")
        submitted = await client.post("/generate", json=ASK, headers=LATER)
        location = submitted.headers["Location"]
        await until(lambda: has_queued(redis, 2), "both wait")

        job = (await client.get(location)).json()
        assert job["state"] == "queued"
        assert job["queue_position"] == 2
        assert job["starts_in_s"] is None

        async with EchoWorker(redis_url):
            assert (await waiting).json()["completions"] == ["a b"]
            await until(lambda: is_done(client, location), "the other one is done, too")


@pytest.mark.parametrize(
    ("absent_s", "grace_s"), [(40, 30.0), (0, 0.0), (MOST_ABSENT_S - 1, 86_400.0)]
)
async def test_who_has_been_away_for_longer_is_not_waited_for(
    redis: Redis, absent_s: float, grace_s: float
) -> None:
    await leave_ago(redis, absent_s)
    async with in_memory(redis, absent_grace_s=grace_s) as client:
        refused = await client.post("/generate", json=ASK)
        assert (refused.status_code, refused.headers["X-Reject-Reason"]) == (503, "no_worker")
        assert (await client.get("/readyz")).status_code == 503


async def test_nobody_comes(redis: Redis) -> None:
    """Work that no worker takes ends by its time in the queue."""
    await leave_ago(redis)
    async with in_memory(redis, queue_timeout_s=0.3) as client:
        answer = await client.post("/generate", json=ASK)

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "queue_timeout")


async def has_queued(redis: Redis, count: int) -> bool:
    return (await Desk(redis).submissions.depth("echo")).queued == count


async def is_done(client: httpx.AsyncClient, location: str) -> bool:
    return bool((await client.get(location)).json()["state"] == "done")
