"""Answers given again: to the same question of the same tenant, from the same weights, and only
where it was whole."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest
from fastapi import FastAPI, Request
from redis.asyncio import Redis

from api.access.caller import Caller, caller_of
from shared.fleet.presence import Presence
from shared.messages import Failed, WorkerInfo
from shared.queue import keys
from tests.fixtures.api.echo_worker import EchoWorker, model_info
from tests.fixtures.api.frames import frames
from tests.fixtures.api.fronts import in_memory, live
from tests.fixtures.desk import Desk
from tests.fixtures.polling import ALL_DAY_S, until

TTL_S = 60.0
GREEDY = {"prompt": "a b c", "temperature": 0}
DETERMINED: list[tuple[str, dict[str, Any]]] = [
    ("/generate", {"prompts": ["a b", "c"], "temperature": 0}),
    ("/v1/completions", GREEDY),
    ("/v1/completions", GREEDY | {"n": 2, "logprobs": 2}),
    ("/v1/completions", GREEDY | {"stream": True, "stream_options": {"include_usage": True}}),
    ("/loglikelihood", {"prompts": ["a"], "continuations": ["b"]}),
    ("/loglikelihood_rolling", {"prompts": ["a"]}),
    ("/v1/puzzles/solve", {"grid": "12.."}),
]


@pytest.fixture
async def marked(redis_url: str) -> AsyncIterator[EchoWorker]:
    """A worker for every endpoint, whose weights are known."""
    model = model_info(tasks=("generate", "score", "solve"), fingerprint="f1")
    async with EchoWorker(redis_url, model) as worker:
        yield worker


@pytest.fixture
async def cached(redis: Redis, marked: EchoWorker) -> AsyncIterator[httpx.AsyncClient]:
    async with in_memory(redis, response_cache_ttl_s=TTL_S) as client:
        yield client


async def ask(
    client: httpx.AsyncClient, body: dict[str, Any] = GREEDY, **headers: str
) -> tuple[str | None, str]:
    """What the header says, and the answer's id."""
    answer = await client.post(
        "/v1/completions", json=body, headers={k.replace("_", "-"): v for k, v in headers.items()}
    )
    assert answer.status_code == 200, answer.text
    return answer.headers.get("X-Cache"), answer.headers["X-Job-Id"]


@pytest.mark.parametrize(("path", "body"), DETERMINED)
async def test_the_same_question_is_answered_once(
    redis: Redis, marked: EchoWorker, path: str, body: dict[str, Any]
) -> None:
    """On another front too, to the byte: choices, usage, frames."""
    async with (
        in_memory(redis, response_cache_ttl_s=TTL_S) as one,
        in_memory(redis, response_cache_ttl_s=TTL_S) as two,
    ):
        first = await one.post(path, json=body)
        num_jobs = len(marked.jobs)
        again = await two.post(path, json=body)
    assert (first.headers["X-Cache"], again.headers["X-Cache"]) == ("miss", "hit")
    assert first.content == again.content
    assert len(marked.jobs) == num_jobs


async def test_a_stream_and_a_whole_answer_share_what_was_said(
    cached: httpx.AsyncClient, marked: EchoWorker
) -> None:
    whole = (await cached.post("/v1/completions", json=GREEDY)).json()
    told = await cached.post("/v1/completions", json=GREEDY | {"stream": True})
    assert told.headers["X-Cache"] == "hit"
    assert "".join(frame.text for frame in frames(told)[:-1]) == whole["choices"][0]["text"]
    assert len(marked.jobs) == 1


async def test_without_the_setting_nothing_is_kept(redis: Redis, marked: EchoWorker) -> None:
    async with in_memory(redis) as client:
        assert [(await ask(client))[0] for _ in range(2)] == [None, None]
    assert len(marked.jobs) == 2
    assert await redis.keys("aios:{00}:asked:*") == []


