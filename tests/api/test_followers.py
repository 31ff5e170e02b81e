"""Several who follow one run: it ends for want of a follower when the last one has left, and not
before."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from redis.asyncio import Redis

from shared.errors import JobNotFound
from shared.messages import Cancelled
from shared.queue import keys
from shared.queue.broker import connect
from tests.fixtures.api.echo_worker import EchoWorker
from tests.fixtures.api.frames import Frame, frames, read
from tests.fixtures.api.fronts import has_followers, live, process, states
from tests.fixtures.desk import Desk
from tests.fixtures.polling import until

STREAM = {"prompt": "a b c", "stream": True}
KEY = {"Idempotency-Key": "k"}


@pytest.fixture
async def fronts(
    redis: Redis, redis_url: str
) -> AsyncIterator[tuple[httpx.AsyncClient, httpx.AsyncClient]]:
    """Two, each with connections of its own."""
    other = connect(redis_url)
    async with live(redis) as (one, _), live(other) as (two, _):
        yield one, two
    await other.aclose()


async def begun(
    client: httpx.AsyncClient, how: str = "key", last_id: str = ""
) -> tuple[httpx.Response, AsyncIterator[Frame], str]:
    """A stream whose opening has come, the rest of it, and the opening's id."""
    headers = {"key": KEY, "cursor": {"Last-Event-ID": last_id}, "events": {}}[how]
    id = last_id.partition(".")[0]
    request = (
        client.build_request("GET", f"/v1/jobs/{id}/events", headers=headers)
        if how == "events"
        else client.build_request("POST", "/v1/completions", json=STREAM, headers=headers)
    )
    answer = await client.send(request, stream=True)
    coming = read(answer.aiter_lines())
    return answer, coming, (await anext(coming)).id


@pytest.mark.parametrize("first_leaves", [True, False])
@pytest.mark.parametrize("how", ["key", "cursor", "events"])
async def test_the_run_ends_when_the_last_follower_leaves(
    redis: Redis,
    worker: EchoWorker,
    fronts: tuple[httpx.AsyncClient, httpx.AsyncClient],
    how: str,
    first_leaves: bool,
) -> None:
    worker.gate.clear()
    one, two = fronts
    first, _one, last_id = await begun(one)
    second, _two, _ = await begun(two, how, last_id)
    await until(lambda: has_followers(redis, 2), "both follow")
    leaver, stayer = (first, second) if first_leaves else (second, first)
    await leaver.aclose()
    await until(lambda: has_followers(redis, 1), "one has left")
    await until(lambda: is_state(redis, "running"), "the job runs")
    await stayer.aclose()
    await until(lambda: is_state(redis, "cancelled"), "the last has left")


async def test_a_sync_caller_keeps_its_answer_when_a_reader_leaves(
    redis: Redis, worker: EchoWorker, fronts: tuple[httpx.AsyncClient, httpx.AsyncClient]
) -> None:
    worker.gate.clear()
    one, two = fronts
    asking = asyncio.create_task(one.post("/v1/completions", json={"prompt": "a b c"}))
    await until(lambda: has_followers(redis, 1), "it is taken")
    [name] = await redis.keys("aios:{00}:request:*")
    answer = await two.send(
        two.build_request("GET", f"/v1/jobs/{name.decode()[-34:]}/events"), stream=True
    )
    await until(lambda: has_followers(redis, 2), "both follow")
    await answer.aclose()
    await until(lambda: has_followers(redis, 1), "the reader has left")
    worker.gate.set()
    assert (await asking).json()["choices"][0]["text"] == "a b c"


@pytest.mark.parametrize("headers", [{"Prefer": "respond-async"}, {"Prefer": "wait=1"}])
async def test_who_asks_again_later_does_not_follow(
    redis: Redis, worker: EchoWorker, headers: dict[str, str]
) -> None:
    """It was told where to ask, so it is not the one to keep the run alive."""
    worker.gate.clear()
    body = {"prompt": "a b c"}
    async with live(redis) as (client, _):
        asking = asyncio.create_task(client.post("/v1/completions", json=body, headers=KEY))
        await until(lambda: has_followers(redis, 1), "it is taken")
        again = await client.post("/v1/completions", json=body, headers=KEY | headers)
        assert again.status_code == 202
        await until(lambda: has_followers(redis, 1), "the first follows alone")
        asking.cancel()
        await until(lambda: is_state(redis, "cancelled"), "the last has left")


async def test_a_killed_front_leaves_a_run_that_goes_on(
    redis: Redis, redis_url: str, worker: EchoWorker
) -> None:
    """Its follower is never struck off: who goes on at another front and leaves ends nothing, and
    the run is done."""
    worker.gate.clear()
    async with live(redis) as (two, _):
        async with process(redis_url) as (front, one):
            _, _, last_id = await begun(one)
            front.kill()
        answer, _coming, _ = await begun(two, "cursor", last_id)
        await until(lambda: has_followers(redis, 2), "the second follows")
        await answer.aclose()
        await until(lambda: has_followers(redis, 1), "the second has left")
        worker.gate.set()
        await until(lambda: is_state(redis, "done"), "the run ends by itself")
        told = frames(await two.get(f"/v1/jobs/{last_id.partition('.')[0]}/events"))
    assert "".join(frame.text for frame in told) == "a b c"
    [name] = await redis.keys("aios:{00}:request:*")
    assert await redis.pttl(name) > 0


async def test_an_expired_request_is_not_made_again_by_following_it(redis: Redis) -> None:
    desk = Desk(redis)
    request, [job] = await desk.request()
    await redis.delete(keys.request(request.id))
    with pytest.raises(JobNotFound):
        await desk.requests.follow(request)
    await desk.requests.leave(request.id, "f")
    assert await desk.submissions.end([job], Cancelled("client"), left=(request.id, "f")) == 1
    assert not await redis.exists(keys.request(request.id))


async def is_state(redis: Redis, expected: str) -> bool:
    """Whether the only job is in this state."""
    return await states(redis) == [expected]
