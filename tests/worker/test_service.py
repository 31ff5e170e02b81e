"""A worker whose own parts break: it must not sit there ready and deaf."""

import asyncio
from collections.abc import Sequence

from redis.asyncio import Redis

from shared import keys
from shared.log import LogReader
from shared.messages import Done, Failed, Generate, Job, ModelInfo, Sampling, Score, Terminal
from shared.queue import JobQueue
from shared.subscriptions import Subscriptions
from worker.loading import LoadedModel
from worker.runners.base import RunnerOptions
from worker.runners.echo import Echo
from worker.sequence import Encoded
from worker.service import WorkerService


def new_job(prompt: str) -> Job:
    return Job(keys.new_job_id(), "m", Generate(prompt, Sampling(max_tokens=3, seed=0)))


def service(redis: Redis) -> WorkerService:
    return WorkerService(redis, lease_s=0.5, result_ttl_s=60, drain_timeout_s=5)


def loaded(runner: Echo) -> list[LoadedModel]:
    return [LoadedModel(ModelInfo("m", "echo", "test", 100, 100, 4), runner)]


async def end_of(redis: Redis, job: Job) -> Terminal:
    subscriptions = Subscriptions(redis)
    try:
        async for _, event in LogReader(redis, subscriptions, poll_s=0.1).follow(job.id):
            if isinstance(event, Terminal):
                return event
    finally:
        await subscriptions.close()
    raise AssertionError("a log without an end")


class BadTokenizer(Echo):
    def encode(self, task: Generate | Score) -> Encoded:
        if isinstance(task, Generate) and task.prompt == "bad":
            raise KeyError("no such token")
        return super().encode(task)


class BadStop(Echo):
    """Breaks the engine itself: its `decode` is called outside the seam around a step."""

    def decode(self, token_ids: Sequence[int]) -> str:
        raise ZeroDivisionError


async def test_a_prompt_that_breaks_the_tokenizer_fails_alone(redis: Redis) -> None:
    stop, jobs = asyncio.Event(), [new_job("good"), new_job("bad"), new_job("fine")]
    running = asyncio.create_task(service(redis).run(lambda: loaded(BadTokenizer(RunnerOptions("echo"))), stop))
    await JobQueue(redis).submit(jobs, max_depth=10, queue_timeout_s=60)
    ends = [await asyncio.wait_for(end_of(redis, job), 20) for job in jobs]
    assert [type(end) for end in ends] == [Done, Failed, Done]
    stop.set()
    assert await running is True


async def test_a_worker_with_a_dead_engine_ends_and_hands_its_job_over(redis: Redis) -> None:
    """P1: `run` answers False, the process exits, and the next worker finishes the job at once."""
    job = new_job("abc")
    await JobQueue(redis).submit([job], max_depth=10, queue_timeout_s=60)
    broken = service(redis).run(lambda: loaded(BadStop(RunnerOptions("echo"))), asyncio.Event())
    assert await asyncio.wait_for(broken, 20) is False
    stop = asyncio.Event()
    running = asyncio.create_task(service(redis).run(lambda: loaded(Echo(RunnerOptions("echo"))), stop))
    assert isinstance(await asyncio.wait_for(end_of(redis, job), 20), Done)
    stop.set()
    assert await running is True