@pytest.mark.parametrize("body", [{"prompt": "a"}, {"prompt": "a", "temperature": 0.5, "seed": 3}])
async def test_what_is_sampled_is_drawn_anew(
    cached: httpx.AsyncClient, marked: EchoWorker, body: dict[str, Any]
) -> None:
    assert [(await ask(cached, body))[0] for _ in range(2)] == [None, None]
    assert len(marked.jobs) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "a b"},
        {"max_tokens": 2},
        {"n": 2},
        {"stop": "b"},
        {"logprobs": 0},
        {"stop_token_ids": [7]},
    ],
)
async def test_another_question_is_another(
    cached: httpx.AsyncClient, change: dict[str, Any]
) -> None:
    await ask(cached)
    assert (await ask(cached, GREEDY | change))[0] == "miss"


async def test_a_seed_makes_no_difference_to_greedy_text(cached: httpx.AsyncClient) -> None:
    assert [(await ask(cached, GREEDY | {"seed": seed}))[0] for seed in (1, 2)] == ["miss", "hit"]


async def test_the_caller_may_refuse_what_is_kept(
    cached: httpx.AsyncClient, marked: EchoWorker
) -> None:
    """RFC 9111: no-store neither looks nor keeps; no-cache asks anew, and what comes is kept."""
    assert (await ask(cached, Cache_Control="no-store"))[0] is None
    _, first = await ask(cached)
    assert await ask(cached, Cache_Control="max-age=60, NO-STORE") != ("hit", first)
    for wish in ("no-cache", "max-age=0"):
        told, newest = await ask(cached, Cache_Control=wish)
        assert told == "miss"
        assert newest != first
        assert await ask(cached, Cache_Control="no-transform") == ("hit", newest)
    assert len(marked.jobs) == 5


async def test_a_key_says_which_answer_is_wanted(
    cached: httpx.AsyncClient, marked: EchoWorker
) -> None:
    await ask(cached)
    assert (await ask(cached, Idempotency_Key="k"))[0] is None
    assert len(marked.jobs) == 2


async def test_other_weights_answer_for_themselves(
    redis: Redis, cached: httpx.AsyncClient, marked: EchoWorker
) -> None:
    """A new checkpoint under the same name; an answer by the old one is not taken for its own while
    both are there."""
    _, old = await ask(cached)
    fresh = msgspec.structs.replace(marked.model, fingerprint="f2")
    await Presence(redis, ttl_s=ALL_DAY_S).announce(WorkerInfo("w2", "ready", (fresh,)))
    async with in_memory(redis, response_cache_ttl_s=TTL_S) as client:
        for _ in range(2):  # the worker at hand has the old weights still
            told, id = await ask(client)
            assert told == "miss"
            assert id != old
        for name in await redis.keys("aios:{00}:job:*"):
            await redis.hset(name, "fingerprint", "f2")  # type: ignore[misc]
        assert await ask(client) == ("hit", id)


async def test_unknown_weights_answer_each_time(redis: Redis, able: EchoWorker) -> None:
    async with in_memory(redis, response_cache_ttl_s=TTL_S) as client:
        assert [(await ask(client))[0] for _ in range(2)] == [None, None]


@pytest.mark.parametrize("fate", ["failed", "cancelled"])
async def test_what_ended_badly_is_no_answer(redis: Redis, marked: EchoWorker, fate: str) -> None:
    marked.gate.clear()
    async with live(redis, response_cache_ttl_s=TTL_S) as (client, front):
        later = await client.post(
            "/v1/completions", json=GREEDY, headers={"Prefer": "respond-async"}
        )
        assert later.headers["X-Cache"] == "miss"
        await until(lambda: len(marked.jobs) == 1, "it runs")
        if fate == "cancelled":
            await client.delete(later.headers["Location"])
        else:
            await front.submissions.end([marked.jobs[0]], Failed("worker_failed", "It broke."))
        marked.gate.set()
        told, id = await ask(client)
        assert told == "miss"
        assert await ask(client) == ("hit", id)


