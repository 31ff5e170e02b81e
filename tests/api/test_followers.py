"""Several followers of one run: it is cancelled when the last one has left, and not before."""

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
from tests.fixtures.redis_server import patient

STREAM = {"prompt": "a b c", "stream": True}
KEY = {"Idempotency-Key": "k"}


@pytest.fixture
async def fronts(
    redis: Redis, redis_url: str
) -> AsyncIterator[tuple[httpx.AsyncClient, httpx.AsyncClient]]:
    """Yield clients of two fronts, each of which has connections of its own to Redis."""
    other_redis = patient(connect(redis_url))
    async with live(redis) as (one, _), live(other_redis) as (two, _):
        yield one, two
    await other_redis.aclose()


async def open_stream(
    client: httpx.AsyncClient, how: str = "key", last_id: str = ""
) -> tuple[httpx.Response, AsyncIterator[Frame], str]:
    """Open a stream and wait for its first frame. Return the answer, the reader of the rest, and
    the frame's id."""
    if how == "key":
        request = client.build_request("POST", "/v1/completions", json=STREAM, headers=KEY)
    elif how == "cursor":
        cursor = {"Last-Event-ID": last_id}
        request = client.build_request("POST", "/v1/completions", json=STREAM, headers=cursor)
    else:
        request = client.build_request("GET", events_path(last_id))

    answer = await client.send(request, stream=True)
    reader = read(answer.aiter_lines())
    opening = await anext(reader)
    return answer, reader, opening.id


def events_path(last_id: str) -> str:
    """Return the path of the stream that a frame's id belongs to."""
    id = last_id.partition(".")[0]
    return f"/v1/jobs/{id}/events"


async def is_state(redis: Redis, expected: str) -> bool:
    """Return whether the only job is in this state."""
    return await states(redis) == [expected]


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

    # The readers are kept: one that is garbage collected closes its connection.
    first, _first_reader, last_id = await open_stream(one)
    second, _second_reader, _ = await open_stream(two, how, last_id)
    await until(lambda: has_followers(redis, 2), "both follow")

    leaver = second
    stayer = first
    if first_leaves:
        leaver = first
        stayer = second

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
    waiting = asyncio.create_task(one.post("/v1/completions", json={"prompt": "a b c"}))
    await until(lambda: has_followers(redis, 1), "it is taken")

    # The key of a request ends with its id.
    [name] = await redis.keys("aios:{00}:request:*")
    id = name.decode()[-34:]
    reading = await two.send(two.build_request("GET", events_path(id)), stream=True)
    await until(lambda: has_followers(redis, 2), "both follow")
    await reading.aclose()
    await until(lambda: has_followers(redis, 1), "the reader has left")

    worker.gate.set()
    assert (await waiting).json()["choices"][0]["text"] == "a b c"


@pytest.mark.parametrize("headers", [{"Prefer": "respond-async"}, {"Prefer": "wait=1"}])
async def test_who_asks_again_later_does_not_follow(
    redis: Redis, worker: EchoWorker, headers: dict[str, str]
) -> None:
    """A caller that got the job's address does not keep the run alive."""
    worker.gate.clear()
    body = {"prompt": "a b c"}

    async with live(redis) as (client, _):
        waiting = asyncio.create_task(client.post("/v1/completions", json=body, headers=KEY))
        await until(lambda: has_followers(redis, 1), "it is taken")

        again = await client.post("/v1/completions", json=body, headers=KEY | headers)
        assert again.status_code == 202
        await until(lambda: has_followers(redis, 1), "the first follows alone")

        waiting.cancel()
        await until(lambda: is_state(redis, "cancelled"), "the last has left")


async def test_a_killed_front_leaves_a_run_that_goes_on(
    redis: Redis, redis_url: str, worker: EchoWorker
) -> None:
    """A killed front's follower is never removed.

    A client that goes on at another front and leaves there ends nothing, and the run is done.
    """
    worker.gate.clear()

    async with live(redis) as (two, _):
        async with process(redis_url) as (front, one):
            _, _, last_id = await open_stream(one)
            front.kill()

        answer, _reader, _ = await open_stream(two, "cursor", last_id)
        await until(lambda: has_followers(redis, 2), "the second follows")
        await answer.aclose()
        await until(lambda: has_followers(redis, 1), "the second has left")

        worker.gate.set()
        await until(lambda: is_state(redis, "done"), "the run ends by itself")
        whole = frames(await two.get(events_path(last_id)))

    assert "".join(frame.text for frame in whole) == "a b c"
    # The request expires, although a follower is still in it.
    [name] = await redis.keys("aios:{00}:request:*")
    assert await redis.pttl(name) > 0


async def test_an_expired_request_is_not_made_again_by_following_it(redis: Redis) -> None:
    desk = Desk(redis)
    request, [job] = await desk.request()
    await redis.delete(keys.request(request.id))

    with pytest.raises(JobNotFound):
        await desk.requests.follow(request)
    await desk.requests.leave(request.id, "f")
    num_ended = await desk.submissions.end([job], Cancelled("client"), left=(request.id, "f"))

    assert num_ended == 1
    assert not await redis.exists(keys.request(request.id))
