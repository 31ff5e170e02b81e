"""What a worker tells at its own port and in presence, and what it does when it hangs or memory is
short."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx
from redis.asyncio import Redis

from shared.fleet.presence import Presence
from shared.listener import listening
from shared.messages import Done, Generate, Sampling, Started, Tokens, WorkerInfo
from shared.queue.broker import Broker
from shared.queue.leases import QueuePolicy
from shared.settings.settings import Settings
from shared.tasks.task_table import cost_of
from shared.telemetry.metrics import WorkerMetrics
from tests.fixtures.desk import Desk
from tests.fixtures.polling import until
from tests.fixtures.worker.services import LEASE_S, Gated, Slow, end_of, long_task, service, serving
from worker.__main__ import health_routes
from worker.engine.runner import RunnerOptions
from worker.hardware.memory_guard import MemoryGuard
from worker.host.service import WorkerService
from worker.runners.echo import Echo


def echo() -> Echo:
    return Echo(RunnerOptions("echo", max_batch=4))


@asynccontextmanager
async def port_of(worker: WorkerService) -> AsyncIterator[httpx.AsyncClient]:
    metrics = WorkerMetrics()
    worker.tell(metrics)
    routes = health_routes(metrics, worker.hangs, worker.not_ready)
    async with (
        listening(Settings(host="127.0.0.1", worker_port=0), "worker_port", routes) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        yield client


async def samples(client: httpx.AsyncClient) -> dict[str, float]:
    lines = (await client.get("/metrics")).text.splitlines()
    return {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in lines
        if not line.startswith("#")
    }


async def statuses(client: httpx.AsyncClient) -> list[int]:
    return [(await client.get(path)).status_code for path in ("/healthz", "/readyz")]


async def record_of(
    redis: Redis, worker: WorkerService, holds: Callable[[WorkerInfo], bool]
) -> WorkerInfo:
    """The worker's record in presence once that holds of it."""
    found: list[WorkerInfo] = []

    async def is_there() -> bool:
        found[:] = [
            info for info in (await Presence(redis).fleet()).workers if info.id == worker.worker_id
        ]
        return bool(found) and holds(found[0])

    await until(is_there, "the worker says so")
    return found[0]


async def test_what_is_done_is_told(redis: Redis) -> None:
    """At the port to the last token, in presence within about a second."""
    worker = service(redis)
    desk = Desk(redis)
    async with port_of(worker) as client:
        assert await statuses(client) == [200, 503]
        async with serving(worker, echo()):
            await until(lambda: worker.not_ready() is None, "it is ready")
            assert await statuses(client) == [200, 200]
            jobs = await desk.submit(long_task(30), long_task(30))
            for job in jobs:
                assert isinstance(await end_of(redis, job), Done)
            found = await samples(client)
            told = await record_of(
                redis, worker, lambda info: any(load.tokens == 60 for load in info.loads)
            )
    assert found['aios_worker_tokens_total{model="m"}'] == 60
    assert found['aios_worker_prompt_tokens_total{model="m"}'] == 6
    assert found['aios_worker_batch_rows_sum{model="m"}'] == 60
    assert found['aios_worker_step_seconds_count{model="m"}'] >= 30
    assert found['aios_worker_state{state="ready"}'] == 1
    assert sum(value for name, value in found.items() if name.startswith("aios_worker_state")) == 1
    assert found['aios_redis_call_seconds_count{call="append"}'] > 0
    assert found['aios_worker_takeovers_total{model="m"}'] == 0
    assert 0 < found["aios_worker_memory_share"] < 1
    assert (told.pool, told.is_full, told.loads[0].running) == ("default", False, 0)
    assert told.loads[0].step_s > 0 and told.uptime_s > 0 and told.memory_bytes > 0


async def test_the_rate_of_work_is_measured_in_what_waiting_work_is_counted_in(
    redis: Redis,
) -> None:
    """Whatever is said of it in the end: expected cost for a second of stepping."""
    runner = Slow(RunnerOptions("echo", max_batch=1))
    runner.stepping_s = 0.02
    task = Generate("eos", Sampling(max_tokens=90, seed=0))
    worker = service(redis)
    desk = Desk(redis)
    async with serving(worker, runner):
        await until(lambda: worker.not_ready() is None, "it is ready")
        for _ in range(6):
            [job] = await desk.submit(task)
            await end_of(redis, job)
        told = await record_of(redis, worker, lambda info: info.loads[0].work_per_s > 0)
    stepped_s = worker.models["m"].host.engine.stats.steps_s.total
    assert told.loads[0].work_per_s <= 6 * cost_of(task) / 0.2
    assert told.loads[0].work_per_s >= 3 * cost_of(task) / stepped_s


