"""Worker services inside a test's own process, with runners that are slow, or stand still until
told."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

from redis.asyncio import Redis

from shared.broker import Broker
from shared.errors import FleetError
from shared.log import LogReader
from shared.messages import Generate, Job, ModelInfo, Sampling, Score, Started, Terminal, Tokens
from shared.queue import QueuePolicy
from shared.subscriptions import Subscriptions
from shared.tracing import NO_TRACING, Tracing
from tests.polling import DEADLINE_S
from worker.engines import AnyRunner
from worker.loading import LoadedModel
from worker.runners.base import RunnerOptions
from worker.runners.echo import Echo
from worker.sequence import Encoded, Slice, StepResult
from worker.service import WorkerService

LEASE_S = 0.5


def task(prompt: str) -> Generate:
    return Generate(prompt, Sampling(max_tokens=3, seed=0))


def long_task(num_tokens: int = 400) -> Generate:
    return Generate("abc", Sampling(num_tokens, seed=0))


def service(
    redis: Redis, *, lease_s: float = LEASE_S, tracing: Tracing = NO_TRACING
) -> WorkerService:
    terms = QueuePolicy(lease_s=lease_s, result_ttl_s=60)
    return WorkerService(Broker(redis), terms, drain_timeout_s=1, tracing=tracing)


def loaded(*runners: AnyRunner) -> list[LoadedModel]:
    """A model `m` that decodes, a model `t` whose tasks are done whole, or both."""
    found = []
    for runner in runners:
        name = {"sequence": "m", "task": "t"}[runner.spec.mechanism]
        info = ModelInfo(name, runner.spec.runner, "test", 100, 100, 4)
        found.append(LoadedModel(info, runner, partial(_again, runner)))
    return found


def _again(runner: AnyRunner) -> LoadedModel:
    return loaded(runner)[0]


@asynccontextmanager
async def serving(worker: WorkerService, *runners: AnyRunner) -> AsyncIterator[asyncio.Event]:
    """A worker at work; the event ends it, as does the end of the block."""
    stop = asyncio.Event()
    running = asyncio.create_task(worker.run(lambda: loaded(*runners), stop))
    try:
        yield stop
    finally:
        stop.set()
        await running


async def end_of(redis: Redis, job: Job) -> Terminal:
    subscriptions = Subscriptions(redis)
    try:
        async with asyncio.timeout(DEADLINE_S):
            async for _, event in LogReader(Broker(redis), subscriptions, poll_s=0.1).follow(
                job.id
            ):
                if isinstance(event, Terminal):
                    return event
    finally:
        await subscriptions.close()
    raise AssertionError("a log without an end")


async def log_fields_of(redis: Redis, job: Job) -> tuple[str, list[int]]:
    """All text of a job's log, and the epochs that began it."""
    events = [event for _, event in await LogReader(Broker(redis)).read(job.id)]
    text = "".join(event.text for event in events if isinstance(event, Tokens))
    return text, [event.epoch for event in events if isinstance(event, Started)]


class Slow(Echo):
    """Tokenizes and steps slowly, on whatever thread it is called."""

    tokenizing_s, stepping_s = 0.0, 0.0

    def encode(self, task: Generate | Score) -> Encoded:
        time.sleep(self.tokenizing_s)
        return super().encode(task)

    def step(self, slices: Sequence[Slice]) -> list[StepResult | FleetError]:
        time.sleep(self.stepping_s)
        return super().step(slices)


class Gated(Echo):
    """Steps while the gate is open; a step that finds it closed stands still for up to
    `longest_s`."""

    def __init__(self, options: RunnerOptions, *, longest_s: float = 20.0) -> None:
        super().__init__(options)
        self.gate, self.longest_s = threading.Event(), longest_s
        self.num_steps = 0
        self.step_began_s = 0.0

    def step(self, slices: Sequence[Slice]) -> list[StepResult | FleetError]:
        self.step_began_s = time.monotonic()
        self.num_steps += 1
        self.gate.wait(self.longest_s)
        return super().step(slices)
