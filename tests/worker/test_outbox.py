"""The outbox appends to a job's log at each step where somebody follows, else in larger pieces."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis

from shared.artifacts.store import ArtifactStore
from shared.events.log import Append, LogWriter
from shared.messages import Done, Event, Generate, Job, Progress, Sampling, Started, Tokens
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
    """Return the log's events once there are at least `count`."""
    async with asyncio.timeout(DEADLINE_S):
        while len(events := await desk.events(job)) < count:
            await asyncio.sleep(0.01)
    return events


async def claim_of(desk: Desk, *, is_streamed: bool, n: int = 1) -> Claim:
    task = Generate("hi", Sampling(max_tokens=100, seed=0, n=n))
    await desk.submit(task, is_streamed=is_streamed)
    [claim] = await desk.take(16)
    return claim


def say(outbox: Outbox, claim: Claim, *ids: int, choice: int = 0) -> None:
    outbox.put([Emission(claim.key, ids, "x" * len(ids), choice)])


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_tokens_are_gathered_where_nobody_follows(redis: Redis, is_streamed: bool) -> None:
    """100 tokens are an event each where somebody follows, else three of 32 and one of 4.

    `Started` is appended at once in both cases; the last four tokens come with the end.
    """
    piece_size = GATHERED_TOKENS
    expected_sizes = [32, 32, 32, 4]
    if is_streamed:
        piece_size = 1
        expected_sizes = [1] * 100
    desk = Desk(redis)
    claim = await claim_of(desk, is_streamed=is_streamed)
    async with outbox_of(desk) as (ledger, outbox):
        ledger.open(claim)
        outbox.add(claim, Started(1, "w", 1))
        assert await events_when(desk, claim.job, 1) == [Started(1, "w", 1)]

        for token in range(100):
            say(outbox, claim, token)
            # A full piece is appended without waiting for more tokens.
            if (token + 1) % piece_size == 0:
                await events_when(desk, claim.job, 1 + (token + 1) // piece_size)
        outbox.put([Emission(claim.key, ended=Done("length", 1, 100))])
        events = await events_when(desk, claim.job, len(expected_sizes) + 2)

    sizes = []
    ids: list[int] = []
    for event in events:
        if isinstance(event, Tokens):
            sizes.append(len(event.ids))
            ids.extend(event.ids)
    assert sizes == expected_sizes
    assert ids == list(range(100))
    assert isinstance(events[-1], Done)


async def test_a_preview_is_kept_until_it_is_logged(redis: Redis) -> None:
    """Newer progress takes the place of older, and a preview only that of another one."""
    desk = Desk(redis)
    claim = await claim_of(desk, is_streamed=True)
    async with outbox_of(desk) as (ledger, outbox):
        ledger.open(claim)
        steps = [
            Progress(1, 9, preview=b"a"),
            Progress(2, 9),
            Progress(3, 9, preview=b"b"),
            Progress(4, 9),
        ]
        outbox.put([Emission(claim.key, progress=step) for step in steps])
        assert await events_when(desk, claim.job, 1) == [Progress(4, 9, preview=b"b")]
        outbox.put([Emission(claim.key, progress=Progress(5, 9))])
        [_, newest] = await events_when(desk, claim.job, 2)
        assert newest == Progress(5, 9)


async def test_progress_is_further_steps_or_a_longer_text(redis: Redis) -> None:
    desk = Desk(redis)
    claim = await claim_of(desk, is_streamed=True)
    async with outbox_of(desk) as (ledger, outbox):
        ledger.open(claim)
        ledger.note_progress(claim, Progress(1, 9, "as far"))
        begun_again = [Progress(0, 9, "not so far"), Progress(1, 9, "as"), Progress(1, 9, "as far")]
        outbox.put([Emission(claim.key, progress=step) for step in begun_again])
        further = [
            Progress(1, 9, "as far as"),
            Progress(1, 9, "far as I", num_left_out=3),
            Progress(2, 9, "far"),
        ]
        for number, step in enumerate(further):
            outbox.put([Emission(claim.key, progress=step)])
            assert await events_when(desk, claim.job, number + 1) == further[: number + 1]


async def test_what_is_gathered_is_said_after_half_a_second(redis: Redis) -> None:
    """Gathered tokens are appended after `GATHERED_S` seconds at the latest."""
    desk = Desk(redis)
    loop = asyncio.get_running_loop()
    claim = await claim_of(desk, is_streamed=False)
    async with outbox_of(desk) as (ledger, outbox):
        ledger.open(claim)
        begun = loop.time()
        say(outbox, claim, 5)
        assert await events_when(desk, claim.job, 1) == [Tokens((5,), "x")]
        # A timer may fire a little early by the clock of the loop.
        assert loop.time() - begun >= GATHERED_S * 0.99

        say(outbox, claim, 6)
        say(outbox, claim, 7)
        assert (await events_when(desk, claim.job, 2))[1] == Tokens((6, 7), "xx")


class WhileAppending(LogWriter):
    """A writer that calls a function between an append and its answer."""

    def __init__(self, desk: Desk, meanwhile: Callable[[], Awaitable[None]]) -> None:
        super().__init__(desk.broker)
        self._meanwhile = meanwhile

    async def append(self, appends: Sequence[Append]) -> list[bool]:
        are_logged = await super().append(appends)
        await self._meanwhile()
        return are_logged


@pytest.mark.parametrize("is_end", [True, False])
async def test_an_end_in_flight_is_no_lapsed_lease(redis: Redis, is_end: bool) -> None:
    """A lease that cannot be renewed because the end is in the log makes no job stale.

    While other news are on their way, it means that the job is another worker's.
    """
    desk = Desk(redis)
    claim = await claim_of(desk, is_streamed=True)
    closed: list[bool] = []
    ledger = Ledger(lambda claim, was_stale: closed.append(was_stale))

    async def meanwhile() -> None:
        if not is_end:
            await desk.queue().give_back([claim])
            await desk.take(16, worker="w2")
        for lost in await desk.queue().renew([claim]):
            ledger.lapse(lost)

    outbox = Outbox(WhileAppending(desk, meanwhile), ledger, ArtifactStore(desk.broker))
    ledger.open(claim)
    event = Done("length", 1, 0) if is_end else Started(1, "w", 1)
    outbox.add(claim, event)
    await outbox.flush()

    assert closed == [not is_end]
    assert ledger.get(claim.key) is None


async def test_the_choices_of_a_job_are_gathered_apart(redis: Redis) -> None:
    """Tokens of several choices come interleaved and are one event for each choice.

    The tokens of all choices count together towards a piece.
    """
    desk = Desk(redis)
    claim = await claim_of(desk, is_streamed=False, n=4)
    async with outbox_of(desk) as (ledger, outbox):
        ledger.open(claim)
        for number in range(GATHERED_TOKENS):
            say(outbox, claim, number, choice=number % 4)
        events = await events_when(desk, claim.job, 4)

    expected: Sequence[Event] = [
        Tokens((0, 4, 8, 12, 16, 20, 24, 28), "xxxxxxxx", choice=0),
        Tokens((1, 5, 9, 13, 17, 21, 25, 29), "xxxxxxxx", choice=1),
        Tokens((2, 6, 10, 14, 18, 22, 26, 30), "xxxxxxxx", choice=2),
        Tokens((3, 7, 11, 15, 19, 23, 27, 31), "xxxxxxxx", choice=3),
    ]
    assert events == expected


async def test_whatever_is_held_back_is_there_after_a_flush(redis: Redis) -> None:
    """A flush appends the gathered tokens at once."""
    desk = Desk(redis)
    claim = await claim_of(desk, is_streamed=False)
    async with outbox_of(desk) as (ledger, outbox):
        ledger.open(claim)
        say(outbox, claim, 5)
        await asyncio.sleep(0)
        await outbox.flush()
        assert await desk.events(claim.job) == [Tokens((5,), "x")]


async def log_length(redis: Redis, job: Job) -> int:
    return int(await redis.xlen(f"aios:{{00}}:log:{job.id}"))


async def test_a_worker_appends_a_job_that_nobody_follows_a_few_times(redis: Redis) -> None:
    """The log of a job that nobody follows is several times shorter."""
    desk = Desk(redis)
    runner = Slow(RunnerOptions("echo", max_batch=4))
    runner.stepping_s = 0.02
    task = Generate("abc", Sampling(max_tokens=96, seed=0))

    async with serving(service(redis, lease_s=30), runner):
        [followed] = await desk.submit(task, is_streamed=True)
        [quiet] = await desk.submit(task, is_streamed=False)
        assert isinstance(await end_of(redis, followed), Done)
        assert isinstance(await end_of(redis, quiet), Done)

    assert await log_length(redis, followed) > 20
    # The start, the end and at least one piece: a busy worker may append several together.
    assert 2 + 1 <= await log_length(redis, quiet) < 15


async def test_the_first_token_counts_from_when_it_was_said(redis: Redis) -> None:
    """The time of the first token is that of its emission, not the later one of its append."""
    desk = Desk(redis)
    request, _ = await desk.request(Generate("hi", Sampling(max_tokens=100, seed=0)))
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
