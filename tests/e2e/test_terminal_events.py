"""The invariant of the queue: whatever happens, every accepted job ends in exactly one terminal
event (P4).

Real worker processes of the echo model on a real redis-server; one of them is killed and replaced
on the way.
"""

import asyncio
import random
import signal

from redis.asyncio import Redis

from shared.messages import (
    Cancelled,
    Done,
    Event,
    Failed,
    Generate,
    Job,
    Sampling,
    Score,
    Scored,
    Started,
    Terminal,
    Tokens,
)
from shared.queue import keys
from tests.fixtures.desk import Desk
from tests.fixtures.e2e.fleet import WorkerProcess, start_worker
from tests.fixtures.polling import DEADLINE_S
from tests.fixtures.redis_server import RedisServer
from tests.fixtures.worker.stepping import end_of

NUM_JOBS = 500


def random_task(rng: random.Random) -> Generate | Score:
    """Long, short, stopping, scoring and invalid tasks, some of several choices; some prompts end
    by themselves."""
    kind = rng.random()
    if kind < 0.2:
        tails = tuple("x" * rng.randint(1, 9) for _ in range(rng.randint(1, 4)))
        return Score("context", tails)
    if kind < 0.25:
        return Generate("", Sampling(max_tokens=5, seed=0))
    prompt = "".join(rng.choices("abcdefgh ", k=rng.randint(1, 40))) + rng.choice(["", " eos"])
    stop = (prompt[:2],) if rng.random() < 0.2 else ()
    sampling = Sampling(rng.randint(1, 200), seed=1, stop=stop, n=rng.choice((1, 1, 1, 2, 3)))
    return Generate(prompt, sampling)


def expected_text(task: Generate) -> str:
    """What echo says in each choice, from its definition alone."""
    said = (task.prompt * 200)[: task.sampling.max_tokens]  # type: ignore[operator]
    if "eos" in task.prompt:  # type: ignore[operator]
        said = said[: len(task.prompt)]
    for stop in task.sampling.stop:
        said = said.partition(stop)[0]
    return said


def check_log(job: Job, events: list[Event], was_cancelled: bool) -> None:
    terminal = [event for event in events if isinstance(event, Terminal)]
    assert len(terminal) == 1, (job, events)
    assert events[-1] is terminal[0]
    if isinstance(terminal[0], Cancelled):
        assert was_cancelled
        return
    if isinstance(terminal[0], Failed):
        assert job.task.prompt == "", terminal[0]  # type: ignore[union-attr]
        return
    assert isinstance(terminal[0], Done)
    if isinstance(job.task, Score):
        scores = end_of(terminal[0], Scored).scores
        assert [score.num_tokens for score in scores] == [
            len(tail) for tail in job.task.continuations
        ]
        return
    tokens = [event for event in events if isinstance(event, Tokens)]
    for choice in range(job.task.sampling.n):
        own = [event for event in tokens if event.choice == choice]
        assert "".join(event.text for event in own) == expected_text(job.task)
        assert [event.finish_reason is not None for event in own] == [False] * (len(own) - 1) + [
            True
        ]
    num_ids = sum(len(event.ids) for event in tokens)
    assert num_ids == terminal[0].num_completion_tokens, "a token was lost or doubled"


async def test_500_random_jobs_end_once_each(redis_server: RedisServer, redis: Redis) -> None:
    """P1 (first slice), P4, P6: with cancels at random and a worker killed and another stopped
    half-way."""
    rng = random.Random(20)
    desk = Desk(redis, "echo")
    jobs = list[Job]()
    more = list[Job]()
    to_cancel = set(rng.sample(range(NUM_JOBS), 60))
    victim, drained, survivor = await asyncio.gather(
        *(start_worker(redis_server.url, redis) for _ in range(3))
    )
    try:
        for start in range(0, NUM_JOBS, 20):
            jobs += await desk.submit(*(random_task(rng) for _ in range(20)), max_jobs=NUM_JOBS)
            for index in range(start, start + 20):
                if index in to_cancel:
                    await desk.submissions.end([jobs[index]], Cancelled())
            if start == 200:
                more = await kill_with_jobs_in_hand(victim, redis, desk, jobs)
            if start == 300:
                drained.signal(signal.SIGTERM)
        await all_ended(redis, [*jobs, *more])
        assert await drained.wait() == 0
        for index, job in enumerate([*jobs, *more]):
            check_log(job, await desk.events(job), index in to_cancel)
        assert await num_taken_over(desk, [*jobs, *more]) > 0, (
            "the kill hit nothing, so this proved nothing"
        )
        await nothing_is_left(redis, desk)
    finally:
        for worker in (victim, drained, survivor):
            await worker.end()


async def all_ended(redis: Redis, jobs: list[Job], deadline_s: float = 150.0) -> None:
    async with asyncio.timeout(deadline_s):
        for job in jobs:
            while await redis.hget(keys.job(job.id), "state") not in (
                b"done",
                b"failed",
                b"cancelled",
            ):  # type: ignore[misc]
                await asyncio.sleep(0.02)


async def kill_with_jobs_in_hand(
    victim: WorkerProcess, redis: Redis, desk: Desk, jobs: list[Job], deadline_s: float = DEADLINE_S
) -> list[Job]:
    """Freeze the worker when it holds jobs, make sure that it does, and kill it then. Returns jobs
    that it got for want of others."""
    more: list[Job] = []
    async with asyncio.timeout(deadline_s):
        while True:
            victim.signal(signal.SIGSTOP)
            held = [
                await redis.hmget(keys.job(job.id), "state", "worker") for job in [*jobs, *more]
            ]  # type: ignore[misc]
            if any(
                state == b"running" and f"-{victim.pid}-".encode() in worker
                for state, worker in held
            ):
                break
            victim.signal(signal.SIGCONT)
            more += await desk.submit(Generate("abc", Sampling(200, seed=0)), max_jobs=NUM_JOBS)
            await asyncio.sleep(0.002)
    victim.signal(signal.SIGKILL)
    await victim.wait()
    return more


async def num_taken_over(desk: Desk, jobs: list[Job]) -> int:
    logs = [await desk.events(job) for job in jobs]
    return sum(any(isinstance(event, Started) and event.epoch > 1 for event in log) for log in logs)


async def nothing_is_left(redis: Redis, desk: Desk) -> None:
    """No job waits, none is leased, no quota is held, and every key of every job has a time to
    live."""
    async with asyncio.timeout(DEADLINE_S):
        while await desk.counts() != (0, 0):
            await asyncio.sleep(0.02)
    for key in [*await redis.keys("aios:{00}:job:*"), *await redis.keys("aios:{00}:log:*")]:
        assert await redis.pttl(key) > 0, key
    assert not await redis.keys("aios:{00}:held:*")


async def test_a_worker_that_starts_later_finds_the_jobs_that_waited(
    redis_server: RedisServer, redis: Redis
) -> None:
    """Nothing queued before the first worker is lost."""
    desk = Desk(redis, "echo")
    (job,) = await desk.submit(Generate("hello", Sampling(max_tokens=5, seed=0)))
    worker: WorkerProcess = await start_worker(redis_server.url, redis)
    try:
        await all_ended(redis, [job])
    finally:
        await worker.end()
    events = await desk.events(job)
    assert isinstance(events[0], Started)
    check_log(job, events, was_cancelled=False)
