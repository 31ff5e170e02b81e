"""Each metric of a front counts what its definition says, and nothing else."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from shared.errors import FleetError, codes_below, codes_from
from shared.messages import Failed
from shared.queue.broker import Broker
from shared.queue.submission import Submissions
from shared.telemetry.metrics import Metrics
from tests.fixtures.api.echo_worker import EchoWorker, announce
from tests.fixtures.api.frames import read
from tests.fixtures.api.fronts import in_memory, live, state
from tests.fixtures.api.staying import staying_worker
from tests.fixtures.polling import until

ASK = {"prompts": ["a b c"]}
OURS = {
    "internal_error",
    "worker_failed",
    "worker_crashed",
    "no_worker",
    "queue_timeout",
    "deadline_infeasible",
    "draining",
    "shut_down",
    "broker_unavailable",
    "out_of_memory",
    "upstream_failed",
    "deadline_exceeded",
    "model_failed",
    "storage_unavailable",
}


@pytest.fixture
async def worker(redis_url: str) -> AsyncIterator[EchoWorker]:
    async with staying_worker(redis_url) as worker:
        yield worker


async def counted(client: httpx.AsyncClient) -> dict[str, float]:
    """Return the counters that are not 0, without those of requests."""
    counters = {}
    metrics = await client.get("/metrics")
    for line in metrics.text.splitlines():
        if line.startswith("#"):
            continue
        name, _, value = line.rpartition(" ")
        family = name.partition("{")[0]
        if family.endswith("_total") and "requests_total" not in name and float(value) != 0:
            counters[name] = float(value)
    return counters


def counters_named(prefix: str, counters: dict[str, float]) -> dict[str, float]:
    """Return the counters whose names begin with `prefix`, of whatever labels."""
    named = {}
    for name, value in counters.items():
        if name.startswith(prefix):
            named[name] = value
    return named


# errors_total: the fleet's own


def test_what_is_not_known_to_be_ours_is_not_counted_as_ours() -> None:
    """`errors_total` leaves out the callers' errors and every code that it does not know.

    Such codes are those of unknown paths and methods, and of versions to come."""
    metrics = Metrics()
    theirs = codes_below(500) | {"not_found", "method_not_allowed", "http_error", "made_up_later"}
    for code in theirs:
        metrics.errors.labels(code).inc()
    assert "\nerrors_total " not in metrics.render().decode()

    for code in OURS:
        metrics.errors.labels(code).inc()
    assert f"\nerrors_total {len(OURS)}.0\n" in metrics.render().decode()

    assert codes_from(500) == OURS
    assert codes_from(500).isdisjoint(codes_below(500))


async def test_callers_mistakes_are_told_by_their_code_alone(
    redis: Redis, worker: EchoWorker
) -> None:
    async with in_memory(redis, max_body_bytes=200, api_keys="ann:key-a") as client:
        ann = {"Authorization": "Bearer key-a"}
        brotli = ann | {"Content-Encoding": "br"}
        refusals = [
            (404, await client.get("/nothing")),
            (404, await client.post("/v1/nothing")),
            (405, await client.get("/generate")),
            (405, await client.delete("/healthz")),
            (401, await client.get("/v1/models")),
            (404, await client.get("/v1/models/nobody", headers=ann)),
            (404, await client.get("/v1/jobs/nothing", headers=ann)),
            (400, await client.post("/generate", json={}, headers=ann)),
            (422, await client.post("/api/inference", json=[], headers=ann)),
            (413, await client.post("/generate", content=b" " * 201, headers=ann)),
            (415, await client.post("/generate", content=b"x", headers=brotli)),
        ]
        counters = await counted(client)

    for status, answer in refusals:
        assert answer.status_code == status, answer.url
    assert "errors_total" not in counters
    errors = counters_named("aios_errors_total", counters)
    assert sum(errors.values()) == len(refusals)


async def test_an_error_of_ours_is_counted_once(redis: Redis, worker: EchoWorker) -> None:
    worker.failure = Failed("worker_failed", "it broke")
    async with in_memory(redis) as client:
        whole = await client.post("/generate", json=ASK)
        stream = await client.post("/v1/completions", json={"prompt": "a", "stream": True})
        counters = await counted(client)

    assert whole.status_code == 500
    assert stream.status_code == 500
    assert counters["errors_total"] == 2
    assert counters['aios_errors_total{code="worker_failed"}'] == 2
    assert counters['aios_jobs_total{model="echo",outcome="worker_failed"}'] == 2
    assert not counters_named("aios_rejections_total", counters), "it had become work"


# rejections: requests for work that became none


async def test_each_refusal_before_there_is_work_is_a_rejection(redis: Redis) -> None:
    await announce(redis, "echo")
    later = {"Prefer": "respond-async"}
    async with in_memory(
        redis, max_queue_depth=1, max_body_bytes=200, max_prompts_per_request=2
    ) as client:
        # One job fills the queue.
        assert (await client.post("/generate", json=ASK, headers=later)).status_code == 202

        refusals: list[tuple[str, dict[str, Any], str]] = [
            ("/generate", ASK, "queue_full"),
            ("/v1/jobs", {"task": "generate", **ASK}, "queue_full"),
            ("/v1/completions", {"prompt": "a", "model": "nobody"}, "model_not_found"),
            ("/generate", {}, "invalid_request"),
            ("/v1/completions", {"prompt": ["a", "b", "c"]}, "invalid_request"),
            ("/v1/jobs", {"task": "nothing"}, "invalid_request"),
            ("/generate", {"prompts": ["x" * 300]}, "payload_too_large"),
        ]
        for path, body, code in refusals:
            counter = f'aios_rejections_total{{reason="{code}"}}'
            before = await counted(client)
            assert (await client.post(path, json=body)).status_code >= 400
            after = await counted(client)
            assert after[counter] == before.get(counter, 0) + 1, (path, body)

        # Refusals of requests that create no work.
        await client.get("/v1/jobs/nothing")
        await client.post("/api/inference/cancel/nothing")
        await client.post("/nothing", json={})
        await client.get("/generate")
        at_the_end = await counted(client)

    assert after['aios_admissions_total{class="default",model="echo"}'] == 1
    rejections = counters_named("aios_rejections_total", after)
    assert sum(rejections.values()) == 7
    assert counters_named("aios_rejections_total", at_the_end) == rejections


async def test_a_missing_key_is_a_rejection_where_work_is_asked_for(redis: Redis) -> None:
    async with in_memory(redis, api_keys="ann:key-a") as client:
        await client.get("/v1/models")
        await client.post("/generate", json=ASK)
        counters = await counted(client)

    assert counters['aios_rejections_total{reason="invalid_api_key"}'] == 1
    assert counters['aios_errors_total{code="invalid_api_key"}'] == 2


# jobs: each job that this front accepted, once, by its outcome


async def is_state(redis: Redis, job_id: str, expected: str) -> bool:
    return await state(redis, job_id) == expected


def is_counted(
    client: httpx.AsyncClient, outcome: str, count: int
) -> Callable[[], Awaitable[bool]]:
    counter = f'aios_jobs_total{{model="echo",outcome="{outcome}"}}'

    async def look() -> bool:
        counters = await counted(client)
        return counters.get(counter) == count

    return look


@pytest.mark.parametrize(
    ("policy", "outcome"), [("continue", "done"), ("cancel", "cancelled"), ("grace", "done")]
)
async def test_a_job_whose_caller_leaves_is_counted_when_it_ends(
    redis: Redis, worker: EchoWorker, policy: str, outcome: str
) -> None:
    """An abandoned job is counted by its outcome, and not before it ends."""
    worker.gate.clear()
    async with live(redis, on_disconnect=policy, disconnect_grace_s=60) as (client, _):
        body = {"prompt": "a b c", "stream": True}
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            events = read(answer.aiter_lines())
            await anext(events)
            await anext(events)

        async def has_noticed() -> bool:
            return 'aios_errors_total{code="cancelled"}' in await counted(client)

        await until(has_noticed, "the front has noticed that the caller left")
        if outcome == "done":
            assert not counters_named("aios_jobs_total", await counted(client))

        worker.gate.set()
        await until(is_counted(client, outcome, 1), f"the job is counted as {outcome}")
        assert await is_state(redis, worker.jobs[0].id, outcome)
        counters = await counted(client)

    assert sum(counters_named("aios_jobs_total", counters).values()) == 1
    num_tokens = 3 if outcome == "done" else 0
    assert counters.get('aios_completion_tokens_total{model="echo"}', 0) == num_tokens


async def test_siblings_of_a_job_that_failed_are_cancelled_ones(
    redis: Redis, worker: EchoWorker
) -> None:
    """One failed job is one failure: the other jobs of its request count as cancelled."""
    worker.gate.clear()
    async with live(redis) as (client, _):
        posting = asyncio.create_task(
            client.post("/generate", json={"prompts": ["a b c", "d e f", "g h i"]})
        )
        await until(lambda: len(worker.jobs) == 3, "all are being worked at")

        await fail(redis, worker.jobs[1].id)
        answer = await posting
        assert answer.status_code == 500
        await until(is_counted(client, "cancelled", 2), "the others are counted")
        counters = await counted(client)

    assert counters['aios_jobs_total{model="echo",outcome="worker_failed"}'] == 1


async def fail(redis: Redis, job_id: str) -> None:
    """End the job as its worker would."""
    await Submissions(Broker(redis)).end([job_id], Failed("worker_failed", "it broke"))


async def test_resuming_counts_as_telling_again_wherever_it_is_asked_for(
    redis: Redis, worker: EchoWorker
) -> None:
    body = {"prompt": "a b c", "stream": True}
    async with in_memory(redis) as client:
        answer = await client.post("/v1/completions", json=body)
        job_id = answer.headers["X-Job-Id"]
        frame = {"Last-Event-ID": f"{job_id}.2"}
        await client.post("/v1/completions", json=body, headers=frame)
        await client.get(f"/v1/jobs/{job_id}/events", headers=frame)
        await client.get(f"/v1/jobs/{job_id}/events")
        await client.head(f"/v1/jobs/{job_id}/events", headers=frame)
        counters = await counted(client)

    assert counters['aios_replays_total{kind="resume"}'] == 2
    # A replay is no second job.
    assert counters['aios_jobs_total{model="echo",outcome="done"}'] == 1
    assert counters['aios_completion_tokens_total{model="echo"}'] == 3


async def test_health_that_says_no_is_no_error(redis: Redis) -> None:
    async with in_memory(redis, healthz_mode="ready") as client:
        for path in ("/healthz", "/readyz", "/health", "/api/health"):
            assert (await client.get(path)).status_code == 503
        counters = await counted(client)

    for name in counters:
        assert "errors_total" not in name


def test_the_code_of_a_bug_is_ours() -> None:
    assert FleetError.code in codes_from(500)
