"""Priority classes in the engine and the worker (P7).

The better class gets a slot at once. The sequence that it pauses goes on later, with the same
tokens.
"""

import pytest
from redis.asyncio import Redis

from shared.messages import Done, Priority, Sampling
from tests.fixtures.desk import Desk
from tests.fixtures.polling import until
from tests.fixtures.worker.ghost import Ghost, answer
from tests.fixtures.worker.services import (
    Gated,
    Slow,
    end_of,
    log_fields_of,
    long_task,
    service,
    serving,
    task,
)
from worker.engine.engine import Engine
from worker.engine.request import Emission, SequenceWork
from worker.engine.runner import RunnerOptions
from worker.engine.scheduler import PATIENCE_STEPS
from worker.engine.sequence import Encoded
from worker.host.service import WorkerService

SEED = 1


def generate(
    key: str, priority: Priority, max_tokens: int, prompt: tuple[int, ...] = (1, 2)
) -> SequenceWork:
    sampling = Sampling(max_tokens, seed=SEED)
    return SequenceWork(key, Encoded(prompt, max_tokens), sampling, priority=priority)


class Harness:
    """An engine over a ghost, which checks all keys and values it reads."""

    def __init__(self, *, num_pages: int = 100, max_batch: int = 2) -> None:
        self.ghost = Ghost(num_pages=num_pages, max_batch=max_batch, step_tokens=64)
        self.emissions: list[Emission] = []
        self.engine = Engine(self.ghost, self.emissions.extend)

    def submit(self, *works: SequenceWork) -> None:
        for work in works:
            self.engine.submit(work)

    def run(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.engine.step()

    def finish(self) -> None:
        while self.engine.has_work:
            self.engine.step()
        for step in self.ghost.steps:
            assert len(step) <= self.ghost.spec.max_batch

    def ids(self, key: str) -> list[int]:
        """Return all tokens of one work."""
        ids: list[int] = []
        for emission in self.emissions:
            if emission.key == key:
                ids += emission.ids
        return ids

    def steps_of(self, key: str) -> list[int]:
        """Return the numbers of the steps that one work took part in."""
        numbers: list[int] = []
        for number, step in enumerate(self.ghost.steps):
            keys = [part[0] for part in step]
            if key in keys:
                numbers.append(number)
        return numbers


def test_the_latest_of_the_lowest_class_is_paused_and_goes_on() -> None:
    """An urgent work starts at once; the latest bulk work pauses for it, and no other.

    The other bulk work stands back for the one step that computes the urgent prompt.
    """
    harness = Harness(max_batch=3)
    harness.submit(
        generate("old bulk", "bulk", 30),
        generate("bulk", "bulk", 30),
        generate("default", "default", 30),
    )
    harness.run(5)
    harness.submit(generate("urgent", "interactive", 10))
    harness.finish()

    assert harness.steps_of("urgent") == list(range(5, 15))
    assert harness.steps_of("old bulk") == [*range(5), *range(6, 31)]
    assert harness.steps_of("default") == list(range(30))
    # Ten steps of pause, so it ends ten steps later.
    paused = harness.steps_of("bulk")
    assert set(paused).isdisjoint(range(5, 15))
    assert paused[-1] == 40 - 1

    assert harness.ids("old bulk") == answer((1, 2), 30, SEED)
    assert harness.ids("bulk") == answer((1, 2), 30, SEED)
    assert harness.ids("default") == answer((1, 2), 30, SEED)
    assert harness.ids("urgent") == answer((1, 2), 10, SEED)


@pytest.mark.parametrize("priority", ["default", "bulk"])
def test_no_class_gives_way_to_its_own_or_a_worse_one(priority: Priority) -> None:
    """A work of the same class or a worse one waits until a slot is free."""
    harness = Harness()
    harness.submit(generate("a", "default", 20), generate("b", "default", 20))
    harness.run(3)
    harness.submit(generate("c", priority, 5))
    harness.finish()

    assert harness.steps_of("a") == list(range(20))
    assert harness.steps_of("b") == list(range(20))
    assert min(harness.steps_of("c")) == 20


def test_a_better_class_gets_the_pages_too() -> None:
    """Bulk works give pages back if slots are free but they hold all pages."""
    harness = Harness(num_pages=12, max_batch=4)
    harness.submit(generate("x", "bulk", 16, (1,) * 8), generate("y", "bulk", 16, (2,) * 8))
    harness.run(8)
    harness.submit(generate("urgent", "interactive", 2, (3,) * 20))
    harness.finish()

    assert max(harness.steps_of("urgent")) < 12
    assert harness.ids("y") == answer((2,) * 8, 16, SEED)


def test_none_is_paused_for_ever() -> None:
    """A paused work has its turn although urgent works come without end.

    One that has waited so long is not paused again.
    """
    harness = Harness(max_batch=1)
    harness.submit(generate("bulk", "bulk", 40))
    harness.run(2)
    for number in range(2 * PATIENCE_STEPS + 100):
        harness.submit(generate(f"urgent {number}", "interactive", 2))
        harness.run(1)

    steps = harness.steps_of("bulk")
    assert len(steps) == 40
    # It ran twice at first. It rises by one class after each `PATIENCE_STEPS`.
    resumed = steps[2]
    assert 2 * PATIENCE_STEPS <= resumed < 2 * PATIENCE_STEPS + 10
    assert steps[2:] == list(range(resumed, resumed + 38))


def claimed_ids(worker: WorkerService) -> set[str]:
    return {claim.job.id for claim in worker.ledger.claims}


def has_all_places_free(worker: WorkerService) -> bool:
    intake = worker.models["m"].host.intake
    return intake.free_slots == 2 and intake.urgent_free_slots == 2


async def test_a_full_worker_takes_an_urgent_job_all_the_same(redis: Redis) -> None:
    """A worker full of bulk takes as many urgent jobs as can run, and no other job."""
    slow = Slow(RunnerOptions("echo", max_batch=2))
    slow.stepping_s = 0.01
    worker = service(redis, lease_s=30)
    desk = Desk(redis)
    async with serving(worker, slow):
        bulk = await desk.submit(long_task(200), long_task(200), priority="bulk")
        await until(lambda: len(claimed_ids(worker)) == 2, "the worker is full")

        [waiting] = await desk.submit(long_task(30), priority="default")
        urgent = await desk.submit(*[long_task(30)] * 5, priority="interactive")
        await until(lambda: len(claimed_ids(worker)) == 4, "two urgent ones are taken besides")
        assert waiting.id not in claimed_ids(worker)
        assert claimed_ids(worker) < {job.id for job in (*bulk, *urgent)}

        for job in urgent:
            assert isinstance(await end_of(redis, job), Done)
        # Else a bulk job has ended, or the default one was taken.
        assert await desk.counts() == (1, 2)

        expected = [
            (bulk[0], ("abc" * 67)[:200]),
            (bulk[1], ("abc" * 67)[:200]),
            (waiting, "abc" * 10),
        ]
        for job, text in expected:
            assert isinstance(await end_of(redis, job), Done)
            assert await log_fields_of(redis, job) == (text, [1])
        await until(lambda: has_all_places_free(worker), "all places are free")


async def test_a_full_worker_hears_of_urgent_jobs(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It need not ask Redis for them."""
    monkeypatch.setattr("worker.host.intake._WAIT_S", 1000)
    gated = Gated(RunnerOptions("echo", max_batch=2))
    desk = Desk(redis)
    worker = service(redis)
    async with serving(worker, gated):
        bulk = await desk.submit(long_task(3), long_task(3), priority="bulk")
        await until(lambda: len(claimed_ids(worker)) == 2, "the worker is full")
        [waiting] = await desk.submit(long_task(3), priority="default")
        [urgent] = await desk.submit(long_task(3), priority="interactive")
        await until(lambda: len(claimed_ids(worker)) == 3, "the urgent one is taken besides")
        assert urgent.id in claimed_ids(worker)

        gated.gate.set()
        for job in (*bulk, urgent, waiting):
            assert isinstance(await end_of(redis, job), Done)


async def test_what_a_dead_worker_left_goes_to_places_of_its_own_class(redis: Redis) -> None:
    """A full worker that looks for urgent jobs takes over no others."""
    desk = Desk(redis)
    await desk.submit(task("abc"), priority="bulk")
    [claim] = await desk.take(1, "dead")
    await desk.queue("dead").give_back([claim])

    assert await desk.take(1, priorities=("interactive",)) == []
    [taken] = await desk.take(1)
    assert taken.job == claim.job
