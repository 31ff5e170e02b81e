"""Classes in the engine and the worker (P7): the better one gets a slot at once, the paused one
goes on as if nothing had been."""

import pytest
from redis.asyncio import Redis

from shared.messages import Done, Priority, Sampling
from tests.fixtures.desk import Desk
from tests.fixtures.polling import until
from tests.fixtures.worker.ghost import Ghost, answer
from tests.fixtures.worker.services import (
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


def generate(
    key: str, priority: Priority, max_tokens: int, prompt: tuple[int, ...] = (1, 2)
) -> SequenceWork:
    return SequenceWork(
        key, Encoded(prompt, max_tokens), Sampling(max_tokens, 1), priority=priority
    )


class Fleet:
    """An engine over a ghost, which checks every place it reads, and what each work said."""

    def __init__(self, **spec: int) -> None:
        self.ghost = Ghost(**{"num_pages": 100, "max_batch": 2, **spec})
        self.emissions: list[Emission] = []
        self.engine = Engine(self.ghost, self.emissions.extend)

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.engine.step()

    def finish(self) -> None:
        while self.engine.has_work:
            self.engine.step()
        assert all(len(step) <= self.ghost.spec.max_batch for step in self.ghost.steps)

    def said(self, key: str) -> list[int]:
        return [token for item in self.emissions if item.key == key for token in item.ids]

    def steps_of(self, key: str) -> list[int]:
        return [
            number
            for number, step in enumerate(self.ghost.steps)
            if any(part[0] == key for part in step)
        ]

    def submit(self, *works: SequenceWork) -> None:
        for work in works:
            self.engine.submit(work)


def test_the_latest_of_the_lowest_class_is_paused_and_goes_on() -> None:
    fleet = Fleet(max_batch=3)
    fleet.submit(
        generate("old bulk", "bulk", 30),
        generate("bulk", "bulk", 30),
        generate("default", "default", 30),
    )
    fleet.run(5)
    fleet.submit(generate("urgent", "interactive", 10))
    fleet.finish()
    assert fleet.steps_of("urgent") == list(range(5, 15)), "it starts at once and is never paused"
    assert fleet.steps_of("old bulk") == fleet.steps_of("default") == list(range(30))
    paused = fleet.steps_of("bulk")
    assert not set(range(5, 15)) & set(paused)
    assert paused[-1] == 40 - 1
    for key, count in (("old bulk", 30), ("bulk", 30), ("default", 30), ("urgent", 10)):
        assert fleet.said(key) == answer((1, 2), count, generate(key, "bulk", 1).sampling.seed)  # type: ignore[union-attr]


@pytest.mark.parametrize("priority", ["default", "bulk"])
def test_no_class_gives_way_to_its_own_or_a_worse_one(priority: Priority) -> None:
    fleet = Fleet()
    fleet.submit(generate("a", "default", 20), generate("b", "default", 20))
    fleet.run(3)
    fleet.submit(generate("c", priority, 5))
    fleet.finish()
    assert fleet.steps_of("a") == fleet.steps_of("b") == list(range(20))
    assert min(fleet.steps_of("c")) == 20


def test_a_better_class_gets_the_pages_too() -> None:
    """Slots are free, but the store is full of bulk."""
    fleet = Fleet(num_pages=12, max_batch=4)
    fleet.submit(generate("x", "bulk", 16, (1,) * 8), generate("y", "bulk", 16, (2,) * 8))
    fleet.run(8)
    fleet.submit(generate("urgent", "interactive", 2, (3,) * 20))
    fleet.finish()
    assert max(fleet.steps_of("urgent")) < 12
    assert fleet.said("y") == answer((2,) * 8, 16, 1)


def test_none_is_paused_for_ever() -> None:
    """Urgent works without end, and the paused one has its turn; what has waited that long is not
    paused again."""
    fleet = Fleet(max_batch=1)
    fleet.submit(generate("bulk", "bulk", 40))
    fleet.run(2)
    for number in range(2 * PATIENCE_STEPS + 100):
        fleet.submit(generate(f"urgent {number}", "interactive", 2))
        fleet.run(1)
    steps = fleet.steps_of("bulk")
    assert len(steps) == 40
    assert 2 * PATIENCE_STEPS <= steps[2] < 2 * PATIENCE_STEPS + 10
    assert steps[2:] == list(range(steps[2], steps[2] + 38))


async def test_a_full_worker_takes_an_urgent_job_all_the_same(redis: Redis) -> None:
    """Both places are bulk's. No more urgent ones are taken than can run; of the others none is."""
    slow = Slow(RunnerOptions("echo", max_batch=2))
    worker = service(redis)
    desk = Desk(redis)
    slow.stepping_s = 0.01
    async with serving(worker, slow):
        bulk = await desk.submit(*[long_task(200)] * 2, priority="bulk")
        await until(lambda: len(worker._ledger.claims) == 2, "the worker is full")
        waiting = await desk.submit(long_task(30), priority="default")
        urgent = await desk.submit(*[long_task(30)] * 5, priority="interactive")
        await until(lambda: len(worker._ledger.claims) == 4, "two urgent ones are taken besides")
        assert {claim.job.id for claim in worker._ledger.claims} < {
            job.id for job in (*bulk, *urgent)
        }
        for job in urgent:
            assert isinstance(await end_of(redis, job), Done)
        assert await desk.counts() == (1, 2), "a bulk job has ended, or the default one was taken"
        for job, text in (
            (bulk[0], ("abc" * 67)[:200]),
            (bulk[1], ("abc" * 67)[:200]),
            (waiting[0], "abc" * 10),
        ):
            assert isinstance(await end_of(redis, job), Done)
            assert await log_fields_of(redis, job) == (text, [1])
        await until(
            lambda: (
                worker.models["m"].host.intake._free
                == worker.models["m"].host.intake._urgent_free
                == 2
            ),
            "all places are free",
        )


async def test_what_a_dead_worker_left_goes_to_places_of_its_own_class(redis: Redis) -> None:
    """A full worker that looks for urgent jobs takes over no others."""
    desk = Desk(redis)
    await desk.submit(task("abc"), priority="bulk")
    [claim] = await desk.take(1, "dead")
    await desk.queue("dead").give_back([claim])
    assert await desk.take(1, priorities=("interactive",)) == []
    assert [item.job for item in await desk.take(1)] == [claim.job]
