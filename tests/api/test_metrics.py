"""Metrics of a front: its requests, their times, and the fleet.

Odd requests add no series."""

import httpx
import pytest
from redis.asyncio import Redis

from shared.fleet.presence import Fleet, Presence
from shared.fleet.sums import ASSUMED_WORK_PER_S, of_queues, of_workers, work_per_s
from shared.messages import (
    PRIORITIES,
    Generate,
    LoadFailure,
    ModelInfo,
    ModelLoad,
    Sampling,
    WorkerInfo,
    WorkerState,
)
from shared.queue.broker import Broker
from shared.queue.queue_stats import QueueState, WaitingLine
from shared.tasks.task_table import cost_of
from tests.fixtures.api.echo_worker import EchoWorker
from tests.fixtures.api.fronts import in_memory, live
from tests.fixtures.desk import Desk
from tests.fixtures.polling import ALL_DAY_S, until

MODEL = ModelInfo("m", "echo", "test", 100, 100, 4)
ASK = {"prompts": ["a b c d"], "max_tokens": 4}


async def samples(client: httpx.AsyncClient) -> dict[str, float]:
    """Return each series with its value."""
    values = {}
    metrics = await client.get("/metrics")
    for line in metrics.text.splitlines():
        if not line.startswith("#"):
            series, _, value = line.rpartition(" ")
            values[series] = float(value)
    return values


async def test_times_tokens_and_admissions(redis: Redis, worker: EchoWorker) -> None:
    async with in_memory(redis) as client:
        default = await client.post("/generate", json=ASK)
        bulk = await client.post("/generate", json=ASK, headers={"X-Priority": "bulk"})
        assert default.status_code == 200
        assert bulk.status_code == 200
        series = await samples(client)

    for name in ("ttft", "queue", "prefill", "decode", "job"):
        assert series[f'aios_{name}_seconds_count{{model="echo"}}'] == 2, name
        assert 0 <= series[f'aios_{name}_seconds_sum{{model="echo"}}'] < 20
    assert series['aios_inter_token_seconds_count{model="echo"}'] > 0

    assert series['aios_admissions_total{class="default",model="echo"}'] >= 1
    num_admissions = 0.0
    for name, value in series.items():
        if name.startswith("aios_admissions_total"):
            num_admissions += value
    assert num_admissions == 2

    assert series['aios_redis_call_seconds_count{call="submit"}'] == 2
    # The request in progress is the one for the metrics.
    assert series["aios_http_requests_in_progress"] == 1
    assert series["aios_process_memory_bytes"] > 2**20
    assert series["aios_redis_up"] == 1


async def test_a_parted_request_is_timed_once(redis: Redis, worker: EchoWorker) -> None:
    """A request that outlives its caller's wait is followed twice, but timed once.

    A second follower takes over from the first and sees all events again."""
    async with in_memory(redis) as client:
        worker.gate.clear()
        answer = await client.post("/generate", json=ASK, headers={"Prefer": "wait=1"})
        assert answer.status_code == 202

        worker.gate.set()

        async def has_ended() -> bool:
            return 'aios_job_seconds_count{model="echo"}' in await samples(client)

        await until(has_ended, "the job's time is measured")
        series = await samples(client)

    assert series['aios_queue_seconds_count{model="echo"}'] == 1
    assert series['aios_ttft_seconds_count{model="echo"}'] == 1


async def test_rejections_errors_and_replays(redis: Redis, worker: EchoWorker) -> None:
    async with in_memory(redis) as client:
        again = {"Idempotency-Key": "k"}
        assert (await client.post("/generate", json=ASK, headers=again)).status_code == 200
        assert (await client.post("/generate", json=ASK, headers=again)).status_code == 200
        assert (await client.post("/generate", json={**ASK, "model": "none"})).status_code == 404
        assert (await client.post("/generate", json={})).status_code == 400
        series = await samples(client)

    assert series['aios_replays_total{kind="key"}'] == 1
    assert series['aios_rejections_total{reason="model_not_found"}'] == 1
    assert series['aios_errors_total{code="invalid_request"}'] == 1
    assert series["requests_total"] == 4
    assert series["latency_seconds_count"] == 4
    assert series['model_requests_total{endpoint="/generate"}'] == 4
    assert series['model_latency_seconds_count{endpoint="/generate"}'] == 4
    assert "errors_total" not in series, "these were the callers' errors"


def gpu_worker(name: str, state: WorkerState, *, is_full: bool, warm_up_s: float) -> WorkerInfo:
    load = ModelLoad("m", work_per_s=50.0, tokens_per_s=3.0, warm_up_s=warm_up_s, load_s=2.0)
    return WorkerInfo(
        name,
        state,
        (MODEL,),
        pool="gpu",
        is_full=is_full,
        loads=(load,),
        memory_bytes=10,
        device_bytes=5,
    )


