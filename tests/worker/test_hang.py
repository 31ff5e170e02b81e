"""A lease is progress (P1).

A step that hangs loses its jobs though its process lives; one that makes progress keeps them.
"""

import asyncio
import time
from collections.abc import Sequence

from redis.asyncio import Redis

from shared.errors import FleetError
from shared.messages import Done
from shared.queue.leases import Claim
from shared.telemetry.metrics import WorkerMetrics
from tests.fixtures.desk import Desk
from tests.fixtures.polling import until
from tests.fixtures.slowness import within
from tests.fixtures.worker.services import (
    LEASE_S,
    Gated,
    end_of,
    loaded,
    log_fields_of,
    long_task,
    service,
    serving,
)
from worker.engine.heartbeat import heartbeat
from worker.engine.runner import RunnerOptions
from worker.engine.sequence import Slice, StepResult
from worker.runners.echo import Echo


def echo() -> Echo:
    return Echo(RunnerOptions("echo", max_batch=4))


class Zombie(Gated):
    """A runner that hangs in its third step, when each job has two tokens."""

    def step(self, slices: Sequence[Slice]) -> list[StepResult | FleetError]:
        if self.num_steps < 2:
            self.num_steps += 1
            return Echo.step(self, slices)
        return super().step(slices)


async def test_a_hung_step_loses_its_jobs_and_its_late_words_are_refused(redis: Redis) -> None:
    """Another worker takes over the jobs of a hung step; late appends change nothing."""
    hung = Zombie(RunnerOptions("echo", max_batch=4))
    zombie = service(redis)
    metrics = WorkerMetrics()
    zombie.tell(metrics)
    jobs = await Desk(redis).submit(long_task(30), long_task(30), is_streamed=True)
    async with serving(zombie, hung):
        await until(lambda: hung.num_steps == 3, "the step hangs")

        async with serving(service(redis), echo()):
            for job in jobs:
                assert isinstance(await end_of(redis, job), Done)
                assert await log_fields_of(redis, job) == ("abc" * 10, [1, 2])
        assert time.monotonic() - hung.step_began_s > LEASE_S * 0.9, "the lease was not respected"
        assert len(zombie.ledger.claims) == 2, "it knows already, so this proves nothing"

        # No renewal tells the worker that it lost its jobs: it learns that from its appends.
        zombie.models["m"].queue.renew = none_lost  # type: ignore[method-assign]
        hung.gate.set()
        await until(lambda: metrics.stale_appends.read() == {(): 2}, "late appends are refused")
        host = zombie.models["m"].host
        await until(lambda: not host.engine.has_work, "the sequences are dropped")
        assert zombie.ledger.claims == []
        assert host.intake.free_slots == 4

    for job in jobs:
        text, _ = await log_fields_of(redis, job)
        assert text == "abc" * 10


async def none_lost(claims: Sequence[Claim], *, silence_s: float) -> list[Claim]:
    return []


PATIENT_LEASE_S = 3.0
"""So long that no pause of a busy machine between two heartbeats ends a lease."""


class Patient(Echo):
    """A runner whose steps take two leases each, with heartbeats in between."""

    def step(self, slices: Sequence[Slice]) -> list[StepResult | FleetError]:
        end = time.monotonic() + 2 * PATIENT_LEASE_S
        while time.monotonic() < end:
            time.sleep(0.05)
            heartbeat()
        return super().step(slices)


async def test_a_long_step_that_gets_on_keeps_its_lease(redis: Redis) -> None:
    """A long step with heartbeats keeps its jobs, though another worker looks for lapsed ones."""
    desk = Desk(redis)

    async def is_taken() -> bool:
        return await desk.counts() == (0, 1)

    worker = service(redis, lease_s=PATIENT_LEASE_S)
    other = service(redis, lease_s=PATIENT_LEASE_S)
    async with serving(worker, Patient(RunnerOptions("echo", max_batch=4))):
        [job] = await desk.submit(long_task(1))
        await until(is_taken, "it is taken")

        async with serving(other, echo()):
            assert isinstance(await end_of(redis, job), Done)

    assert await log_fields_of(redis, job) == ("a", [1])


async def test_a_worker_that_hangs_takes_nothing_and_gives_up(redis: Redis) -> None:
    """A worker that hangs for ten leases ends, and takes no job meanwhile.

    `run` returns False, so that the process exits and is started again.
    """
    lease_s = 0.2
    hung = Gated(RunnerOptions("echo", max_batch=4))
    worker = service(redis, lease_s=lease_s)
    desk = Desk(redis)
    [job] = await desk.submit(long_task(3))
    running = asyncio.create_task(worker.run(lambda: loaded(hung), asyncio.Event()))
    await until(lambda: hung.num_steps == 1, "the step hangs")
    await until(lambda: worker.silence_s() > lease_s, "the lease has run out")

    [other] = await desk.submit(long_task(3))
    with within(12 * lease_s + 2, "it gives up"):
        assert await running is False
    assert time.monotonic() - hung.step_began_s > 9 * lease_s, "it gave up early"
    assert await desk.counts() == (1, 1)

    async with serving(service(redis), echo()):
        assert isinstance(await end_of(redis, job), Done)
        assert await log_fields_of(redis, job) == ("abc", [1, 2])
        assert isinstance(await end_of(redis, other), Done)
        assert await log_fields_of(redis, other) == ("abc", [1])
    hung.gate.set()
