"""Each metric of a front is moved by what its definition says, and by nothing else."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

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
    *(
        "internal_error",
        "worker_failed",
        "worker_crashed",
        "no_worker",
        "queue_timeout",
        "deadline_infeasible",
    ),
    *(
        "draining",
        "shut_down",
        "broker_unavailable",
        "out_of_memory",
        "deadline_exceeded",
        "model_failed",
    ),
    "storage_unavailable",
}


@pytest.fixture
async def worker(redis_url: str) -> AsyncIterator[EchoWorker]:
    async with staying_worker(redis_url) as worker:
        yield worker


async def counted(client: httpx.AsyncClient) -> dict[str, float]:
    """The counters that are not 0, without those of requests and processes."""
    lines = (await client.get("/metrics")).text.splitlines()
    pairs = [line.rpartition(" ")[::2] for line in lines if not line.startswith("#")]
    found = {
        name: float(value) for name, value in pairs if name.partition("{")[0].endswith("_total")
    }
    return {name: value for name, value in found.items() if value and "requests_total" not in name}


# errors_total: the fleet's own


def test_what_is_not_known_to_be_ours_is_not_counted_as_ours() -> None:
    """404 and 405 of unknown paths, a caller who left, and whatever code there may be later."""
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
        mine = {"Authorization": "Bearer key-a"}
        tries = [
            (404, await client.get("/nothing")),
            (404, await client.post("/v1/nothing")),
            (405, await client.get("/generate")),
            (405, await client.delete("/healthz")),
            (401, await client.get("/v1/models")),
            (404, await client.get("/v1/models/nobody", headers=mine)),
            (404, await client.get("/v1/jobs/nothing", headers=mine)),
            (400, await client.post("/generate", json={}, headers=mine)),
            (422, await client.post("/api/inference", json=[], headers=mine)),
            (413, await client.post("/generate", content=b" " * 201, headers=mine)),
            (
                415,
                await client.post(
                    "/generate", content=b"x", headers=mine | {"Content-Encoding": "br"}
                ),
            ),
        ]
        found = await counted(client)
    assert [status for status, _ in tries] == [answer.status_code for _, answer in tries]
    assert "errors_total" not in found
    assert sum(
        value for name, value in found.items() if name.startswith("aios_errors_total")
    ) == len(tries)


async def test_an_error_of_ours_is_counted_once(redis: Redis, worker: EchoWorker) -> None:
    worker.failure = Failed("worker_failed", "it broke")
    async with in_memory(redis) as client:
        assert (await client.post("/generate", json=ASK)).status_code == 500
        assert (
            await client.post("/v1/completions", json={"prompt": "a", "stream": True})
        ).status_code == 500
        found = await counted(client)
    assert found["errors_total"] == found['aios_errors_total{code="worker_failed"}'] == 2
    assert found['aios_jobs_total{model="echo",outcome="worker_failed"}'] == 2
    assert not [name for name in found if name.startswith("aios_rejections_total")], (
        "it had become work"
    )


# rejections: all that asked for work and became none


async def test_each_refusal_before_there_is_work_is_a_rejection(redis: Redis) -> None:
    await announce(redis, "echo")
    later = {"Prefer": "respond-async"}
    async with in_memory(
        redis, max_queue_depth=1, max_body_bytes=200, max_prompts_per_request=2
    ) as client:
        assert (await client.post("/generate", json=ASK, headers=later)).status_code == 202
        for path, body, code in (
            ("/generate", ASK, "queue_full"),
            ("/v1/jobs", {"task": "generate", **ASK}, "queue_full"),
            ("/v1/completions", {"prompt": "a", "model": "nobody"}, "model_not_found"),
            ("/generate", {}, "invalid_request"),
            ("/v1/completions", {"prompt": ["a", "b", "c"]}, "invalid_request"),
            ("/v1/jobs", {"task": "nothing"}, "invalid_request"),
            ("/generate", {"prompts": ["x" * 300]}, "payload_too_large"),
        ):
            before = (await counted(client)).get(
                name := f'aios_rejections_total{{reason="{code}"}}', 0
            )
            assert (await client.post(path, json=body)).status_code >= 400
            assert (await counted(client))[name] == before + 1, (path, body)
        found = await counted(client)
        await client.get("/v1/jobs/nothing")
        await client.post("/api/inference/cancel/nothing")
        await client.post("/nothing", json={})
        await client.get("/generate")
        after = await counted(client)
    assert found['aios_admissions_total{class="default",model="echo"}'] == 1
    rejected = {name: value for name, value in found.items() if "rejections" in name}
    assert sum(rejected.values()) == 7
    assert {name: value for name, value in after.items() if "rejections" in name} == rejected


async def test_a_missing_key_is_a_rejection_where_work_is_asked_for(redis: Redis) -> None:
    async with in_memory(redis, api_keys="ann:key-a") as client:
        await client.get("/v1/models")
        await client.post("/generate", json=ASK)
        found = await counted(client)
    assert found['aios_rejections_total{reason="invalid_api_key"}'] == 1
    assert found['aios_errors_total{code="invalid_api_key"}'] == 2


# jobs: each one that this front took, once, by how it ended


async def is_state(redis: Redis, job_id: str, expected: str) -> bool:
    return await state(redis, job_id) == expected


def is_counted(
    client: httpx.AsyncClient, outcome: str, count: int
) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        return (await counted(client)).get(
            f'aios_jobs_total{{model="echo",outcome="{outcome}"}}'
        ) == count

    return look


@pytest.mark.parametrize(
    ("policy", "outcome"), [("continue", "done"), ("cancel", "cancelled"), ("grace", "done")]
)
async def test_a_job_whose_caller_leaves_is_counted_when_it_ends(
    redis: Redis, worker: EchoWorker, policy: str, outcome: str
) -> None:
    """By how it ended, and not before."""
    worker.gate.clear()
    async with live(redis, on_disconnect=policy, disconnect_grace_s=60) as (client, _):
        async with client.stream(
            "POST", "/v1/completions", json={"prompt": "a b c", "stream": True}
        ) as answer:
            coming = read(answer.aiter_lines())
            for _ in range(2):
                await anext(coming)

        async def has_noticed() -> bool:
            return 'aios_errors_total{code="cancelled"}' in await counted(client)

        await until(has_noticed, "the front has noticed that the caller left")
        if outcome == "done":
            assert not [
                name for name in await counted(client) if name.startswith("aios_jobs_total")
            ]
        worker.gate.set()
        await until(is_counted(client, outcome, 1), f"the job is counted as {outcome}")
        assert await is_state(redis, worker.jobs[0].id, outcome)
        found = await counted(client)
    assert sum(value for name, value in found.items() if name.startswith("aios_jobs_total")) == 1
    assert found.get('aios_completion_tokens_total{model="echo"}', 0) == (
        3 if outcome == "done" else 0
    )


async def test_siblings_of_a_job_that_failed_are_cancelled_ones(
    redis: Redis, worker: EchoWorker
) -> None:
    """Not errors of the fleet: it had one."""
    worker.gate.clear()
    async with live(redis) as (client, _):
        asked = asyncio.create_task(
            client.post("/generate", json={"prompts": ["a b c", "d e f", "g h i"]})
        )
        await until(lambda: len(worker.jobs) == 3, "all are being worked at")
        job = worker.jobs[1]
        await fail(redis, job.id)
        assert (await asked).status_code == 500
        await until(is_counted(client, "cancelled", 2), "the others are counted")
        found = await counted(client)
    assert found['aios_jobs_total{model="echo",outcome="worker_failed"}'] == 1


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
        found = await counted(client)
    assert found['aios_replays_total{kind="resume"}'] == 2
    assert found['aios_jobs_total{model="echo",outcome="done"}'] == 1, (
        "told again is not done again"
    )
    assert found['aios_completion_tokens_total{model="echo"}'] == 3


async def test_health_that_says_no_is_no_error(redis: Redis) -> None:
    async with in_memory(redis, healthz_mode="ready") as client:
        for path in ("/healthz", "/readyz", "/health", "/api/health"):
            assert (await client.get(path)).status_code == 503
        assert not [name for name in await counted(client) if "errors_total" in name]


def test_the_code_of_a_bug_is_ours() -> None:
    assert FleetError.code in codes_from(500)
