"""Ending a job from outside frees its place and its pages within a step and 50 ms, whatever it is
at (`end.lua`)."""

import asyncio
import statistics
import threading
import time
from collections.abc import Callable, Sequence

import pytest
from redis.asyncio import Redis

from shared.errors import FleetError
from shared.messages import Cancelled, Generate, Job, Sampling
from tests.fixtures.desk import Desk
from tests.fixtures.polling import DEADLINE_S
from tests.fixtures.slowness import slowness
from tests.fixtures.worker.ghost import Ghost
from tests.fixtures.worker.services import service, serving
from worker.engine.sequence import Encoded, Slice, StepResult, TokenSequence
from worker.host.service import WorkerService

STEP_S = 0.04
SLACK_S = 0.05
NUM_PAGES = 400
MAX_BATCH = 2
STEP_TOKENS = 16
LONG = "x" * 1200
SHORT = "xy"
"""Of 75 steps of prefill, and of one."""


class Paced(Ghost):
    """A ghost that reads text, and takes a while for a step. With the gate closed it does not get
    to the end of a prompt's encoding."""

    def __init__(self) -> None:
        super().__init__(
            num_pages=NUM_PAGES, max_batch=MAX_BATCH, step_tokens=STEP_TOKENS, reuse="none"
        )
        self.gate = threading.Event()
        self.num_encoding = 0

    def encode(self, task: object) -> Encoded:
        assert isinstance(task, Generate) and isinstance(task.prompt, str)
        self.num_encoding += 1
        self.gate.wait(DEADLINE_S)
        return Encoded(tuple(map(ord, task.prompt)), task.sampling.max_tokens)

    def step(self, slices: Sequence[Slice]) -> list[StepResult | FleetError]:
        time.sleep(STEP_S)
        return super().step(slices)


def sequences(worker: WorkerService) -> list[TokenSequence]:
    """None while the model is being loaded."""
    if worker.not_ready():
        return []
    return list(worker.models["m"].host.engine._scheduler._running)


def is_free(worker: WorkerService) -> bool:
    """All places, all pages and nothing in hand."""
    scheduler = worker.models["m"].host.engine._scheduler
    assert scheduler._cache is not None
    return (
        worker.models["m"].host.intake._free == MAX_BATCH
        and not worker._ledger.claims
        and scheduler._cache.pages.num_free == NUM_PAGES
        and not scheduler.has_work
    )


def is_in(phase: str, worker: WorkerService, ghost: Paced) -> bool:
    if phase == "intake":
        return ghost.num_encoding > 0
    running = sequences(worker)
    if phase == "prefill":
        return bool(running) and 0 < running[0].num_computed < len(LONG)
    return bool(running) and len(running[0].output_ids) > 2


async def seconds_until(condition: Callable[[], bool]) -> float:
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < DEADLINE_S
        await asyncio.sleep(0.001)
    return time.monotonic() - begun


@pytest.mark.parametrize("phase", ["intake", "prefill", "decode"])
async def test_a_cancelled_job_is_gone_within_a_step(redis: Redis, phase: str) -> None:
    """Of five tries the median counts: the machine may be busy with something else."""
    ghost = Paced()
    worker = service(redis, lease_s=30)
    desk = Desk(redis)
    took = []
    stretched = slowness()
    async with serving(worker, ghost):
        for _ in range(5):
            ghost.num_encoding = 0
            ghost.gate.clear()
            if phase != "intake":
                ghost.gate.set()
            prompt = LONG if phase == "prefill" else SHORT
            [job] = await desk.submit(Generate(prompt, Sampling(300, 0)), is_streamed=True)
            await seconds_until(lambda: is_in(phase, worker, ghost))
            assert not is_free(worker)
            assert await desk.submissions.end([job], Cancelled()) == 1
            took.append(await seconds_until(lambda: is_free(worker)))
            await check_log(desk, job)
            ghost.gate.set()
    assert statistics.median(took) < (STEP_S + SLACK_S) * max(stretched, slowness()), took


async def check_log(desk: Desk, job: Job) -> None:
    """Nothing is said behind the end."""
    events = await desk.events(job)
    assert [isinstance(event, Cancelled) for event in events] == [False] * (len(events) - 1) + [
        True
    ]


async def test_a_cancelled_job_behind_a_full_engine_is_gone_too(redis: Redis) -> None:
    """It is in the worker's hands, and waits for a place that another job's choices hold."""
    ghost = Paced()
    worker = service(redis, lease_s=30)
    desk = Desk(redis)
    ghost.gate.set()
    async with serving(worker, ghost):
        await desk.submit(Generate(SHORT, Sampling(300, 0)))
        await seconds_until(lambda: len(sequences(worker)) == 1)
        [wide] = await desk.submit(Generate(SHORT, Sampling(300, 0, n=3)))
        await seconds_until(lambda: len(sequences(worker)) == 2)
        assert worker.models["m"].host.intake._free == -2
        await desk.submissions.end([wide], Cancelled())
        await seconds_until(
            lambda: worker.models["m"].host.intake._free == 1 and len(sequences(worker)) == 1
        )
        assert not worker.models["m"].host.engine._scheduler._waiting
