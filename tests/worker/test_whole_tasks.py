"""Workers with tasks that are done whole: leases, takeovers, suspicion and draining, beside models
that decode."""

import asyncio
import os
import sys
import threading
import time
from collections.abc import Sequence

import pytest
from redis.asyncio import Redis

from shared.artifacts.store import ArtifactStore
from shared.errors import FleetError
from shared.messages import Done, Failed, Progress, Started, Task, Terminal
from shared.queue import keys
from shared.queue.leases import Claim, QueuePolicy
from shared.tasks.echo_task import EchoedTask, EchoTask
from tests.fixtures.desk import Desk
from tests.fixtures.polling import until
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
from worker.engine.runner import RunnerOptions
from worker.engine.task_runner import BatchProgress, TaskOutput
from worker.host.service import WorkerService
from worker.runners.echo import Echo
from worker.runners.echo_task import EchoTaskRunner

BEGUN = Started(1, "w1", 0)


def echo_task(max_batch: int = 4) -> EchoTaskRunner:
    return EchoTaskRunner(RunnerOptions("echo-task", max_batch=max_batch))


async def test_one_step_of_three_leases_keeps_its_job_and_nobody_is_blamed(redis: Redis) -> None:
    """Another worker looks for lapsed jobs all the while. The step is one call that says
    nothing."""
    desk = Desk(redis, "t")
    worker = service(redis)
    other = service(redis)
    async with serving(worker, echo_task()):
        [job] = await desk.submit(EchoTask("x", step_ms=int(3000 * LEASE_S)))
        await until(lambda: len(worker._ledger.claims) == 1, "it is taken")
        async with serving(other, echo_task()):
            end = await end_of(redis, job)
    assert isinstance(end, Done)
    assert (await log_fields_of(redis, job))[1] == [1]
    assert await redis.hget("aios:{00}:job:" + job.id, "deaths") in (None, b"0")  # type: ignore[misc]


async def test_what_others_had_told_is_not_told_again(redis: Redis) -> None:
    """Who takes a task over begins again; the log holds growing numbers only."""
    desk = Desk(redis, "t", lease_s=0)
    [job] = await desk.submit(EchoTask("ab", steps=5, step_ms=1))
    [claim] = await desk.take()
    assert await desk.say(claim, BEGUN, Progress(2, 5), Progress(3, 5))
    async with serving(service(redis), echo_task()):
        end = await end_of(redis, job)
    assert isinstance(end, Done)
    assert end.result == EchoedTask(5)
    [ref] = end.artifacts
    assert await ArtifactStore(desk.broker).read_all(job.tenant, ref.id, max_bytes=100) == b"ab" * 5
    told = [event.done for event in await desk.events(job) if isinstance(event, Progress)]
    assert told[:2] == [2, 3]
    assert told == sorted(set(told))
    assert told[-1] == 5


async def died(redis: Redis, desk: Desk, worker: str, *events: Progress) -> Claim | None:
    """Let a worker take the task, tell of it, and be gone. Return None where there is nothing to
    take."""
    claims = await desk.take(worker=worker, fingerprint=worker)
    if not claims:
        return None
    [claim] = claims
    assert await desk.say(claim, Started(claim.epoch, worker, 0), *events)
    await redis.zadd(keys.leases("00", "t"), {claim.job.id: 1}, xx=True)
    return claim


async def test_who_gets_further_is_not_to_blame(redis: Redis) -> None:
    """Nor does it matter which weights go on: nothing of the answer is there yet."""
    desk = Desk(redis, "t")
    [job] = await desk.submit(EchoTask("x", steps=9))
    for number in range(1, 7):
        claim = await died(redis, desk, f"w{number}", Progress(number, 9))
        assert claim is not None
        assert not claim.is_alone
    assert not isinstance((await desk.events(job))[-1], Terminal)


async def test_a_task_that_always_dies_at_the_same_point_is_convicted(redis: Redis) -> None:
    desk = Desk(redis, "t")
    [job] = await desk.submit(EchoTask("x", steps=9))
    assert await died(redis, desk, "w1", Progress(4, 9))
    second = await died(redis, desk, "w2")  # its worker has nothing new to tell when it dies
    assert second is not None
    third = await died(redis, desk, "w3")
    assert third is not None
    assert third.is_alone
    assert await died(redis, desk, "w4") is None
    end = (await desk.events(job))[-1]
    assert isinstance(end, Failed)
    assert end.code == "worker_crashed"


async def test_progress_is_no_first_token(redis: Redis) -> None:
    desk = Desk(redis, "t")
    request, _ = await desk.request(EchoTask("x", steps=9))
    [claim] = await desk.take()
    await desk.say(claim, BEGUN, Progress(4, 9))
    [standing] = await desk.requests.look(request)
    assert standing.times.first_s is None