async def test_the_fleet_is_told_alike_by_every_front(redis: Redis) -> None:
    task = Generate("x" * 40, Sampling(max_tokens=89, seed=0))
    assert cost_of(task) == 100
    await Desk(redis).submit(task, task, priority="bulk")

    workers = [
        gpu_worker("w0", "ready", is_full=False, warm_up_s=1.0),
        gpu_worker("w1", "ready", is_full=True, warm_up_s=2.0),
        gpu_worker("w2", "loading", is_full=False, warm_up_s=3.0),
        WorkerInfo("w3", "ready", (MODEL,), pool="cpu", failures={"m": LoadFailure("no file")}),
    ]
    for worker in workers:
        await Presence(redis, ttl_s=ALL_DAY_S).announce(worker)

    async with in_memory(redis) as one, in_memory(redis) as other:
        series = await samples(one)
        same = await samples(other)

    expected = {
        'aios_queue_depth{model="m",state="queued"}': 2,
        'aios_queue_waiting{class="bulk",model="m"}': 2,
        'aios_queue_work_seconds{class="bulk",model="m"}': 2.0,
        'aios_queue_work_seconds{class="default",model="m"}': 0,
        'aios_work_per_second{model="m"}': 100,
        'aios_workers{pool="gpu",state="ready"}': 1,
        'aios_workers{pool="gpu",state="full"}': 1,
        'aios_workers{pool="gpu",state="loading"}': 1,
        'aios_model_workers{model="m",pool="gpu"}': 2,
        'aios_workers{pool="cpu",state="ready"}': 1,
        "aios_active_models": 1,
        "active_models": 1,
        'aios_workers_memory_bytes{kind="device"}': 15,
        "memory_bytes_used": 45,
        'tokens_per_second{model="m"}': 9,
        'compile_seconds{model="m"}': 3,
        "aios_dead_jobs": 0,
    }
    for name, value in expected.items():
        assert series[name] == value, name
        assert same[name] == value, name
    # The worker with the CPU could not load the model.
    assert 'aios_model_workers{model="m",pool="cpu"}' not in series
    assert 0 < series['aios_queue_oldest_seconds{class="bulk",model="m"}'] < 20


def fleet(*workers: WorkerInfo) -> Fleet:
    return Fleet(workers, {"m": MODEL})


def ready(rate: float) -> WorkerInfo:
    return WorkerInfo("w", "ready", (MODEL,), loads=(ModelLoad("m", work_per_s=rate),))


@pytest.mark.parametrize(
    ("workers", "expected"),
    [
        ((), 0.0),
        ((ready(30), ready(50)), 80.0),
        ((ready(30), ready(50), ready(0)), 120.0),
        ((ready(0), WorkerInfo("old", "ready", (MODEL,))), 2 * ASSUMED_WORK_PER_S),
        ((WorkerInfo("w", "draining", (MODEL,)),), 0.0),
    ],
)
def test_who_has_not_shown_its_rate_is_taken_for_as_fast_as_others(
    workers: tuple[WorkerInfo, ...], expected: float
) -> None:
    assert work_per_s(fleet(*workers), "m") == expected


def test_work_without_workers_has_seconds_too() -> None:
    """Work is counted in seconds even without workers, so that a fleet can scale up from none."""
    queue = QueueState({name: WaitingLine(1, 250, 1.0) for name in PRIORITIES}, 10, 0)
    assert of_queues({"m": queue}, fleet())["work_seconds"]["m", "bulk"] == 250 / ASSUMED_WORK_PER_S
    assert of_workers(fleet())["active_models"] == {(): 0}


async def test_odd_requests_make_no_new_series(redis: Redis, worker: EchoWorker) -> None:
    """Names of unknown models, paths, methods, tenants, keys and ids become no labels."""

    async def send_odd_requests(client: httpx.AsyncClient, number: int) -> None:
        name = f"odd{number}"
        await client.get(f"/{name}")
        await client.request(name.upper(), "/generate")
        await client.post("/generate", json={**ASK, "model": name})
        await client.post("/v1/completions", json={"model": name, "prompt": name})
        await client.post("/generate", json={name: name})
        await client.get(f"/v1/jobs/{name}")
        await client.delete(f"/v1/jobs/00{number:032x}")
        headers = {"Authorization": f"Bearer {name}", "X-Request-Id": name, "Idempotency-Key": name}
        await client.post("/generate", json=ASK, headers=headers)

    async with in_memory(redis) as client:
        await send_odd_requests(client, 0)
        # The first look adds the series of the metrics' own endpoint.
        await samples(client)
        before = await samples(client)
        for number in range(1, 6):
            await send_odd_requests(client, number)
        after = await samples(client)

    assert after.keys() == before.keys()
    for name in after:
        assert "odd" not in name.lower()


async def test_redis_away_is_told(redis: Redis, worker: EchoWorker) -> None:
    """One gauge shows that Redis is away; the fleet's metrics, once read, are not repeated."""
    async with in_memory(Broker(Redis(port=1)), response_cache_ttl_s=0) as client:
        series = await samples(client)

    assert series["aios_redis_up"] == 0
    for name in series:
        assert not name.startswith(("aios_queue_depth", "aios_workers"))


async def test_a_running_front_watches_its_loop(redis: Redis) -> None:
    async with live(redis) as (client, front):
        assert (await samples(client))["aios_event_loop_lag_seconds"] >= 0
        assert front.lag.worst_s < 20
