"""A worker in trouble: lapsed leases, slow prompts, lost reads, broken parts. Nothing is lost,
doubled or leaked."""

import asyncio
from collections.abc import Sequence

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from shared.messages import Done, Event, Failed, Generate, Sampling, Score, Tokens
from shared.queue.leases import Claim, WorkQueue
from tests.fixtures.desk import Desk
from tests.fixtures.polling import DEADLINE_S, until
from tests.fixtures.worker.services import (
    Gated,
    Slow,
    end_of,
    loaded,
    log_fields_of,
    long_task,
    service,
    task,
)
from worker.engine.runner import RunnerOptions
from worker.engine.sequence import Encoded
from worker.host.job_span import JobSpan
from worker.runners.echo import Echo


async def test_a_worker_that_takes_over_its_own_job_says_everything_once(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P1: a lease that lapses under its own live owner (a suspended laptop) doubles no token and
    leaks no place."""
    runner = Slow(RunnerOptions("echo", max_batch=3))
    runner.stepping_s = 0.004
    worker = service(redis)
    stop = asyncio.Event()

    async def no_renewal(
        queue: WorkQueue, claims: Sequence[Claim], *, silence_s: float
    ) -> list[Claim]:
        return []

    monkeypatch.setattr(WorkQueue, "renew", no_renewal)
    running = asyncio.create_task(worker.run(lambda: loaded(runner), stop))
    jobs = await Desk(redis).submit(long_task(), long_task())
    for job in jobs:
        assert isinstance(await end_of(redis, job), Done)
        text, epochs = await log_fields_of(redis, job)
        assert text == ("abc" * 200)[:400]
        assert len(epochs) > 1, "no lease lapsed, so this proved nothing"
    assert worker.models["m"].host.intake._free == 3
    stop.set()
    assert await running is True


async def test_slow_tokenizing_does_not_cost_the_lease(redis: Redis) -> None:
    """A long prompt is tokenized off the loop, and the jobs that wait behind it are in hand
    already."""
    runner = Slow(RunnerOptions("echo", max_batch=4))
    stop = asyncio.Event()
    runner.tokenizing_s = 0.6
    jobs = await Desk(redis).submit(*[long_task(5)] * 3)
    running = asyncio.create_task(service(redis).run(lambda: loaded(runner), stop))
    for job in jobs:
        assert isinstance(await end_of(redis, job), Done)
        assert (await log_fields_of(redis, job))[1] == [1]
    stop.set()
    assert await running is True


async def test_a_replay_that_cannot_be_read_is_tried_again(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short loss of Redis during a takeover costs neither the job nor a place."""
    desk = Desk(redis)
    (job,) = await desk.submit(long_task(9))
    claims = await desk.take(1, "dead", fingerprint="")
    await desk.say(claims[0], Tokens((97,), "a"))
    await desk.queue("dead").give_back(claims)
    worker = service(redis)
    stop = asyncio.Event()
    failures = 1
    real = worker._reader.read

    async def read(job_id: str, after: int = 0) -> list[tuple[int, Event]]:
        nonlocal failures
        if failures:
            failures -= 1
            raise RedisConnectionError("cut")
        return await real(job_id, after)

    monkeypatch.setattr(worker._reader, "read", read)
    running = asyncio.create_task(
        worker.run(lambda: loaded(Echo(RunnerOptions("echo", max_batch=3))), stop)
    )
    assert isinstance(await end_of(redis, job), Done)
    assert (await log_fields_of(redis, job))[0] == "abcabcabc"
    assert worker.models["m"].host.intake._free == 3
    stop.set()
    assert await running is True


async def test_choices_take_as_many_places(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job is taken while a place is free, whatever it needs; the rest stays queued. No place is
    lost."""
    runner = Gated(RunnerOptions("echo", max_batch=4))
    stop = asyncio.Event()
    choices = [2, 3, 1, 16, 4, 1, 1, 1, 1, 1]
    worker = service(redis)
    desk = Desk(redis)
    taken_before = []
    opened = worker._ledger.open

    def note(claim: Claim, job_span: JobSpan) -> None:
        taken_before.append(sum(item.slots for item in worker._ledger.claims))
        opened(claim, job_span)

    monkeypatch.setattr(worker._ledger, "open", note)
    jobs = [(await desk.submit(Generate("abc", Sampling(3, 0, n=n))))[0] for n in choices]
    running = asyncio.create_task(worker.run(lambda: loaded(runner), stop))
    await until(lambda: len(worker._ledger.claims) == 2, "the places are taken")
    assert worker.models["m"].host.intake._free == 4 - 2 - 3
    assert await desk.counts() == (8, 2)
    runner.gate.set()
    for job, n in zip(jobs, choices, strict=True):
        end = await end_of(redis, job)
        assert isinstance(end, Done)
        assert end.num_completion_tokens == 3 * n
    assert len(taken_before) == len(jobs)
    assert max(taken_before) < 4
    await until(lambda: worker.models["m"].host.intake._free == 4, "all places are free again")
    stop.set()
    assert await running is True


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
    stop = asyncio.Event()
    running = asyncio.create_task(
        service(redis).run(lambda: loaded(BadTokenizer(RunnerOptions("echo"))), stop)
    )
    jobs = await Desk(redis).submit(task("good"), task("bad"), task("fine"))
    ends = [await end_of(redis, job) for job in jobs]
    assert [type(end) for end in ends] == [Done, Failed, Done]
    stop.set()
    assert await running is True


async def test_a_worker_with_a_dead_engine_ends_and_hands_its_job_over(redis: Redis) -> None:
    """P1: `run` answers False, the process exits, and the next worker finishes the job at once."""
    (job,) = await Desk(redis).submit(task("abc"))
    broken = service(redis).run(lambda: loaded(BadStop(RunnerOptions("echo"))), asyncio.Event())
    assert await asyncio.wait_for(broken, DEADLINE_S) is False
    stop = asyncio.Event()
    running = asyncio.create_task(
        service(redis).run(lambda: loaded(Echo(RunnerOptions("echo"))), stop)
    )
    assert isinstance(await end_of(redis, job), Done)
    stop.set()
    assert await running is True