async def test_what_runs_is_no_answer_yet(redis: Redis, marked: EchoWorker) -> None:
    marked.gate.clear()
    async with in_memory(redis, response_cache_ttl_s=TTL_S) as client:
        for _ in range(2):
            later = await client.post(
                "/v1/completions", json=GREEDY, headers={"Prefer": "respond-async"}
            )
            assert later.headers["X-Cache"] == "miss"
        marked.gate.set()
        location = later.headers["Location"]
        await until(lambda: _is_done(client, location), "it ends")
        hit = await client.post("/v1/completions", json=GREEDY, headers={"Prefer": "respond-async"})
        assert (hit.headers["X-Cache"], hit.headers["Location"], hit.json()["state"]) == (
            "hit",
            location,
            "done",
        )


async def test_what_a_deadline_cut_short_is_no_answer(
    redis: Redis, cached: httpx.AsyncClient
) -> None:
    await ask(cached)
    [name] = await redis.keys("aios:{00}:log:*")
    [(index, fields)] = await redis.xrevrange(name, count=1)
    cut = fields[b"e"].replace(b"\xa4stop", b"\xa8deadline")
    await redis.xdel(name, index)
    await redis.delete(name)
    await redis.xadd(name, {"e": cut}, id=index)
    assert (await ask(cached))[0] == "miss"


async def test_an_answer_that_has_expired_is_asked_for_again(
    redis: Redis, cached: httpx.AsyncClient
) -> None:
    _, id = await ask(cached)
    [name] = await redis.keys("aios:{00}:asked:*")
    assert 0 < await redis.pttl(name) <= TTL_S * 1000
    for gone in (keys.request(id), name):
        await redis.delete(gone)
        told, id = await ask(cached)
        assert told == "miss"
    [job] = [
        key
        for key in await redis.keys("aios:{00}:job:*")
        if id.encode() == await redis.hget(key, "request")
    ]  # type: ignore[misc]
    await redis.delete(job)
    assert (await ask(cached))[0] == "miss"


async def test_a_hit_takes_nothing_of_a_quota(redis: Redis, marked: EchoWorker) -> None:
    async with in_memory(
        redis, response_cache_ttl_s=TTL_S, tenant_rate_per_s=0.001, tenant_burst=1
    ) as client:
        assert [(await ask(client))[0] for _ in range(5)] == ["miss", *["hit"] * 4]
        refused = await client.post("/v1/completions", json={"prompt": "other"})
        assert refused.status_code == 429
    assert await Desk(redis, "echo").counts() == (0, 0)


async def test_tenants_share_nothing(redis: Redis, marked: EchoWorker) -> None:
    async def caller(request: Request) -> Caller:
        return Caller(request.headers["X-Tenant"])

    async with in_memory(redis, response_cache_ttl_s=TTL_S) as client:
        app = client._transport.app  # type: ignore[attr-defined]
        assert isinstance(app, FastAPI)
        app.dependency_overrides[caller_of] = caller
        told = [(await ask(client, X_Tenant=tenant))[0] for tenant in ("a", "b", "a", "b")]
    assert told == ["miss", "miss", "hit", "hit"]


async def test_the_tokens_of_a_hit_are_counted_once(redis: Redis, marked: EchoWorker) -> None:
    async with live(redis, response_cache_ttl_s=TTL_S) as (client, _):
        await ask(client)
        before = (await client.get("/metrics")).text
        await ask(client)
        after = (await client.get("/metrics")).text
    assert _tokens(before) == _tokens(after) != []


def _tokens(metrics: str) -> list[str]:
    return [line for line in metrics.splitlines() if "tokens" in line and not line.startswith("#")]


async def _is_done(client: httpx.AsyncClient, location: str) -> bool:
    return bool((await client.get(location)).json()["state"] == "done")
