"""Leases, takeovers, suspicion and draining of tasks that are done whole, beside models that
decode."""

import asyncio
import os
import sys
import threading
from collections.abc import Sequence

import pytest
from redis.asyncio import Redis

from shared.artifacts.store import ArtifactStore
from shared.errors import FleetError
from shared.messages import Done, Failed, Job, Progress, Started, Terminal
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
    """A step that takes three leases keeps its job, and counts as no worker's death.

    The step is one call that reports nothing, and another worker looks for lapsed jobs meanwhile.
    """
    desk = Desk(redis, "t")
    worker = service(redis, lease_s=2)
    other = service(redis, lease_s=2)
    async with serving(worker, echo_task()):
        [job] = await desk.submit(EchoTask("x", step_ms=3 * 2000))
        await until(lambda: len(worker.ledger.claims) == 1, "it is taken")
        async with serving(other, echo_task()):
            end = await end_of(redis, job)

    assert isinstance(end, Done)
    _, epochs = await log_fields_of(redis, job)
    assert epochs == [1]
    deaths = await redis.hget("aios:{00}:job:" + job.id, "deaths")  # type: ignore[misc]
    assert deaths in (None, b"0")


async def test_what_others_had_told_is_not_told_again(redis: Redis) -> None:
    """A worker that takes a task over begins again, but the log holds growing numbers only."""
    desk = Desk(redis, "t", lease_s=0)
    [job] = await desk.submit(EchoTask("ab", steps=5, step_ms=1))
    [claim] = await desk.take()
    assert await desk.say(claim, BEGUN, Progress(2, 5), Progress(3, 5))

    async with serving(service(redis), echo_task()):
        end = await end_of(redis, job)

    assert isinstance(end, Done)
    assert end.result == EchoedTask(5)
    [ref] = end.artifacts
    data = await ArtifactStore(desk.broker).read_all(job.tenant, ref.id, max_bytes=100)
    assert data == b"ab" * 5
    steps = [event.done for event in await desk.events(job) if isinstance(event, Progress)]
    assert steps[:2] == [2, 3]
    assert steps == sorted(set(steps))
    assert steps[-1] == 5


async def died(redis: Redis, desk: Desk, worker: str, *events: Progress) -> Claim | None:
    """Let a worker take the task, report some progress and die.

    Return its claim, or None where there is no task to take.
    """
    claims = await desk.take(worker=worker, fingerprint=worker)
    if not claims:
        return None
    [claim] = claims
    assert await desk.say(claim, Started(claim.epoch, worker, 0), *events)
    # The lease has run out.
    await redis.zadd(keys.leases("00", "t"), {claim.job.id: 1}, xx=True)
    return claim


async def test_who_gets_further_is_not_to_blame(redis: Redis) -> None:
    """A task that gets further with each worker is not suspected, however many of them die.

    The weights of the next worker do not matter, for the task has no part of an answer yet.
    """
    desk = Desk(redis, "t")
    [job] = await desk.submit(EchoTask("x", steps=9))
    for number in range(1, 7):
        claim = await died(redis, desk, f"w{number}", Progress(number, 9))
        assert claim is not None
        assert not claim.is_alone

    events = await desk.events(job)
    assert not isinstance(events[-1], Terminal)


async def test_a_task_that_always_dies_at_the_same_point_is_convicted(redis: Redis) -> None:
    """A task on which workers die without new progress is tried alone, and then fails."""
    desk = Desk(redis, "t")
    [job] = await desk.submit(EchoTask("x", steps=9))
    assert await died(redis, desk, "w1", Progress(4, 9))

    # From here on the workers die with no new progress to report.
    second = await died(redis, desk, "w2")
    assert second is not None
    third = await died(redis, desk, "w3")
    assert third is not None
    assert third.is_alone
    assert await died(redis, desk, "w4") is None

    events = await desk.events(job)
    end = events[-1]
    assert isinstance(end, Failed)
    assert end.code == "worker_crashed"


async def test_progress_is_no_first_token(redis: Redis) -> None:
    """A request with progress but no result has no time to first token."""
    desk = Desk(redis, "t")
    request, _ = await desk.request(EchoTask("x", steps=9))
    [claim] = await desk.take()
    await desk.say(claim, BEGUN, Progress(4, 9))

    [standing] = await desk.requests.look(request)
    assert standing.times.first_s is None


class Busy(EchoTaskRunner):
    """A runner whose steps keep Python busy until they may end.

    They leave the engine's thread its turns.
    """

    def __init__(self, options: RunnerOptions) -> None:
        super().__init__(options)
        self.may_end = threading.Event()

    def run(
        self, items: Sequence[EchoTask], progress: BatchProgress
    ) -> list[TaskOutput | FleetError]:
        while not self.may_end.is_set():
            sum(range(1000))
            progress.heartbeat()
        return super().run(items, progress)


async def test_a_long_task_holds_up_no_token(redis: Redis) -> None:
    """An answer of 300 steps ends while a long task is at work beside it."""
    worker = service(redis)
    stop = asyncio.Event()
    echo = Echo(RunnerOptions("echo", max_batch=4))
    busy = Busy(RunnerOptions("echo-task", max_batch=4))
    running = asyncio.create_task(worker.run(lambda: loaded(echo, busy), stop))
    try:
        [task] = await Desk(redis, "t").submit(EchoTask("x"))
        await until(lambda: len(worker.ledger.claims_of("t")) == 1, "the task is in hand")

        [answer] = await Desk(redis).submit(long_task(300))

        assert isinstance(await end_of(redis, answer), Done)
        assert not await has_ended(redis, task)
    finally:
        busy.may_end.set()
    assert isinstance(await end_of(redis, task), Done)
    stop.set()
    assert await running is True


