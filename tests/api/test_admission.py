"""Refusals before the queue: a full one, an unknown model, no worker; nothing is queued then."""

import asyncio
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from api.fleet import FleetView
from shared.fleet.presence import Presence, WorkerInfo
from shared.queue.broker import Broker
from shared.queue.requests import Request
from shared.queue.submission import Submissions
from tests.fixtures.api.echo_worker import ALL_DAY_S, EchoWorker, announce, model_info
from tests.fixtures.api.fronts import in_memory, states
from tests.fixtures.desk import Desk
from tests.fixtures.polling import until

LATER = {"Prefer": "respond-async"}


async def test_a_full_queue_takes_all_jobs_of_a_request_or_none(redis: Redis) -> None:
    await announce(redis, "echo")
    body = {"prompts": ["a", "a"]}

    async with in_memory(redis, max_queue_depth=3) as client:
        accepted = await client.post("/generate", json=body, headers=LATER)
        refused = await client.post("/generate", json=body)
        openai_refused = await client.post(
            "/v1/completions", json={"prompt": ["a", "a"], "stream": True}
        )

    assert accepted.status_code == 202
    assert refused.status_code == 429
    assert int(refused.headers["Retry-After"]) >= 1
    assert refused.json()["error"]["code"] == "queue_full"
    assert openai_refused.status_code == 429
    assert openai_refused.json()["error"]["type"] == "rate_limit_error"
    assert await Desk(redis, "echo").counts() == (2, 0)
    assert await states(redis) == ["queued", "queued"]


@pytest.mark.parametrize("shards", [1, 64])
@pytest.mark.parametrize(
    "limit", [{"max_queue_depth": 3}, {"tenant_concurrency": 3}, {"max_queue_bytes": 300}]
)
async def test_what_never_fits_is_no_matter_of_waiting(
    redis: Redis, shards: int, limit: dict[str, int]
) -> None:
    """A request that is larger than the limit is refused with the limit, and no Retry-After.

    A client that is told to retry would retry for ever.
    """
    await announce(redis, "echo")
    [most] = limit.values()

    async with in_memory(Broker(redis, shards), **limit) as client:
        refused = await client.post("/generate", json={"prompts": ["a"] * 4})
        fits = await client.post("/generate", json={"prompts": ["a"]}, headers=LATER)

    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_request")
    assert str(most) in refused.json()["error"]["message"]
    assert "Retry-After" not in refused.headers
    assert fits.status_code == 202
    assert len(await redis.keys("aios:*:job:*")) == 1


@pytest.mark.parametrize("shards", [1, 64])
async def test_a_queue_in_many_parts_is_one_queue(redis: Redis, shards: int) -> None:
    """A request is taken if the whole queue has room for it, although no shard alone has.

    One more is refused with the numbers.
    """
    await announce(redis, "echo")

    async with in_memory(Broker(redis, shards), max_queue_depth=6) as client:
        five = await client.post("/generate", json={"prompts": ["a"] * 5}, headers=LATER)
        one = await client.post("/generate", json={"prompts": ["a"]}, headers=LATER)
        full = await client.post("/generate", json={"prompts": ["a"]}, headers=LATER)

    assert five.status_code == 202
    assert one.status_code == 202
    assert (full.status_code, full.json()["error"]["code"]) == (429, "queue_full")
    assert "6 of 6 places are taken, and the request takes 1" in full.json()["error"]["message"]
    assert int(full.headers["Retry-After"]) >= 1


@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
async def test_an_unknown_model(client: httpx.AsyncClient, worker: EchoWorker, path: str) -> None:
    body = {"prompts": ["a"]} if path == "/generate" else {"prompt": "a"}

    answer = await client.post(path, json=body | {"model": "other"})

    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"
    assert "other" in answer.json()["error"]["message"]


@pytest.mark.parametrize("body", [{}, {"model": "echo"}, {"model": "local"}])
async def test_no_worker(redis: Redis, client: httpx.AsyncClient, body: dict[str, str]) -> None:
    answer = await client.post("/generate", json={"prompts": ["a"]} | body)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "no_worker"
    assert int(answer.headers["Retry-After"]) >= 1
    assert (await client.get("/v1/models")).json()["data"] == []


