"""Idempotency-Key: requests with one key and one body are one, whichever front they reach and
when."""

import asyncio
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from shared.fleet.presence import Presence
from shared.messages import LoadFailure, WorkerInfo
from shared.queue import keys
from shared.queue.broker import connect
from tests.fixtures.api.echo_worker import EchoWorker
from tests.fixtures.api.frames import frames, read
from tests.fixtures.api.fronts import has_followers, in_memory, live
from tests.fixtures.polling import ALL_DAY_S, until
from tests.fixtures.posts import POSTS

KEY = {"Idempotency-Key": "an order, No. 7"}


@pytest.mark.parametrize(("path", "body"), POSTS)
async def test_the_same_answer_again(
    client: httpx.AsyncClient, able: EchoWorker, path: str, body: dict[str, Any]
) -> None:
    """Seeds, ids, times and frames included; one job in all."""
    first, second = [await client.post(path, json=body, headers=KEY) for _ in range(2)]
    assert first.status_code == second.status_code == 200
    assert first.content == second.content
    assert first.headers["X-Job-Id"] == second.headers["X-Job-Id"]
    assert len(able.jobs) == 1


async def test_another_body_or_path_is_a_conflict(
    client: httpx.AsyncClient, worker: EchoWorker
) -> None:
    body = {"prompts": ["a"]}
    assert (await client.post("/generate", json=body, headers=KEY)).status_code == 200
    for path, other in (("/generate", {"prompts": ["b"]}), ("/loglikelihood_rolling", body)):
        answer = await client.post(path, json=other, headers=KEY)
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "idempotency_conflict")
        assert answer.json()["error"]["field"] == "Idempotency-Key"
        assert answer.headers["X-Reject-Reason"] == "idempotency_conflict"
    assert len(worker.jobs) == 1


async def test_two_fronts_at_once_and_many_callers(
    redis: Redis, redis_url: str, worker: EchoWorker
) -> None:
    """While it runs: everybody waits for the one run, and gets its answer."""
    worker.gate.clear()
    other = connect(redis_url)
    async with in_memory(redis) as one, in_memory(other) as two:
        asking = [
            asyncio.create_task(client.post("/generate", json={"prompts": ["a b c"]}, headers=KEY))
            for client in (one, two) * 8
        ]
        await until(lambda: has_followers(redis, 16), "all have found the request")
        worker.gate.set()
        answers = await asyncio.gather(*asking)
    await other.aclose()
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert len(worker.jobs) == 1


async def test_a_stream_is_replayed_in_mid_run(
    redis: Redis, redis_url: str, worker: EchoWorker
) -> None:
    worker.gate.clear()
    other = connect(redis_url)
    body = {"prompt": "a b c d", "stream": True, "logprobs": 2, "n": 2}
    async with live(redis) as (one, _), live(other) as (two, _):
        streams = [
            await client.send(
                client.build_request("POST", "/v1/completions", json=body, headers=KEY), stream=True
            )
            for client in (one, two)
        ]
        readers = [read(answer.aiter_lines()) for answer in streams]
        begun = [[await anext(reader), await anext(reader)] for reader in readers]
        worker.gate.set()
        told = [
            [*start, *[frame async for frame in reader]]
            for start, reader in zip(begun, readers, strict=True)
        ]
        again = frames(await two.post("/v1/completions", json=body, headers=KEY))
    await other.aclose()
    assert told[0] == told[1] == again
    assert "".join(frame.text for frame in again) != ""
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
        await redis.delete(name)
        assert (
            await client.post("/generate", json={"prompts": ["b"]}, headers=KEY)
        ).status_code == 200


def code_of(answer: httpx.Response) -> str:
    """TGI has its own place and words for it."""
    body = answer.json()
    return str(body["error_type"] if isinstance(body["error"], str) else body["error"]["code"])


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
        other = await client.post(path, json=body | {"model": "echo"}, headers=KEY)
        assert other.status_code == 409 and code_of(other) in ("idempotency_conflict", "validation")
        for headers in ({}, {"Idempotency-Key": "another"}):
            new = await client.post(path, json=body, headers=headers)
            assert new.status_code == 503 and code_of(new) in ("no_worker", "overloaded")
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
    await Presence(redis, ttl_s=ALL_DAY_S).announce(
        WorkerInfo("w1", "ready", (worker.model,), failures=failures)
    )
    async with in_memory(redis) as client:
        again = await client.post("/generate", json=body, headers=KEY)
        assert (again.status_code, again.content) == (200, first.content)
        new = await client.post("/generate", json=body)
        assert (new.status_code, code_of(new)) == (503, "model_failed")


async def test_what_runs_is_found_when_its_worker_seems_gone(
    redis: Redis, redis_url: str, worker: EchoWorker
) -> None:
    """By its key, and by a frame that was seen."""
    worker.gate.clear()
    other = connect(redis_url)
    body = {"prompt": "a b c", "stream": True}
    async with in_memory(redis) as one, in_memory(other) as two:
        asking = asyncio.create_task(one.post("/v1/completions", json=body, headers=KEY))
        await until(lambda: has_followers(redis, 1), "it is taken")
        await Presence(redis).leave("w1")
        again = asyncio.create_task(two.post("/v1/completions", json=body, headers=KEY))
        await until(lambda: has_followers(redis, 2), "it is found")
        worker.gate.set()
        whole = frames(await asking)
        assert frames(await again) == whole
        seen = {"Last-Event-ID": whole[0].id}
        assert frames(await two.post("/v1/completions", json=body, headers=seen)) == whole[1:]
    await other.aclose()


async def test_a_front_that_drains_tells_where_the_work_of_a_key_is(
    redis: Redis, worker: EchoWorker
) -> None:
    worker.gate.clear()
    async with live(redis) as (client, front):
        body = {"prompts": ["a b"]}
        later = {"Prefer": "respond-async"}
        location = (await client.post("/generate", json=body, headers=KEY | later)).headers[
            "Location"
        ]
        front.draining.set()
        front.dispatcher.drain()
        again = await client.post("/generate", json=body, headers=KEY)
    assert (again.status_code, again.json()["error"]["code"]) == (503, "draining")
    assert again.headers["Location"] == location