class Busy(EchoTaskRunner):
    """Computes in its steps, in Python, as hard as it can: the other thread gets its turns all the
    same."""

    def run(self, tasks: Sequence[Task], progress: BatchProgress) -> list[TaskOutput | FleetError]:
        ends_s = time.monotonic() + 1.5
        while time.monotonic() < ends_s:
            sum(range(1000))
            progress.heartbeat()
        return super().run(tasks, progress)


async def test_a_long_task_holds_up_no_token(redis: Redis) -> None:
    """An answer of 300 steps ends while the task is at work."""
    worker = service(redis)
    stop = asyncio.Event()
    runners = (
        Echo(RunnerOptions("echo", max_batch=4)),
        Busy(RunnerOptions("echo-task", max_batch=4)),
    )
    running = asyncio.create_task(worker.run(lambda: loaded(*runners), stop))
    [task] = await Desk(redis, "t").submit(EchoTask("x"))
    await until(lambda: len(worker._ledger.claims_of("t")) == 1, "the task is in hand")
    [answer] = await Desk(redis).submit(long_task(300))
    assert isinstance(await end_of(redis, answer), Done)
    assert not any(isinstance(event, Terminal) for event in await Desk(redis, "t").events(task))
    assert isinstance(await end_of(redis, task), Done)
    stop.set()
    assert await running is True


def stepping(worker: WorkerService) -> bool:
    return "t" in worker.models and worker.models["t"].host.engine.load.running == 1


async def test_a_drain_waits_for_a_task_but_others_do_not(redis: Redis) -> None:
    """What decodes goes to other workers at once; the task is done here, where there is time for
    it."""
    leaver = WorkerService(Desk(redis).broker, QueuePolicy(LEASE_S), drain_timeout_s=30)
    gated = Gated(RunnerOptions("echo", max_batch=4))
    stop = asyncio.Event()
    running = asyncio.create_task(leaver.run(lambda: loaded(gated, echo_task()), stop))
    [answer] = await Desk(redis).submit(long_task(3))
    [task] = await Desk(redis, "t").submit(EchoTask("x", step_ms=1500))
    await until(lambda: gated.num_steps > 0, "the answer is begun")
    await until(lambda: stepping(leaver), "the task is begun")
    stop.set()
    gated.gate.set()
    async with serving(service(redis), Echo(RunnerOptions("echo", max_batch=4))):
        assert isinstance(await end_of(redis, answer), Done)
        is_over = any(isinstance(event, Terminal) for event in await Desk(redis, "t").events(task))
    assert not is_over, "the answer waited for the task"
    assert isinstance(await end_of(redis, task), Done)
    assert (await log_fields_of(redis, task))[1] == [1]
    assert await running is True


async def test_a_task_that_has_no_time_left_goes_to_another_worker(redis: Redis) -> None:
    leaver = WorkerService(Desk(redis).broker, QueuePolicy(LEASE_S), drain_timeout_s=0.2)
    stop = asyncio.Event()
    running = asyncio.create_task(leaver.run(lambda: loaded(echo_task()), stop))
    [task] = await Desk(redis, "t").submit(EchoTask("x", steps=40, step_ms=50))
    await until(lambda: stepping(leaver), "the task is begun")
    stop.set()
    assert await running is True
    async with serving(service(redis), echo_task()):
        assert isinstance(await end_of(redis, task), Done)
    assert (await log_fields_of(redis, task))[1] == [1, 2]


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_who_follows_hears_of_each_step(redis: Redis, is_streamed: bool) -> None:
    """Others are told about twice a second."""
    desk = Desk(redis, "t")
    async with serving(service(redis), echo_task()):
        [job] = await desk.submit(EchoTask("x", steps=5, step_ms=100), is_streamed=is_streamed)
        await end_of(redis, job)
    told = [event for event in await desk.events(job) if isinstance(event, Progress)]
    assert told[-1] == Progress(5, 5)
    assert (len(told) >= 4) is is_streamed


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has priorities of threads")
async def test_tasks_give_way_to_what_decodes_and_only_to_that(redis: Redis) -> None:
    """A worker of tasks alone is as quick as any other process."""
    own = os.getpriority(os.PRIO_PROCESS, 0)
    found: dict[int, int] = {}
    for runners in ((echo_task(),), (Echo(RunnerOptions("echo", max_batch=4)), echo_task())):
        async with serving(service(redis), *runners) as stop:
            await until(lambda: "tasks" in threads_of(), "the thread is there")
            assert not stop.is_set()
            wanted = 19 if len(runners) == 2 else own
            await until(
                lambda wanted=wanted: threads_of().get("tasks") == wanted,
                f"its niceness is {wanted}",
            )
            found[len(runners)] = threads_of()["engine"]
    assert found == {1: own, 2: own}, "what decodes is not nice"


def threads_of() -> dict[str, int]:
    """The niceness of each thread of this process, by its name."""
    found = {}
    for thread in threading.enumerate():
        if thread.native_id is not None:
            found[thread.name] = os.getpriority(os.PRIO_PROCESS, thread.native_id)
    return found