async def test_a_model_whose_workers_are_not_ready(redis: Redis) -> None:
    await announce(redis, "echo", state="draining")
    async with in_memory(redis) as client:
        assert (await client.post("/generate", json={"prompts": ["a"]})).status_code == 503
        assert (await client.get("/v1/models/echo")).status_code == 503


async def test_the_default_model_is_the_configured_one_else_the_marked_one(
    redis: Redis, redis_url: str
) -> None:
    body = {"prompts": ["a"], "max_tokens": 1}

    async with EchoWorker(redis_url, model_info("zz", is_default=True)) as marked:
        await announce(redis, "aa")
        async with in_memory(redis) as client:
            assert (await client.post("/generate", json=body)).status_code == 200
    assert [job.model for job in marked.jobs] == ["zz"]

    configured = EchoWorker(redis_url, model_info("mm"))
    async with configured, in_memory(redis, models="mm=echo", default_model="mm") as client:
        assert (await client.post("/generate", json=body)).status_code == 200
    assert [job.model for job in configured.jobs] == ["mm"]


async def test_work_that_names_no_model_goes_to_one_that_does_it(redis: Redis) -> None:
    """The default model, if it does; else the first that does. A model that is named is asked."""
    text = model_info("text", is_default=True, tasks=("generate", "score"))
    nets = model_info("nets", tasks=("solve",))
    older_nets = model_info("z-nets", tasks=("solve",))
    idle = WorkerInfo("idle", "ready", (older_nets, nets, text))
    await Presence(redis, ttl_s=ALL_DAY_S).announce(idle)
    body = {"grid": "1..." * 4}
    async with in_memory(redis) as client:
        for more in ({}, {"model": "local"}):
            headers = {"Prefer": "respond-async"}
            later = await client.post("/v1/puzzles/solve", json=body | more, headers=headers)
            assert later.status_code == 202
        named = await client.post("/v1/puzzles/solve", json=body | {"model": "text"})
        vectors = await client.post("/v1/embeddings", json={"model": "local", "input": "a"})
    keys = [key.decode() for key in await redis.keys("aios:*:job:*")]
    models = [(await redis.hget(key, "model")).decode() for key in keys]  # type: ignore[misc]
    assert models == ["nets", "nets"]
    assert named.status_code == 400
    assert "'text' does not serve the task 'solve'" in named.json()["error"]["message"]
    assert "'text' does not serve the task 'embed'" in vectors.json()["error"]["message"]


async def test_a_view_of_the_fleet_is_kept_for_a_while(redis: Redis) -> None:
    kept = FleetView(Presence(redis), max_age_s=60)
    fresh = FleetView(Presence(redis), max_age_s=0)
    assert not (await kept.now()).is_ready
    assert not (await fresh.now()).is_ready

    await announce(redis, "echo")

    assert not (await kept.now()).is_ready
    assert (await fresh.now()).is_ready


async def test_work_that_redis_takes_when_its_caller_was_refused_is_called_off(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job whose submission is answered too late is cancelled, because nobody follows it."""
    await announce(redis, "echo")
    submit = Submissions.submit
    may_answer = asyncio.Event()

    async def submit_late(submissions: Submissions, *arguments: Any) -> Request:
        request = await submit(submissions, *arguments)
        # The front gives Redis a number of ticks; short ones make it give up soon.
        monkeypatch.setattr("api.redis_timeout._TICK_S", 0.01)
        await may_answer.wait()
        return request

    async def is_state(expected: str) -> bool:
        return await states(redis) == [expected]

    monkeypatch.setattr(Submissions, "submit", submit_late)

    async with in_memory(redis) as client:
        answer = await client.post("/generate", json={"prompts": ["a"]})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "broker_unavailable")

        await until(lambda: is_state("queued"), "Redis has taken it")
        may_answer.set()
        await until(lambda: is_state("cancelled"), "it is called off")