async def has_ended(redis: Redis, task: Job) -> bool:
    events = await Desk(redis, "t").events(task)
    return any(isinstance(event, Terminal) for event in events)


def stepping(worker: WorkerService) -> bool:
    return "t" in worker.models and worker.models["t"].host.engine.load.running == 1


async def test_a_drain_waits_for_a_task_but_others_do_not(redis: Redis) -> None:
    """A worker that drains gives answers to other workers at once, and ends its task itself.

    The drain's timeout leaves time for the task.
    """
    leaver = WorkerService(Desk(redis).broker, QueuePolicy(LEASE_S), drain_timeout_s=30)
    gated = Gated(RunnerOptions("echo", max_batch=4))
    busy = Busy(RunnerOptions("echo-task", max_batch=4))
    stop = asyncio.Event()
    running = asyncio.create_task(leaver.run(lambda: loaded(gated, busy), stop))
    [answer] = await Desk(redis).submit(long_task(3))
    [task] = await Desk(redis, "t").submit(EchoTask("x"))
    await until(lambda: gated.num_steps > 0, "the answer is begun")
    await until(lambda: stepping(leaver), "the task is begun")

    stop.set()
    gated.gate.set()
    try:
        async with serving(service(redis), Echo(RunnerOptions("echo", max_batch=4))):
            assert isinstance(await end_of(redis, answer), Done)
            assert not await has_ended(redis, task), "the answer waited for the task"
    finally:
        busy.may_end.set()

    assert isinstance(await end_of(redis, task), Done)
    _, epochs = await log_fields_of(redis, task)
    assert epochs == [1]
    assert await running is True


async def test_a_task_that_has_no_time_left_goes_to_another_worker(redis: Redis) -> None:
    """A task that the drain's timeout interrupts is done by another worker."""
    leaver = WorkerService(Desk(redis).broker, QueuePolicy(LEASE_S), drain_timeout_s=0.2)
    stop = asyncio.Event()
    running = asyncio.create_task(leaver.run(lambda: loaded(echo_task()), stop))
    [task] = await Desk(redis, "t").submit(EchoTask("x", steps=40, step_ms=50))
    await until(lambda: stepping(leaver), "the task is begun")

    # All its steps take 2 s, and the drain has 0.2 s.
    stop.set()
    assert await running is True

    async with serving(service(redis), echo_task()):
        assert isinstance(await end_of(redis, task), Done)
    _, epochs = await log_fields_of(redis, task)
    assert epochs == [1, 2]


@pytest.mark.parametrize(("is_streamed", "step_ms"), [(True, 1000), (False, 100)])
async def test_who_follows_hears_of_each_step(
    redis: Redis, is_streamed: bool, step_ms: int
) -> None:
    """A task that is streamed reports each step, and another about twice a second."""
    desk = Desk(redis, "t")
    async with serving(service(redis), echo_task()):
        task = EchoTask("x", steps=5, step_ms=step_ms)
        [job] = await desk.submit(task, is_streamed=is_streamed)
        await end_of(redis, job)

    progress = [event for event in await desk.events(job) if isinstance(event, Progress)]
    assert progress[-1] == Progress(5, 5)
    if is_streamed:
        assert len(progress) >= 4
    else:
        assert len(progress) < 5


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has priorities of threads")
async def test_tasks_give_way_to_what_decodes_and_only_to_that(redis: Redis) -> None:
    """The thread of tasks is nice beside a model that decodes, and only there."""
    ordinary = os.getpriority(os.PRIO_PROCESS, 0)

    async with serving(service(redis), echo_task()) as stop:
        await until(lambda: "tasks" in niceness_by_thread(), "the thread is there")
        assert not stop.is_set()
        await until(
            lambda: niceness_by_thread().get("tasks") == ordinary, f"its niceness is {ordinary}"
        )
        assert niceness_by_thread()["engine"] == ordinary

    echo = Echo(RunnerOptions("echo", max_batch=4))
    async with serving(service(redis), echo, echo_task()) as stop:
        await until(lambda: "tasks" in niceness_by_thread(), "the thread is there")
        assert not stop.is_set()
        await until(lambda: niceness_by_thread().get("tasks") == 19, "its niceness is 19")
        assert niceness_by_thread()["engine"] == ordinary, "what decodes is not nice"

    for told in (7, 0):
        async with serving(service(redis, task_niceness=told), echo, echo_task()) as stop:
            assert not stop.is_set()
            await until(
                lambda told=told: niceness_by_thread().get("tasks") == max(told, ordinary),
                f"its niceness is {told}",
            )


def niceness_by_thread() -> dict[str, int]:
    """Return the niceness of each thread of this process, by its name."""
    niceness = {}
    for thread in threading.enumerate():
        if thread.native_id is not None:
            niceness[thread.name] = os.getpriority(os.PRIO_PROCESS, thread.native_id)
    return niceness
