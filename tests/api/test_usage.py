"""`GET /v1/usage`, and budgets.

The sums of the answers are in the ledger, and no budget is exceeded.
"""

import asyncio
import csv
import io
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from shared.access import Budget, Grant, Keyring, digest_of, id_of
from shared.messages import Done, Failed, Started, Tokens
from shared.queue.broker import Broker, connect
from tests.api.test_quotas import NUM_FRONTS, several_fronts
from tests.fixtures.api.echo_worker import ALL_TASKS, EchoWorker, announce, model_info
from tests.fixtures.api.fronts import in_memory, process, states
from tests.fixtures.desk import Desk
from tests.fixtures.jobs import LATER
from tests.fixtures.polling import until

KEYS = {"api_keys": "ann:key-a,bob:key-b", "admin_keys": "ops:key-o"}
ANN = {"X-API-Key": "key-a"}
BOB = {"X-API-Key": "key-b"}
OPS = {"X-API-Key": "key-o"}
COUNTERS = (
    "requests",
    "jobs",
    "failed_jobs",
    "cancelled_jobs",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "act_segments",
    "compute_seconds",
    "artifact_bytes",
)


async def report(client: httpx.AsyncClient, headers: dict[str, str], **query: str) -> Any:
    answer = await client.get("/v1/usage", headers=headers, params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def create_key(redis: Redis, name: str, **more: object) -> tuple[str, dict[str, str]]:
    """Create a key. Return its id, and the headers that have it."""
    grant = Grant(name, str(more.pop("tenant", name)), **more)  # type: ignore[arg-type]
    key, key_id, _ = await Keyring(Broker(redis)).create(grant)
    return key_id, {"Authorization": f"Bearer {key}"}


def add_usage(sums: Counter[str], answer: httpx.Response) -> None:
    """Add what an answer tells of its tokens."""
    assert answer.status_code == 200, answer.text
    usage = answer.json()["usage"]
    sums["requests"] += 1
    sums["prompt_tokens"] += usage["prompt_tokens"]
    sums["completion_tokens"] += usage.get("completion_tokens", 0)
    cached = usage.get("prompt_tokens_details", {}).get("cached_tokens", 0)
    sums["cached_tokens"] += cached


async def test_the_sums_of_the_answers_are_in_the_ledger(redis: Redis, redis_url: str) -> None:
    """Requests of all kinds: choices, cached prompts, hits of the cache, replays, failures."""
    async with (
        EchoWorker(redis_url, model_info(tasks=ALL_TASKS, fingerprint="f")) as worker,
        in_memory(redis, response_cache_ttl_s=60, **KEYS) as client,
    ):
        sums: Counter[str] = Counter()

        async def post(path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
            return await client.post(path, json=body, headers={**ANN, **headers})

        worker.num_cached = 2
        completion = {"prompt": ["a b c", "d e"], "n": 3, "max_tokens": 4}
        add_usage(sums, await post("/v1/completions", completion))
        worker.num_cached = 0
        add_usage(sums, await post("/v1/embeddings", {"input": ["a", "b c", "d"]}))
        add_usage(sums, await post("/v1/puzzles/solve", {"grid": "12.."}))
        add_usage(sums, await post("/generate", {"prompts": ["a b"], "max_tokens": 2}))
        jobs = 2 + 3 + 1 + 1

        # Given again: from the cache, and by the key.
        greedy = {"prompts": ["x y z"], "max_tokens": 3, "temperature": 0}
        first = await post("/generate", greedy)
        add_usage(sums, first)
        again = await post("/generate", greedy)
        assert again.headers["X-Cache"] == "hit"
        keyed = {"prompts": ["k l m"], "max_tokens": 3}
        add_usage(sums, await post("/generate", keyed, **{"Idempotency-Key": "one"}))
        replayed = await post("/generate", keyed, **{"Idempotency-Key": "one"})
        assert replayed.status_code == 200
        jobs += 2

        # Refused, which is no work at all.
        assert (await post("/generate", {"prompts": ["a"], "model": "none"})).status_code == 404
        assert (await post("/generate", {"prompts": 7})).status_code == 400

        # Failed in its worker.
        worker.failure = Failed("worker_failed", "no")
        failed = await post("/generate", {"prompts": ["f a i l"], "max_tokens": 3})
        assert failed.status_code == 500
        worker.failure = None

        # Cancelled behind its first word.
        worker.gate.clear()
        later = await post("/generate", {"prompts": ["o n e"], "max_tokens": 3}, **LATER)

        async def has_begun() -> bool:
            if "running" not in await states(redis):
                return False
            return len(await Desk(redis, "echo").events(worker.jobs[-1])) == 2

        await until(has_begun, "the job has said its first word")
        await client.delete(later.headers["Location"], headers=ANN)
        worker.gate.set()

        found = await report(client, ANN)

    totals = found["totals"]
    assert totals["requests"] == sums["requests"] + 2
    assert totals["jobs"] == jobs + 2
    assert (totals["failed_jobs"], totals["cancelled_jobs"]) == (1, 1)
    assert totals["cached_tokens"] == sums["cached_tokens"] == 4
    num_prompt, num_sampled = await logged_tokens(Desk(redis, "echo"), worker)
    assert num_sampled > 0, "the job was cancelled behind its first word"
    assert totals["prompt_tokens"] == sums["prompt_tokens"] + num_prompt
    assert totals["completion_tokens"] == sums["completion_tokens"] + num_sampled
    assert totals["act_segments"] > 0
    [row] = found["rows"]
    assert row == {"day": row["day"], "model": "echo", **totals}
    assert list(totals) == list(COUNTERS)


async def logged_tokens(desk: Desk, worker: EchoWorker) -> tuple[int, int]:
    """Return the tokens of prompts and of answers in the logs of jobs that were not done."""
    num_prompt = 0
    num_sampled = 0
    for job in worker.jobs:
        events = await desk.events(job)
        if isinstance(events[-1], Done):
            continue
        for event in events:
            if isinstance(event, Started):
                num_prompt += event.num_prompt_tokens
            elif isinstance(event, Tokens):
                num_sampled += len(event.ids)
    return num_prompt, num_sampled


async def test_a_caller_sees_its_own_key_and_an_admin_all(redis: Redis, worker: EchoWorker) -> None:
    async with in_memory(redis, **KEYS) as client:
        other_id, other = await create_key(redis, "other", tenant="ann")
        for headers, times in ((ANN, 1), (BOB, 2), (other, 3)):
            for _ in range(times):
                await client.post("/generate", json={"prompts": ["a b"]}, headers=headers)

        async def requests(headers: dict[str, str], **query: str) -> dict[str, int]:
            rows = (await report(client, headers, group_by="key,tenant", **query))["rows"]
            return {f"{row['tenant']}/{row['key']}": row["requests"] for row in rows}

        ann = f"ann/{id_of(digest_of('key-a'))}"
        bob = f"bob/{id_of(digest_of('key-b'))}"
        mine = f"ann/{other_id}"
        assert await requests(ANN) == {ann: 1}
        assert await requests(other) == {mine: 3}
        assert await requests(BOB) == {bob: 2}
        # Keys of one tenant see each other's jobs, and so their usage.
        assert await requests(ANN, tenant="ann") == {ann: 1, mine: 3}
        assert await requests(OPS) == {ann: 1, bob: 2, mine: 3}
        assert await requests(OPS, tenant="bob") == {bob: 2}
        assert await requests(OPS, tenant="nobody") == {}
        refused = await client.get("/v1/usage", params={"tenant": "bob"}, headers=ANN)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "permission_denied")


async def test_without_keys_everybody_is_public(
    client: httpx.AsyncClient, worker: EchoWorker
) -> None:
    await client.post("/generate", json={"prompts": ["a b"]})
    found = await report(client, {}, group_by="tenant,key")
    [row] = found["rows"]
    assert (row["tenant"], row["key"], row["requests"]) == ("public", "", 1)
    assert "budget" not in found


async def test_csv(client: httpx.AsyncClient, worker: EchoWorker) -> None:
    await client.post("/generate", json={"prompts": ["a b"]})
    found = await report(client, {})
    by_format = await client.get("/v1/usage", params={"format": "csv"})
    by_header = await client.get("/v1/usage", headers={"Accept": "text/csv"})
    assert by_format.text == by_header.text
    assert by_format.headers["Content-Type"].startswith("text/csv")
    [row] = csv.DictReader(io.StringIO(by_format.text))
    expected = {name: str(value) for name, value in found["rows"][0].items()}
    assert row == expected
    json = await client.get("/v1/usage", params={"format": "json"}, headers={"Accept": "text/csv"})
    assert json.json() == found


async def test_days(client: httpx.AsyncClient, worker: EchoWorker) -> None:
    await client.post("/generate", json={"prompts": ["a b"]})
    found = await report(client, {}, group_by="day")
    [row] = found["rows"]
    day = row["day"]
    assert found["end"] >= day
    assert (await report(client, {}, start=day, end=day))["totals"]["requests"] == 1
    long_ago = await report(client, {}, start="2024-01-01", end="2024-12-31")
    assert (long_ago["rows"], long_ago["totals"]["requests"]) == ([], 0)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"start": "yesterday"}, "start"),
        ({"end": "2026-13-01"}, "end"),
        ({"start": "2026-11-02", "end": "2026-11-01"}, "start"),
        ({"start": "2020-01-01", "end": "2026-11-01"}, "start"),
        ({"group_by": "day,hour"}, "group_by"),
        ({"group_by": "day,day"}, "group_by"),
        ({"format": "xml"}, "format"),
    ],
)
async def test_wrong_queries(client: httpx.AsyncClient, query: dict[str, str], field: str) -> None:
    answer = await client.get("/v1/usage", params=query)
    assert answer.status_code == 400
    assert answer.json()["error"]["field"] == field


