"""A worker in trouble loses, doubles and leaks nothing.

Leases lapse, prompts are slow, reads of the log are lost, and parts break.
"""

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
    """P1: A lease that lapses under its live owner doubles no token and leaks no place.

    A suspended laptop is such an owner.
    """
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
    assert worker.models["m"].host.intake.free_slots == 3
    stop.set()
    assert await running is True


async def test_slow_tokenizing_does_not_cost_the_lease(redis: Redis) -> None:
    """Jobs keep their leases while a long prompt is tokenized, which takes longer than a lease.

    The prompt is tokenized off the loop. The jobs that wait behind it are in hand already.
    """
    runner = Slow(RunnerOptions("echo", max_batch=4))
    stop = asyncio.Event()
    runner.tokenizing_s = 0.6
    jobs = await Desk(redis).submit(long_task(5), long_task(5), long_task(5))

    running = asyncio.create_task(service(redis).run(lambda: loaded(runner), stop))

    for job in jobs:
        assert isinstance(await end_of(redis, job), Done)
        _, epochs = await log_fields_of(redis, job)
        assert epochs == [1]
    stop.set()
    assert await running is True


async def test_a_replay_that_cannot_be_read_is_tried_again(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short loss of Redis during a takeover loses neither the job nor a place."""
    desk = Desk(redis)
    [job] = await desk.submit(long_task(9))
    [claim] = await desk.take(1, "dead", fingerprint="")
    await desk.say(claim, Tokens((97,), "a"))
    await desk.queue("dead").give_back([claim])
    worker = service(redis)
    stop = asyncio.Event()
    failures = 1
    real = worker.reader.read

    async def read(job_id: str, after: int = 0) -> list[tuple[int, Event]]:
        nonlocal failures
        if failures:
            failures -= 1
            raise RedisConnectionError("cut")
        return await real(job_id, after)

    monkeypatch.setattr(worker.reader, "read", read)
    runner = Echo(RunnerOptions("echo", max_batch=3))
    running = asyncio.create_task(worker.run(lambda: loaded(runner), stop))

    assert isinstance(await end_of(redis, job), Done)
    text, _ = await log_fields_of(redis, job)
    assert text == "abcabcabc"
    assert worker.models["m"].host.intake.free_slots == 3
    stop.set()
    assert await running is True


async def test_choices_take_as_many_places(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job takes a place for each choice, and is taken while one place is free.

    The jobs behind it stay queued, and no place is lost.
    """
    runner = Gated(RunnerOptions("echo", max_batch=4))
    stop = asyncio.Event()
    choices = [2, 3, 1, 16, 4, 1, 1, 1, 1, 1]
    worker = service(redis, lease_s=30)
    desk = Desk(redis)
    num_taken_before = []
    open_claim = worker.ledger.open

    def recorded(claim: Claim, job_span: JobSpan) -> None:
        num_taken = 0
        for earlier in worker.ledger.claims:
            num_taken += earlier.slots
        num_taken_before.append(num_taken)
        open_claim(claim, job_span)

    monkeypatch.setattr(worker.ledger, "open", recorded)
    jobs = []
    for n in choices:
        jobs += await desk.submit(Generate("abc", Sampling(3, seed=0, n=n)))
    running = asyncio.create_task(worker.run(lambda: loaded(runner), stop))

    # The second job needs three places where two are free: the number falls below zero.
    await until(lambda: len(worker.ledger.claims) == 2, "the places are taken")
    assert worker.models["m"].host.intake.free_slots == 4 - 2 - 3
    assert await desk.counts() == (8, 2)

    runner.gate.set()
    for job, n in zip(jobs, choices, strict=True):
        end = await end_of(redis, job)
        assert isinstance(end, Done)
        assert end.num_completion_tokens == 3 * n
    assert len(num_taken_before) == len(jobs)
    assert max(num_taken_before) < 4
    await until(lambda: worker.models["m"].host.intake.free_slots == 4, "all places are free again")
    stop.set()
    assert await running is True


class BadTokenizer(Echo):
    """An echo that cannot tokenize `bad`."""

    def encode(self, task: Generate | Score) -> Encoded:
        if isinstance(task, Generate) and task.prompt == "bad":
            raise KeyError("no such token")
        return super().encode(task)


class BadStop(Echo):
    """An echo that breaks the engine itself.

    Nothing around a step catches what its `decode` raises.
    """

    def decode(self, token_ids: Sequence[int]) -> str:
        raise ZeroDivisionError


async def test_a_prompt_that_breaks_the_tokenizer_fails_alone(redis: Redis) -> None:
    """A prompt that raises in the tokenizer fails, and the prompts beside it are answered."""
    stop = asyncio.Event()
    runner = BadTokenizer(RunnerOptions("echo"))
    running = asyncio.create_task(service(redis).run(lambda: loaded(runner), stop))

    good, bad, fine = await Desk(redis).submit(task("good"), task("bad"), task("fine"))

    assert isinstance(await end_of(redis, good), Done)
    assert isinstance(await end_of(redis, bad), Failed)
    assert isinstance(await end_of(redis, fine), Done)
    stop.set()
    assert await running is True


async def test_a_worker_with_a_dead_engine_ends_and_hands_its_job_over(redis: Redis) -> None:
    """P1: A worker whose engine has died gives its job back, and the next worker ends it at once.

    `run` returns False, and the process exits.
    """
    [job] = await Desk(redis).submit(task("abc"))
    broken = BadStop(RunnerOptions("echo"))
    running = service(redis).run(lambda: loaded(broken), asyncio.Event())
    assert await asyncio.wait_for(running, DEADLINE_S) is False

    stop = asyncio.Event()
    sound = Echo(RunnerOptions("echo"))
    next_running = asyncio.create_task(service(redis).run(lambda: loaded(sound), stop))
    assert isinstance(await end_of(redis, job), Done)
    stop.set()
    assert await next_running is True
