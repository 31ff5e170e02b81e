"""Every accepted job ends in exactly one terminal event, whatever happens (P4).

Real workers of the echo model share a real redis-server. One of them is killed on the way.
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
    """Draw a long, short, stopping, scoring or invalid task.

    Some tasks have several choices, and some prompts end by themselves.
    """
    # A seed gives the same tasks as long as the order of the draws stays.
    kind = rng.random()
    if kind < 0.2:
        continuations = []
        for _ in range(rng.randint(1, 4)):
            continuations.append("x" * rng.randint(1, 9))
        return Score("context", tuple(continuations))
    if kind < 0.25:
        return Generate("", Sampling(max_tokens=5, seed=0))

    prompt = "".join(rng.choices("abcdefgh ", k=rng.randint(1, 40)))
    prompt += rng.choice(["", " eos"])
    stop: tuple[str, ...] = ()
    if rng.random() < 0.2:
        stop = (prompt[:2],)
    max_tokens = rng.randint(1, 200)
    num_choices = rng.choice((1, 1, 1, 2, 3))
    return Generate(prompt, Sampling(max_tokens, seed=1, stop=stop, n=num_choices))


def expected_text(task: Generate) -> str:
    """Return the text of each choice of the echo model, from its definition alone."""
    text = (task.prompt * 200)[: task.sampling.max_tokens]  # type: ignore[operator]
    if "eos" in task.prompt:  # type: ignore[operator]
        text = text[: len(task.prompt)]
    for stop in task.sampling.stop:
        text = text.partition(stop)[0]
    return text


def check_log(job: Job, events: list[Event], was_cancelled: bool) -> None:
    """Check that the job ends once and that no token is lost or doubled."""
    terminal = [event for event in events if isinstance(event, Terminal)]
    assert len(terminal) == 1, (job, events)
    end = terminal[0]
    assert events[-1] is end

    if isinstance(end, Cancelled):
        assert was_cancelled
        return
    if isinstance(end, Failed):
        assert job.task.prompt == "", end  # type: ignore[union-attr]
        return

    assert isinstance(end, Done)
    if isinstance(job.task, Score):
        scores = end_of(end, Scored).scores
        for score, continuation in zip(scores, job.task.continuations, strict=True):
            assert score.num_tokens == len(continuation)
        return
    check_tokens(job.task, events, end)


def check_tokens(task: Generate, events: list[Event], end: Done) -> None:
    """Check that each choice has its whole text and one finish reason, in its last event."""
    texts = [""] * task.sampling.n
    reasons: list[str | None] = [None] * task.sampling.n
    num_ids = 0
    for event in events:
        if not isinstance(event, Tokens):
            continue
        assert reasons[event.choice] is None, "tokens after the end of their choice"
        texts[event.choice] += event.text
        reasons[event.choice] = event.finish_reason
        num_ids += len(event.ids)

    for text in texts:
        assert text == expected_text(task)
    assert None not in reasons
    assert num_ids == end.num_completion_tokens, "a token was lost or doubled"


async def test_500_random_jobs_end_once_each(redis_server: RedisServer, redis: Redis) -> None:
    """P1 (first slice), P4, P6: 500 jobs end once each, with cancels at random.

    One worker is killed half-way and another is stopped.
    """
    rng = random.Random(20)
    desk = Desk(redis, "echo")
    jobs = list[Job]()
    more = list[Job]()
    to_cancel = set(rng.sample(range(NUM_JOBS), 60))
    victim, drained, survivor = await asyncio.gather(
        start_worker(redis_server.url, redis),
        start_worker(redis_server.url, redis),
        start_worker(redis_server.url, redis),
    )
    try:
        for start in range(0, NUM_JOBS, 20):
            tasks = [random_task(rng) for _ in range(20)]
            jobs += await desk.submit(*tasks, max_jobs=NUM_JOBS)
            for index in range(start, start + 20):
                if index in to_cancel:
                    await desk.submissions.end([jobs[index]], Cancelled())
            if start == 200:
                more = await kill_with_jobs_in_hand(victim, redis, desk, jobs)
            if start == 300:
                drained.signal(signal.SIGTERM)

        # The jobs of `more` come last: their indices are not among those to cancel.
        jobs += more
        await all_ended(redis, jobs)
        assert await drained.wait() == 0
        for index, job in enumerate(jobs):
            check_log(job, await desk.events(job), was_cancelled=index in to_cancel)
        num_retried = await num_taken_over(desk, jobs)
        assert num_retried > 0, "the kill hit nothing, so this proved nothing"
        await nothing_is_left(redis, desk)
    finally:
        for worker in (victim, drained, survivor):
            await worker.end()


async def all_ended(redis: Redis, jobs: list[Job], deadline_s: float = 150.0) -> None:
    ended = (b"done", b"failed", b"cancelled")
    async with asyncio.timeout(deadline_s):
        for job in jobs:
            while await redis.hget(keys.job(job.id), "state") not in ended:  # type: ignore[misc]
                await asyncio.sleep(0.02)


async def kill_with_jobs_in_hand(
    victim: WorkerProcess, redis: Redis, desk: Desk, jobs: list[Job], deadline_s: float = DEADLINE_S
) -> list[Job]:
    """Freeze the worker, check that it holds jobs, and kill it.

    A worker that holds none goes on with another job, until it is frozen in time.
    Return the jobs that were added.
    """
    more: list[Job] = []
    async with asyncio.timeout(deadline_s):
        while True:
            # A running worker may end its jobs between the check and the kill; a frozen one cannot.
            victim.signal(signal.SIGSTOP)
            if await holds_a_job(victim, redis, [*jobs, *more]):
                break
            victim.signal(signal.SIGCONT)
            more += await desk.submit(Generate("abc", Sampling(200, seed=0)), max_jobs=NUM_JOBS)
            await asyncio.sleep(0.002)
    victim.signal(signal.SIGKILL)
    await victim.wait()
    return more


async def holds_a_job(worker: WorkerProcess, redis: Redis, jobs: list[Job]) -> bool:
    for job in jobs:
        state, owner = await redis.hmget(keys.job(job.id), "state", "worker")  # type: ignore[misc]
        if state == b"running" and f"-{worker.pid}-".encode() in owner:
            return True
    return False


async def num_taken_over(desk: Desk, jobs: list[Job]) -> int:
    """Count the jobs that a second worker started again."""
    count = 0
    for job in jobs:
        epochs = [event.epoch for event in await desk.events(job) if isinstance(event, Started)]
        if epochs and max(epochs) > 1:
            count += 1
    return count


async def nothing_is_left(redis: Redis, desk: Desk) -> None:
    """Check that no job waits, no lease and no quota is held, and every key of a job expires."""
    async with asyncio.timeout(DEADLINE_S):
        while await desk.counts() != (0, 0):
            await asyncio.sleep(0.02)
    for pattern in ("aios:{00}:job:*", "aios:{00}:log:*"):
        for key in await redis.keys(pattern):
            assert await redis.pttl(key) > 0, key
    assert not await redis.keys("aios:{00}:open:*")


async def test_a_worker_that_starts_later_finds_the_jobs_that_waited(
    redis_server: RedisServer, redis: Redis
) -> None:
    """A job queued before the first worker starts is not lost."""
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