async def test_without_redis_it_is_a_503() -> None:
    async with in_memory(connect("redis://127.0.0.1:1/0"), **KEYS) as client:
        answer = await client.get("/v1/usage", headers=ANN)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "broker_unavailable")


async def test_a_budget_that_is_exceeded_is_a_429(redis: Redis, worker: EchoWorker) -> None:
    """The report tells how it stands, and the refusal when there is room again."""
    _, headers = await create_key(redis, "cy", budget=Budget(100, "day"))
    ask = {"prompts": ["a b c"], "max_tokens": 60}
    async with in_memory(redis) as client:
        answer = await client.post("/generate", json=ask, headers=headers)
        used = answer.json()["usage"]["total_tokens"]
        assert answer.status_code == 200
        found = await report(client, headers)
        assert found["budget"].pop("resets_at").endswith("00:00:00Z")
        assert found["budget"] == {
            "tokens": 100,
            "period": "day",
            "used": used,
            "reserved": 0,
            "left": 100 - used,
        }
        assert found["totals"]["prompt_tokens"] + found["totals"]["completion_tokens"] == used

        larger = {"prompts": ["a b c"], "max_tokens": 100 - 13 - used + 1}
        refused = await client.post("/generate", json=larger, headers=headers)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "budget_exceeded")
        assert refused.headers["X-Reject-Reason"] == "budget_exceeded"
        assert 0 < int(refused.headers["Retry-After"]) <= 86_400
        # Other callers have nothing to do with it.
        _, other = await create_key(redis, "dee")
        assert (await client.post("/generate", json=ask, headers=other)).status_code == 200

        never = {"prompts": ["a b c"], "max_tokens": 500}
        impossible = await client.post("/generate", json=never, headers=headers)
        assert (impossible.status_code, impossible.json()["error"]["code"]) == (
            400,
            "invalid_request",
        )
        # As large as fits.
        last = {"prompts": ["a b c"], "max_tokens": 100 - 13 - used}
        assert (await client.post("/generate", json=last, headers=headers)).status_code == 200


