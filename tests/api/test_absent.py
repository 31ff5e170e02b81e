"""Work for a model whose workers have just gone waits for the next one; where none was there
lately, it is refused."""

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


async def gone(redis: Redis, absent_s: float = 0.0) -> None:
    """A worker has served the model, and left so long ago."""
    await announce(redis, "echo")
    await Presence(redis).leave("idle")
    await redis.pexpire(keys.last_served("echo"), int(1000 * (MOST_ABSENT_S - absent_s)))


async def test_it_waits_in_line_and_is_done_by_the_next_one(redis: Redis, redis_url: str) -> None:
    await gone(redis, absent_s=20)
    async with live(redis) as (client, _):
        assert (await client.get("/readyz")).status_code == 200, "new work is taken"
        asked = asyncio.create_task(client.post("/generate", json=ASK))
        await until(lambda: _waits(redis, 1), "the first waits")
        later = await client.post("/generate", json=ASK, headers=LATER)
        await until(lambda: _waits(redis, 2), "both wait")
        told = (await client.get(later.headers["Location"])).json()
        assert (told["state"], told["queue_position"], told["starts_in_s"]) == ("queued", 2, None)
        async with EchoWorker(redis_url):
            assert (await asked).json()["completions"] == ["a b"]
            await until(
                lambda: _is_done(client, later.headers["Location"]), "the other one is done, too"
            )


@pytest.mark.parametrize(
    ("absent_s", "grace_s"), [(40, 30.0), (0, 0.0), (MOST_ABSENT_S - 1, 86_400.0)]
)
async def test_who_has_been_away_for_longer_is_not_waited_for(
    redis: Redis, absent_s: float, grace_s: float
) -> None:
    await gone(redis, absent_s)
    async with in_memory(redis, absent_grace_s=grace_s) as client:
        refused = await client.post("/generate", json=ASK)
        assert (refused.status_code, refused.headers["X-Reject-Reason"]) == (503, "no_worker")
        assert (await client.get("/readyz")).status_code == 503


async def test_nobody_comes(redis: Redis) -> None:
    """It ends by its time in the queue, as any work does that nobody takes."""
    await gone(redis)
    async with in_memory(redis, queue_timeout_s=0.3) as client:
        answer = await client.post("/generate", json=ASK)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "queue_timeout")


async def _waits(redis: Redis, count: int) -> bool:
    return (await Desk(redis).submissions.depth("echo")).queued == count


async def _is_done(client: httpx.AsyncClient, location: str) -> bool:
    return bool((await client.get(location)).json()["state"] == "done")
