"""The response cache: the same request of the same tenant to the same weights is answered again,
if its first answer was whole."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest
from redis.asyncio import Redis

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
LATER = {"Prefer": "respond-async"}
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
async def worker(redis_url: str) -> AsyncIterator[EchoWorker]:
    """Yield a worker for every endpoint, whose weights have a fingerprint."""
    model = model_info(tasks=("generate", "score", "solve"), fingerprint="f1")
    async with EchoWorker(redis_url, model) as worker:
        yield worker


@pytest.fixture
async def cached(redis: Redis, worker: EchoWorker) -> AsyncIterator[httpx.AsyncClient]:
    async with in_memory(redis, response_cache_ttl_s=TTL_S) as client:
        yield client


async def ask(
    client: httpx.AsyncClient,
    body: dict[str, Any] = GREEDY,
    headers: dict[str, str] | None = None,
) -> tuple[str | None, str]:
    """Return the answer's X-Cache header and its id."""
    answer = await client.post("/v1/completions", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.headers.get("X-Cache"), answer.headers["X-Job-Id"]


async def ask_twice(
    client: httpx.AsyncClient, body: dict[str, Any] = GREEDY
) -> tuple[str | None, str | None]:
    """Return the X-Cache headers of two answers, one after another."""
    first, _ = await ask(client, body)
    second, _ = await ask(client, body)
    return first, second


async def is_done(client: httpx.AsyncClient, location: str) -> bool:
    return bool((await client.get(location)).json()["state"] == "done")


@pytest.mark.parametrize(("path", "body"), DETERMINED)
async def test_the_same_question_is_answered_once(
    redis: Redis, worker: EchoWorker, path: str, body: dict[str, Any]
) -> None:
    """A second front gives the same answer to the byte: choices, usage, frames."""
    async with (
        in_memory(redis, response_cache_ttl_s=TTL_S) as one,
        in_memory(redis, response_cache_ttl_s=TTL_S) as two,
    ):
        first = await one.post(path, json=body)
        num_jobs = len(worker.jobs)
        again = await two.post(path, json=body)

    assert first.headers["X-Cache"] == "miss"
    assert again.headers["X-Cache"] == "hit"
    assert first.content == again.content
    assert len(worker.jobs) == num_jobs


async def test_a_stream_and_a_whole_answer_share_what_was_said(
    cached: httpx.AsyncClient, worker: EchoWorker
) -> None:
    whole = (await cached.post("/v1/completions", json=GREEDY)).json()
    stream = await cached.post("/v1/completions", json=GREEDY | {"stream": True})

    assert stream.headers["X-Cache"] == "hit"
    *chunks, _done = frames(stream)
    assert "".join(chunk.text for chunk in chunks) == whole["choices"][0]["text"]
    assert len(worker.jobs) == 1


async def test_without_the_setting_nothing_is_kept(redis: Redis, worker: EchoWorker) -> None:
    async with in_memory(redis) as client:
        assert await ask_twice(client) == (None, None)
    assert len(worker.jobs) == 2
    assert await redis.keys("aios:{00}:repeat:*") == []


@pytest.mark.parametrize("body", [{"prompt": "a"}, {"prompt": "a", "temperature": 0.5, "seed": 3}])
async def test_what_is_sampled_is_drawn_anew(
    cached: httpx.AsyncClient, worker: EchoWorker, body: dict[str, Any]
) -> None:
    assert await ask_twice(cached, body) == (None, None)
    assert len(worker.jobs) == 2


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
    x_cache, _ = await ask(cached, GREEDY | change)
    assert x_cache == "miss"


async def test_a_seed_makes_no_difference_to_greedy_text(cached: httpx.AsyncClient) -> None:
    first, _ = await ask(cached, GREEDY | {"seed": 1})
    second, _ = await ask(cached, GREEDY | {"seed": 2})
    assert (first, second) == ("miss", "hit")


async def test_the_caller_may_refuse_what_is_kept(
    cached: httpx.AsyncClient, worker: EchoWorker
) -> None:
    """RFC 9111: no-store neither reads the cache nor writes it; no-cache only writes it."""
    x_cache, _ = await ask(cached, headers={"Cache-Control": "no-store"})
    assert x_cache is None

    _, first = await ask(cached)
    no_store = await ask(cached, headers={"Cache-Control": "max-age=60, NO-STORE"})
    assert no_store != ("hit", first)

    for directive in ("no-cache", "max-age=0"):
        x_cache, newest = await ask(cached, headers={"Cache-Control": directive})
        assert x_cache == "miss"
        assert newest != first
        kept = await ask(cached, headers={"Cache-Control": "no-transform"})
        assert kept == ("hit", newest)

    assert len(worker.jobs) == 5


async def test_a_key_says_which_answer_is_wanted(
    cached: httpx.AsyncClient, worker: EchoWorker
) -> None:
    """A request with an Idempotency-Key takes no answer from the cache."""
    await ask(cached)
    x_cache, _ = await ask(cached, headers={"Idempotency-Key": "k"})
    assert x_cache is None
    assert len(worker.jobs) == 2


async def test_other_weights_answer_for_themselves(
    redis: Redis, cached: httpx.AsyncClient, worker: EchoWorker
) -> None:
    """A new checkpoint under the same name does not get the old one's answers.

    While workers of both are there, an answer by the old weights is not kept for the new ones.
    """
    _, old_id = await ask(cached)
    new_model = msgspec.structs.replace(worker.model, fingerprint="f2")
    await Presence(redis, ttl_s=ALL_DAY_S).announce(WorkerInfo("w2", "ready", (new_model,)))

    async with in_memory(redis, response_cache_ttl_s=TTL_S) as client:
        # The only worker that takes jobs still has the old weights.
        for _ in range(2):
            x_cache, id = await ask(client)
            assert x_cache == "miss"
            assert id != old_id

        # As if the new weights had answered.
        for name in await redis.keys("aios:{00}:job:*"):
            await redis.hset(name, "fingerprint", "f2")  # type: ignore[misc]
        assert await ask(client) == ("hit", id)


async def test_unknown_weights_answer_each_time(redis: Redis, able: EchoWorker) -> None:
    async with in_memory(redis, response_cache_ttl_s=TTL_S) as client:
        assert await ask_twice(client) == (None, None)


@pytest.mark.parametrize("fate", ["failed", "cancelled"])
async def test_what_ended_badly_is_no_answer(redis: Redis, worker: EchoWorker, fate: str) -> None:
    worker.gate.clear()

    async with live(redis, response_cache_ttl_s=TTL_S) as (client, front):
        submitted = await client.post("/v1/completions", json=GREEDY, headers=LATER)
        assert submitted.headers["X-Cache"] == "miss"
        await until(lambda: len(worker.jobs) == 1, "it runs")
        if fate == "cancelled":
            await client.delete(submitted.headers["Location"])
        else:
            await front.submissions.end([worker.jobs[0]], Failed("worker_failed", "It broke."))
        worker.gate.set()

        x_cache, id = await ask(client)
        assert x_cache == "miss"
        assert await ask(client) == ("hit", id)


async def test_what_runs_is_no_answer_yet(redis: Redis, worker: EchoWorker) -> None:
    worker.gate.clear()

    async with in_memory(redis, response_cache_ttl_s=TTL_S) as client:
        first = await client.post("/v1/completions", json=GREEDY, headers=LATER)
        second = await client.post("/v1/completions", json=GREEDY, headers=LATER)
        assert first.headers["X-Cache"] == "miss"
        assert second.headers["X-Cache"] == "miss"

        worker.gate.set()
        location = second.headers["Location"]
        await until(lambda: is_done(client, location), "it ends")

        third = await client.post("/v1/completions", json=GREEDY, headers=LATER)
        assert third.headers["X-Cache"] == "hit"
        assert third.headers["Location"] == location
        assert third.json()["state"] == "done"


async def test_what_a_deadline_cut_short_is_no_answer(
    redis: Redis, cached: httpx.AsyncClient
) -> None:
    await ask(cached)

    # The log's last event in msgpack: its finish reason becomes "deadline".
    [name] = await redis.keys("aios:{00}:log:*")
    [(index, fields)] = await redis.xrevrange(name, count=1)
    cut_short = fields[b"e"].replace(b"\xa4stop", b"\xa8deadline")
    await redis.xdel(name, index)
    await redis.delete(name)
    await redis.xadd(name, {"e": cut_short}, id=index)

    x_cache, _ = await ask(cached)
    assert x_cache == "miss"


async def test_an_answer_that_has_expired_is_asked_for_again(
    redis: Redis, cached: httpx.AsyncClient
) -> None:
    """The cache misses if the entry, its request or its job is gone."""
    _, id = await ask(cached)
    [entry] = await redis.keys("aios:{00}:repeat:*")
    assert 0 < await redis.pttl(entry) <= TTL_S * 1000

    for name in (keys.request(id), entry):
        await redis.delete(name)
        x_cache, id = await ask(cached)
        assert x_cache == "miss"

    jobs_of_last_answer = []
    for name in await redis.keys("aios:{00}:job:*"):
        if await redis.hget(name, "request") == id.encode():  # type: ignore[misc]
            jobs_of_last_answer.append(name)
    [job] = jobs_of_last_answer
    await redis.delete(job)

    x_cache, _ = await ask(cached)
    assert x_cache == "miss"


async def test_a_hit_takes_nothing_of_a_quota(redis: Redis, worker: EchoWorker) -> None:
    # A burst of one, and the next token after 1,000 s.
    async with in_memory(
        redis, response_cache_ttl_s=TTL_S, tenant_rate_per_s=0.001, tenant_burst=1
    ) as client:
        x_cache, _ = await ask(client)
        assert x_cache == "miss"
        for _ in range(4):
            x_cache, _ = await ask(client)
            assert x_cache == "hit"

        refused = await client.post("/v1/completions", json={"prompt": "other"})
        assert refused.status_code == 429

    assert await Desk(redis, "echo").counts() == (0, 0)


async def test_tenants_share_nothing(redis: Redis, worker: EchoWorker) -> None:
    async with in_memory(redis, response_cache_ttl_s=TTL_S, api_keys="ann:k1,bob:k2") as client:
        for expected in ("miss", "hit"):
            for key in ("k1", "k2"):
                x_cache, _ = await ask(client, headers={"X-API-Key": key})
                assert x_cache == expected


async def test_the_tokens_of_a_hit_are_counted_once(redis: Redis, worker: EchoWorker) -> None:
    async with live(redis, response_cache_ttl_s=TTL_S) as (client, _):
        await ask(client)
        before = (await client.get("/metrics")).text
        await ask(client)
        after = (await client.get("/metrics")).text

    assert token_samples(before) != []
    assert token_samples(after) == token_samples(before)


def token_samples(metrics: str) -> list[str]:
    """Return the lines of the metrics that count tokens."""
    return [line for line in metrics.splitlines() if "tokens" in line and not line.startswith("#")]