async def race(redis: Redis, redis_url: str, fronts: list[httpx.AsyncClient]) -> None:
    """Send requests through all fronts at once until no more fit into a budget.

    Check that it is never exceeded, and is used up to the last request.
    """
    most = 5 + 8 + 20
    num_fitting = 23
    budget = Budget(num_fitting * most + most - 1, "month")
    _, headers = await create_key(redis, "cy", budget=budget)
    ask = {"prompts": ["a b c"], "max_tokens": 20, "temperature": 0}
    seen: list[int] = []

    is_over = asyncio.Event()

    async def watch() -> None:
        while not is_over.is_set():
            standing = (await report(fronts[0], headers))["budget"]
            seen.append(standing["used"] + standing["reserved"])
            await asyncio.sleep(0.005)

    async def post(number: int) -> int:
        front = fronts[number % len(fronts)]
        answer = await front.post("/generate", json=ask, headers={**headers, **LATER})
        return answer.status_code

    watching = asyncio.create_task(watch())
    codes = Counter(await asyncio.gather(*[post(number) for number in range(80)]))
    assert codes == {202: num_fitting, 429: 80 - num_fitting}

    # As answers are shorter than was reserved for them, others fit.
    async with EchoWorker(redis_url):
        while codes[202]:
            await until_all_done(redis)
            codes = Counter(await asyncio.gather(*[post(number) for number in range(40)]))
    is_over.set()
    await watching
    found = await report(fronts[1], headers)

    used = found["budget"]["used"]
    assert found["budget"]["reserved"] == 0
    assert max(seen) <= budget.tokens
    assert budget.tokens - most < used <= budget.tokens
    assert used == found["totals"]["prompt_tokens"] + found["totals"]["completion_tokens"]


async def test_a_budget_with_four_fronts(redis: Redis, redis_url: str) -> None:
    await announce(redis, "echo")
    async with several_fronts(redis_url, max_queue_depth=500) as fronts:
        await race(redis, redis_url, fronts)


async def test_a_budget_with_four_processes(redis: Redis, redis_url: str) -> None:
    """Fronts that share nothing but Redis keep it as well."""
    await announce(redis, "echo")
    async with AsyncExitStack() as stack:
        starting = []
        for _ in range(NUM_FRONTS):
            starting.append(stack.enter_async_context(process(redis_url, max_queue_depth=500)))
        fronts = [client for _, client in await asyncio.gather(*starting)]
        await race(redis, redis_url, fronts)


async def until_all_done(redis: Redis) -> None:
    async def are_done() -> bool:
        return set(await states(redis)) == {"done"}

    await until(are_done, "all jobs are done")