async def test_takeovers_and_stale_appends_are_counted(redis: Redis) -> None:
    desk = Desk(redis, lease_s=0)
    [job] = await desk.submit(long_task(9))
    [claim] = await desk.take(1, "dead", fingerprint="")
    await desk.say(claim, Tokens((97,), "a"))
    worker = service(redis)
    async with port_of(worker) as client, serving(worker, echo()):
        assert isinstance(await end_of(redis, job), Done)
        found = await samples(client)
    assert found['aios_worker_takeovers_total{model="m"}'] == 1
    assert found["aios_worker_stale_appends_total"] == 0


async def test_convictions_are_counted(redis: Redis) -> None:
    """Three workers have died of it; the fourth gives it up."""
    desk = Desk(redis, lease_s=0.001)
    [job] = await desk.submit(long_task(9))
    for number in range(3):
        [claim] = await desk.take(1, "dead", fingerprint="")
        await desk.say(claim, Started(number + 1, "dead", 3))
        await asyncio.sleep(0.01)  # the lease runs out
    worker = service(redis)
    async with port_of(worker) as client, serving(worker, echo()):
        await end_of(redis, job)
        await until(lambda: worker.models["m"].host.intake.num_convicted == 1, "it is counted")
        assert (await samples(client))['aios_worker_convictions_total{model="m"}'] == 1


async def test_a_worker_that_hangs_is_not_alive(redis: Redis) -> None:
    """Liveness is progress: 503 while a step hangs for longer than a lease, 200 again when it gets
    on."""
    hung = Gated(RunnerOptions("echo", max_batch=4))
    worker = service(redis)
    async with port_of(worker) as client, serving(worker, hung):
        await Desk(redis).submit(long_task(3))
        await until(lambda: hung.num_steps == 1, "the step hangs")
        assert (await client.get("/healthz")).status_code == 200, "it may still take a while"
        await until(lambda: worker.silence_s() > LEASE_S, "the lease has run out")
        answer = await client.get("/healthz")
        assert (answer.status_code, answer.json()["status"]) == (503, "not ok")
        assert answer.json()["reason"].startswith("no progress for ")
        assert (await samples(client))["aios_worker_silence_seconds"] > LEASE_S
        hung.gate.set()
        await until(lambda: worker.hangs() is None, "it gets on")
        assert await statuses(client) == [200, 200]


async def test_a_worker_without_memory_takes_nothing_until_there_is_room(redis: Redis) -> None:
    """What it has in hand goes on. It says so in presence and in its state; other workers take the
    work."""
    in_use = [0.5]
    desk = Desk(redis)
    worker = WorkerService(
        Broker(redis),
        QueuePolicy(lease_s=LEASE_S, result_ttl_s=60),
        drain_timeout_s=1,
        memory_guard=MemoryGuard(0.9, lambda: in_use[0]),
    )
    runner = Gated(RunnerOptions("echo", max_batch=4))
    async with port_of(worker) as client, serving(worker, runner):
        [first] = await desk.submit(long_task(3))
        await until(lambda: runner.num_steps == 1, "it works")
        in_use[0] = 0.95
        await record_of(redis, worker, lambda info: info.is_full)
        runner.gate.set()
        assert isinstance(await end_of(redis, first), Done)
        [second] = await desk.submit(long_task(3))
        found = await samples(client)
        assert (found['aios_worker_state{state="full"}'], found["aios_worker_memory_share"]) == (
            1,
            0.95,
        )
        assert await statuses(client) == [200, 200]
        await asyncio.sleep(2 * LEASE_S)  # time in which it would have taken it
        assert await desk.counts() == (1, 0)
        in_use[0] = 0.9
        assert isinstance(await end_of(redis, second), Done)


def test_without_a_mark_nothing_is_too_full() -> None:
    water = MemoryGuard(None, lambda: 1.0)
    water.look()
    assert (water.share, water.is_over) == (1.0, False)
