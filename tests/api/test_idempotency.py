"""Idempotency-Key: requests with one key and one body are one, whichever front they reach and
when."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from shared.fleet.presence import Presence
from shared.messages import LoadFailure, WorkerInfo
from shared.queue import keys
from shared.queue.broker import connect
from tests.fixtures.api.echo_worker import EchoWorker
from tests.fixtures.api.errors import read_error
from tests.fixtures.api.frames import Frame, frames, read
from tests.fixtures.api.fronts import has_followers, in_memory, live
from tests.fixtures.polling import ALL_DAY_S, until
from tests.fixtures.posts import POSTS
from tests.fixtures.redis_server import patient

KEY = {"Idempotency-Key": "an order, No. 7"}


async def open_stream(client: httpx.AsyncClient, body: dict[str, Any]) -> AsyncIterator[Frame]:
    """Send a completion request with the key and return the reader of its frames."""
    request = client.build_request("POST", "/v1/completions", json=body, headers=KEY)
    answer = await client.send(request, stream=True)
    return read(answer.aiter_lines())


@pytest.mark.parametrize(("path", "body"), POSTS)
async def test_the_same_answer_again(
    client: httpx.AsyncClient, able: EchoWorker, path: str, body: dict[str, Any]
) -> None:
    """Seeds, ids, times and frames are the same, and there is one job in all."""
    first = await client.post(path, json=body, headers=KEY)
    second = await client.post(path, json=body, headers=KEY)

    assert first.status_code == second.status_code == 200
    assert first.content == second.content
    assert first.headers["X-Job-Id"] == second.headers["X-Job-Id"]
    assert len(able.jobs) == 1


async def test_another_body_or_path_is_a_conflict(
    client: httpx.AsyncClient, worker: EchoWorker
) -> None:
    body = {"prompts": ["a"]}
    assert (await client.post("/generate", json=body, headers=KEY)).status_code == 200

    for path, other_body in (("/generate", {"prompts": ["b"]}), ("/loglikelihood_rolling", body)):
        answer = await client.post(path, json=other_body, headers=KEY)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (409, "idempotency_conflict")
        assert error["field"] == "Idempotency-Key"
        assert answer.headers["X-Reject-Reason"] == "idempotency_conflict"

    assert len(worker.jobs) == 1


async def test_two_fronts_at_once_and_many_callers(
    redis: Redis, redis_url: str, worker: EchoWorker
) -> None:
    """While the job runs, every caller waits for it and gets its answer."""
    worker.gate.clear()
    other_redis = patient(connect(redis_url))
    body = {"prompts": ["a b c"]}

    async with in_memory(redis) as one, in_memory(other_redis) as two:
        waiting = []
        for client in (one, two) * 8:
            request = client.post("/generate", json=body, headers=KEY)
            waiting.append(asyncio.create_task(request))
        await until(lambda: has_followers(redis, 16), "all have found the request")
        worker.gate.set()
        first, *others = await asyncio.gather(*waiting)
    await other_redis.aclose()

    assert first.status_code == 200
    assert len(others) == 15
    for answer in others:
        assert answer.status_code == 200
        assert answer.content == first.content
    assert len(worker.jobs) == 1


async def test_a_stream_is_replayed_in_mid_run(
    redis: Redis, redis_url: str, worker: EchoWorker
) -> None:
    worker.gate.clear()
    other_redis = patient(connect(redis_url))
    body = {"prompt": "a b c d", "stream": True, "logprobs": 2, "n": 2}

    async with live(redis) as (one, _), live(other_redis) as (two, _):
        first_reader = await open_stream(one, body)
        second_reader = await open_stream(two, body)

        # Both streams have begun before the worker goes on.
        first = [await anext(first_reader), await anext(first_reader)]
        second = [await anext(second_reader), await anext(second_reader)]
        worker.gate.set()

        async for frame in first_reader:
            first.append(frame)
        async for frame in second_reader:
            second.append(frame)
        again = frames(await two.post("/v1/completions", json=body, headers=KEY))
    await other_redis.aclose()

    assert first == second == again
    assert any(frame.text for frame in again)
    assert len(worker.jobs) == 1


async def test_a_key_outlives_the_result_and_says_so(redis: Redis, worker: EchoWorker) -> None:
    async with in_memory(redis) as client:
        answer = await client.post("/generate", json={"prompts": ["a"]}, headers=KEY)
        await redis.delete(keys.request(answer.headers["X-Job-Id"]))
        again = await client.post("/generate", json={"prompts": ["a"]}, headers=KEY)

    assert (again.status_code, again.json()["error"]["code"]) == (409, "idempotency_conflict")
    assert "expired" in again.json()["error"]["message"]


async def test_a_key_is_forgotten_in_time(redis: Redis, worker: EchoWorker) -> None:
    async with in_memory(redis, idempotency_ttl_s=5) as client:
        await client.post("/generate", json={"prompts": ["a"]}, headers=KEY)
        [name] = await redis.keys("aios:{00}:key:*")
        assert 0 < await redis.pttl(name) <= 5000
        assert b"order" not in name, "a key may be anything, so its hash is what is kept"

        # As if it had expired: another body is no conflict.
        await redis.delete(name)
        answer = await client.post("/generate", json={"prompts": ["b"]}, headers=KEY)
        assert answer.status_code == 200


@pytest.mark.parametrize(("path", "body"), POSTS)
async def test_the_result_is_there_when_no_worker_is(
    redis: Redis, able: EchoWorker, path: str, body: dict[str, Any]
) -> None:
    async with in_memory(redis) as client:
        first = await client.post(path, json=body, headers=KEY)

    await Presence(redis).leave("w1")

    async with in_memory(redis, absent_grace_s=0) as client:
        again = await client.post(path, json=body, headers=KEY)
        assert (again.status_code, again.content) == (200, first.content)

        conflict = await client.post(path, json=body | {"model": "echo"}, headers=KEY)
        assert conflict.status_code == 409
        assert read_error(conflict).code in ("idempotency_conflict", "validation")

        for headers in ({}, {"Idempotency-Key": "another"}):
            new = await client.post(path, json=body, headers=headers)
            assert new.status_code == 503
            assert read_error(new).code in ("no_worker", "overloaded")

        later = await client.post(path, json=body, headers=KEY | {"Prefer": "respond-async"})
        assert (later.status_code, later.json()["state"]) == (202, "done")


async def test_the_result_is_there_when_its_model_cannot_be_loaded_again(
    redis: Redis, worker: EchoWorker
) -> None:
    """The model was unloaded after the work was done; new work is refused with the reason."""
    body = {"prompts": ["a"]}
    async with in_memory(redis) as client:
        first = await client.post("/generate", json=body, headers=KEY)

    failures = {worker.model.id: LoadFailure("its files are gone.")}
    info = WorkerInfo("w1", "ready", (worker.model,), failures=failures)
    await Presence(redis, ttl_s=ALL_DAY_S).announce(info)

    async with in_memory(redis) as client:
        again = await client.post("/generate", json=body, headers=KEY)
        assert (again.status_code, again.content) == (200, first.content)
        new = await client.post("/generate", json=body)
        assert (new.status_code, read_error(new).code) == (503, "model_failed")


async def test_what_runs_is_found_when_its_worker_seems_gone(
    redis: Redis, redis_url: str, worker: EchoWorker
) -> None:
    """The job is found by its key, and by the id of a frame that was seen."""
    worker.gate.clear()
    other_redis = patient(connect(redis_url))
    body = {"prompt": "a b c", "stream": True}

    async with in_memory(redis) as one, in_memory(other_redis) as two:
        first = asyncio.create_task(one.post("/v1/completions", json=body, headers=KEY))
        await until(lambda: has_followers(redis, 1), "it is taken")
        await Presence(redis).leave("w1")
        second = asyncio.create_task(two.post("/v1/completions", json=body, headers=KEY))
        await until(lambda: has_followers(redis, 2), "it is found")
        worker.gate.set()

        whole = frames(await first)
        assert frames(await second) == whole

        last_seen = {"Last-Event-ID": whole[0].id}
        resumed = await two.post("/v1/completions", json=body, headers=last_seen)
        assert frames(resumed) == whole[1:]

    await other_redis.aclose()


async def test_a_front_that_drains_tells_where_the_work_of_a_key_is(
    redis: Redis, worker: EchoWorker
) -> None:
    worker.gate.clear()
    body = {"prompts": ["a b"]}

    async with live(redis) as (client, front):
        submitted = await client.post(
            "/generate", json=body, headers=KEY | {"Prefer": "respond-async"}
        )
        front.draining.set()
        front.dispatcher.drain()
        again = await client.post("/generate", json=body, headers=KEY)

    assert (again.status_code, again.json()["error"]["code"]) == (503, "draining")
    assert again.headers["Location"] == submitted.headers["Location"]
