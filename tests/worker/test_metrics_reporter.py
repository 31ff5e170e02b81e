"""The metrics of a worker at its own port, and its record in presence.

Here are also the tests of a worker that hangs, or has too little memory.
"""

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
    """Return the value of each sample at the port, by its name with its labels."""
    values = {}
    for line in (await client.get("/metrics")).text.splitlines():
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            values[name] = float(value)
    return values


async def statuses(client: httpx.AsyncClient) -> list[int]:
    """Return the statuses of `/healthz` and `/readyz`."""
    health_answer = await client.get("/healthz")
    ready_answer = await client.get("/readyz")
    return [health_answer.status_code, ready_answer.status_code]


async def record_of(
    redis: Redis, worker: WorkerService, holds: Callable[[WorkerInfo], bool]
) -> WorkerInfo:
    """Return the worker's record in presence once `holds` is true of it."""
    records: list[WorkerInfo] = []

    async def is_there() -> bool:
        fleet = await Presence(redis).fleet()
        for info in fleet.workers:
            if info.id == worker.worker_id and holds(info):
                records.append(info)
        return bool(records)

    await until(is_there, "the worker says so")
    return records[0]


def has_generated_60(info: WorkerInfo) -> bool:
    return any(load.tokens == 60 for load in info.loads)


async def test_what_is_done_is_told(redis: Redis) -> None:
    """The port counts to the last token; presence follows within about a second."""
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
            values = await samples(client)
            record = await record_of(redis, worker, has_generated_60)

    assert values['aios_worker_tokens_total{model="m"}'] == 60
    assert values['aios_worker_prompt_tokens_total{model="m"}'] == 6
    assert values['aios_worker_batch_rows_sum{model="m"}'] == 60
    assert values['aios_worker_step_seconds_count{model="m"}'] >= 30
    assert values['aios_redis_call_seconds_count{call="append"}'] > 0
    assert values['aios_worker_takeovers_total{model="m"}'] == 0
    assert 0 < values["aios_worker_memory_share"] < 1
    # The worker is in one state only.
    assert values['aios_worker_state{state="ready"}'] == 1
    num_states = 0.0
    for name, value in values.items():
        if name.startswith("aios_worker_state"):
            num_states += value
    assert num_states == 1

    assert record.pool == "default"
    assert record.is_full is False
    assert record.loads[0].running == 0
    assert record.loads[0].step_s > 0
    assert record.uptime_s > 0
    assert record.memory_bytes > 0


async def test_the_rate_of_work_is_measured_in_what_waiting_work_is_counted_in(
    redis: Redis,
) -> None:
    """The rate of work is the tasks' expected cost for each second of stepping.

    Jobs that end early count with their expected cost, as waiting jobs do.
    """
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
        record = await record_of(redis, worker, lambda info: info.loads[0].jobs == 6)

    stepped_s = worker.models["m"].host.engine.stats.steps_s.total
    assert record.loads[0].work_per_s <= 6 * cost_of(task) / 0.2
    assert record.loads[0].work_per_s >= 3 * cost_of(task) / stepped_s


async def test_takeovers_and_stale_appends_are_counted(redis: Redis) -> None:
    """A job of a dead worker that another one finishes is one takeover, without a stale append."""
    desk = Desk(redis, lease_s=0)
    [job] = await desk.submit(long_task(9))
    [claim] = await desk.take(1, "dead", fingerprint="")
    await desk.say(claim, Tokens((97,), "a"))
    worker = service(redis)
    async with port_of(worker) as client, serving(worker, echo()):
        assert isinstance(await end_of(redis, job), Done)
        values = await samples(client)

    assert values['aios_worker_takeovers_total{model="m"}'] == 1
    assert values["aios_worker_stale_appends_total"] == 0


async def test_convictions_are_counted(redis: Redis) -> None:
    """A job that three workers have died of is given up by the fourth, and counted."""
    desk = Desk(redis, lease_s=0.001)
    [job] = await desk.submit(long_task(9))
    for number in range(3):
        [claim] = await desk.take(1, "dead", fingerprint="")
        await desk.say(claim, Started(number + 1, "dead", 3))
        # The lease of a millisecond runs out.
        await asyncio.sleep(0.01)
    worker = service(redis)
    async with port_of(worker) as client, serving(worker, echo()):
        await end_of(redis, job)
        await until(lambda: worker.models["m"].host.intake.num_convicted == 1, "it is counted")
        assert (await samples(client))['aios_worker_convictions_total{model="m"}'] == 1


async def test_a_worker_that_hangs_is_not_alive(redis: Redis) -> None:
    """`/healthz` answers 503 once a step hangs for longer than a lease, and 200 when it goes on."""
    hung = Gated(RunnerOptions("echo", max_batch=4))
    lease_s = 5
    worker = service(redis, lease_s=lease_s)
    async with port_of(worker) as client, serving(worker, hung):
        await Desk(redis).submit(long_task(3))
        await until(lambda: hung.num_steps == 1, "the step hangs")
        assert (await client.get("/healthz")).status_code == 200, "it may still take a while"
        await until(lambda: worker.silence_s() > lease_s, "the lease has run out")

        answer = await client.get("/healthz")
        assert answer.status_code == 503
        assert answer.json()["status"] == "not ok"
        assert answer.json()["reason"].startswith("no progress for ")
        assert (await samples(client))["aios_worker_silence_seconds"] > lease_s

        hung.gate.set()
        await until(lambda: worker.hangs() is None, "it gets on")
        assert await statuses(client) == [200, 200]


async def test_a_worker_without_memory_takes_nothing_until_there_is_room(redis: Redis) -> None:
    """A worker above its memory mark finishes its jobs and takes no new ones.

    Its state and its record in presence say so, and other workers can take the work.
    """
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
        values = await samples(client)
        assert values['aios_worker_state{state="full"}'] == 1
        assert values["aios_worker_memory_share"] == 0.95
        assert await statuses(client) == [200, 200]
        # A worker with room would have taken the job in this time.
        await asyncio.sleep(2 * LEASE_S)
        assert await desk.counts() == (1, 0)

        in_use[0] = 0.9
        assert isinstance(await end_of(redis, second), Done)


def test_without_a_mark_nothing_is_too_full() -> None:
    """Without a memory mark a worker is never too full."""
    guard = MemoryGuard(None, lambda: 1.0)

    guard.look()

    assert guard.share == 1.0
    assert not guard.is_over
