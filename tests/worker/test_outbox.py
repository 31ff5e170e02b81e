"""How often a job's log is appended to: each step where somebody follows, in larger pieces where
nobody does."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis

from shared.artifacts.store import ArtifactStore
from shared.events.log import LogWriter
from shared.messages import Done, Event, Generate, Job, Sampling, Started, Tokens
from shared.queue.leases import Claim
from tests.fixtures.desk import Desk
from tests.fixtures.polling import DEADLINE_S
from tests.fixtures.worker.services import Slow, end_of, service, serving
from worker.engine.request import Emission
from worker.engine.runner import RunnerOptions
from worker.host.ledger import Ledger
from worker.host.outbox import GATHERED_S, GATHERED_TOKENS, Outbox


@asynccontextmanager
async def outbox_of(desk: Desk) -> AsyncIterator[tuple[Ledger, Outbox]]:
    ledger = Ledger(lambda claim, was_stale: None)
    outbox = Outbox(LogWriter(desk.broker), ledger, ArtifactStore(desk.broker))
    running = asyncio.create_task(outbox.run())
    yield ledger, outbox
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def events_when(desk: Desk, job: Job, count: int) -> list[Event]:
    """The log's events once there are so many."""
    async with asyncio.timeout(DEADLINE_S):
        while len(events := await desk.events(job)) < count:
            await asyncio.sleep(0.01)
    return events


async def claim_of(desk: Desk, *, is_streamed: bool, n: int = 1) -> Claim:
    await desk.submit(Generate("hi", Sampling(100, 0, n=n)), is_streamed=is_streamed)
    [claim] = await desk.take(16)
    return claim


def say(outbox: Outbox, claim: Claim, *ids: int, choice: int = 0) -> None:
    outbox.put([Emission(claim.key, ids, "x" * len(ids), choice)])


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_tokens_are_gathered_where_nobody_follows(redis: Redis, is_streamed: bool) -> None:
    """100 tokens: an event each, or three of 32 and the last four with the end; `Started` goes at
    once in both."""
    desk = Desk(redis)
    claim = await claim_of(desk, is_streamed=is_streamed)
    async with outbox_of(desk) as (ledger, outbox):
        ledger.open(claim)
        outbox.add(claim, Started(1, "w", 1))
        assert await events_when(desk, claim.job, 1) == [Started(1, "w", 1)]
        for number in range(100):
            say(outbox, claim, number)
            if is_streamed or number % GATHERED_TOKENS == GATHERED_TOKENS - 1:
                await events_when(
                    desk, claim.job, 2 + (number if is_streamed else number // GATHERED_TOKENS)
                )
        outbox.put([Emission(claim.key, ended=Done("length", 1, 100))])
        events = await events_when(desk, claim.job, 102 if is_streamed else 6)
    tokens = [event for event in events if isinstance(event, Tokens)]
    assert [len(event.ids) for event in tokens] == ([1] * 100 if is_streamed else [32, 32, 32, 4])
    assert [token for event in tokens for token in event.ids] == list(range(100))
    assert isinstance(events[-1], Done)


async def test_what_is_gathered_is_said_after_half_a_second(redis: Redis) -> None:
    desk = Desk(redis)
    loop = asyncio.get_running_loop()
    claim = await claim_of(desk, is_streamed=False)
    async with outbox_of(desk) as (ledger, outbox):
        ledger.open(claim)
        begun = loop.time()
        say(outbox, claim, 5)
        assert await events_when(desk, claim.job, 1) == [Tokens((5,), "x")]
        assert loop.time() - begun >= GATHERED_S * 0.99
        say(outbox, claim, 6)
        say(outbox, claim, 7)
        assert (await events_when(desk, claim.job, 2))[1] == Tokens((6, 7), "xx")


async def test_the_choices_of_a_job_are_gathered_apart(redis: Redis) -> None:
    """Interleaved as an engine says them; the tokens of all choices count together."""
    desk = Desk(redis)
    claim = await claim_of(desk, is_streamed=False, n=4)
    async with outbox_of(desk) as (ledger, outbox):
        ledger.open(claim)
        for number in range(GATHERED_TOKENS):
            say(outbox, claim, number, choice=number % 4)
        events = await events_when(desk, claim.job, 4)
    expected: Sequence[Event] = [
        Tokens(tuple(range(choice, 32, 4)), "x" * 8, choice) for choice in range(4)
    ]
    assert events == expected


async def test_whatever_is_held_back_is_there_after_a_flush(redis: Redis) -> None:
    desk = Desk(redis)
    claim = await claim_of(desk, is_streamed=False)
    async with outbox_of(desk) as (ledger, outbox):
        ledger.open(claim)
        say(outbox, claim, 5)
        await asyncio.sleep(0)
        await outbox.flush()
        assert await desk.events(claim.job) == [Tokens((5,), "x")]


async def test_a_worker_appends_a_job_that_nobody_follows_a_few_times(redis: Redis) -> None:
    desk = Desk(redis)
    runner = Slow(RunnerOptions("echo", max_batch=4))
    runner.stepping_s = 0.001
    task = Generate("abc", Sampling(96, 0))
    async with serving(service(redis, lease_s=30), runner):
        jobs = [
            (await desk.submit(task, is_streamed=is_streamed))[0] for is_streamed in (True, False)
        ]
        for job in jobs:
            assert isinstance(await end_of(redis, job), Done)
    streamed, quiet = [await redis.xlen(f"aios:{{00}}:log:{job.id}") for job in jobs]
    assert streamed > 20
    assert 2 + 3 <= quiet < 15


async def test_the_first_token_counts_from_when_it_was_said(redis: Redis) -> None:
    """Not from when it was sent, which is a while later where nobody follows."""
    desk = Desk(redis)
    request, _ = await desk.request(Generate("hi", Sampling(100, 0)))
    [claim] = await desk.take(16)
    async with outbox_of(desk) as (ledger, outbox):
        ledger.open(claim)
        outbox.add(claim, Started(1, "w", 1))
        await events_when(desk, claim.job, 1)
        say(outbox, claim, 5)
        await events_when(desk, claim.job, 2)
        outbox.put([Emission(claim.key, ended=Done("length", 1, 1))])
        await events_when(desk, claim.job, 3)
    [standing] = await desk.requests.look(request)
    assert standing.times.first_s is not None
    assert standing.times.ended_s is not None
    assert standing.times.ended_s - standing.times.first_s >= 0.9 * GATHERED_S
