"""Tokens, vectors, labels and dialogues through a real queue and a real worker: one end each,
whatever happens."""

import time

import pytest
from redis.asyncio import Redis

from shared.errors import FleetError
from shared.messages import (
    Cancelled,
    Chat,
    Classify,
    Detokenize,
    Detokenized,
    Done,
    Embed,
    Embedded,
    Failed,
    Generate,
    Job,
    Label,
    Labelled,
    Sampling,
    Started,
    Task,
    Terminal,
    Tokenize,
    Tokenized,
    Tokens,
    Turn,
)
from shared.queue.submission import Quota
from shared.tasks.vectors import unpack
from tests.fixtures.desk import Desk
from tests.fixtures.polling import until
from tests.fixtures.worker.services import Gated, end_of, service, serving
from worker.engine.runner import RunnerOptions
from worker.engine.sequence import Encoded, Slice, StepResult
from worker.runners.echo import HIDDEN, Echo

SAMPLING = Sampling(2, seed=0)
TASKS: dict[str, Task] = {
    "chat": Generate(Chat((Turn("system", "a"), Turn("user", "b"))), SAMPLING),
    "tokenize": Tokenize("hi", with_texts=True),
    "detokenize": Detokenize((104, 105)),
    "embed": Embed("hi", normalize=False),
    "classify": Classify("a1b2c", top_k=2),
}
ENDS = {
    "chat": Done("length", 3, 2),
    "tokenize": Done("tokenize", 2, 0, result=Tokenized((104, 105), ("h", "i"))),
    "detokenize": Done("detokenize", 2, 0, result=Detokenized("hi")),
    "classify": Done(
        "classify", 5, 0, result=Labelled((Label("letters", 0.6), Label("digits", 0.4)))
    ),
}
STEPPED = ("embed", "classify")


def echo(**options: object) -> Echo:
    return Echo(RunnerOptions("echo", max_batch=4, **options))  # type: ignore[arg-type]


async def ends(redis: Redis, jobs: list[Job]) -> list[Terminal]:
    return [await end_of(redis, job) for job in jobs]


async def check(desk: Desk, jobs: list[Job]) -> None:
    """Each has ended once, last of all; nothing waits and nothing is held."""
    for job in jobs:
        terminal = [isinstance(event, Terminal) for event in await desk.events(job)]
        assert terminal == [False] * (len(terminal) - 1) + [True]
    assert await desk.counts() == (0, 0)


def is_as_expected(name: str, end: Terminal) -> bool:
    if name != "embed":
        return end == ENDS[name]
    assert isinstance(end, Done) and isinstance(end.result, Embedded)
    vector = [0.0] * HIDDEN
    vector[104 % HIDDEN] = 0.5
    vector[105 % HIDDEN] = 0.5
    return unpack(end.result.vector) == vector and (end.finish_reason, end.num_prompt_tokens) == (
        "embed",
        2,
    )


async def test_each_task_ends_once_with_its_result(redis: Redis) -> None:
    """P4: all at once and again, with the tenant's places given back each time."""
    desk = Desk(redis)
    quota = Quota(concurrency=len(TASKS))
    async with serving(service(redis), echo()):
        for _ in range(2):
            jobs = await desk.submit(*TASKS.values(), quota=quota)
            for name, end in zip(TASKS, await ends(redis, jobs), strict=True):
                assert is_as_expected(name, end), (name, end)
            await check(desk, jobs)


@pytest.mark.parametrize("name", TASKS)
async def test_another_worker_does_it_again(redis: Redis, name: str) -> None:
    """P1: whoever began it is gone, with nothing but that beginning in the log."""
    desk = Desk(redis, lease_s=0.0)
    [job] = await desk.submit(TASKS[name])
    [claim] = await desk.take(1, "dead", fingerprint="")
    assert await desk.say(claim, Started(claim.epoch, "dead", 2))
    async with serving(service(redis), echo()):
        [end] = await ends(redis, [job])
        assert is_as_expected(name, end), end
    assert not await desk.say(claim, Done("stop", 1, 1), after=1), "a zombie was heard"
    assert [event.epoch for event in await desk.events(job) if isinstance(event, Started)] == [1, 2]
    await check(desk, [job])


@pytest.mark.parametrize("name", STEPPED)
async def test_a_cancelled_one_frees_its_place(redis: Redis, name: str) -> None:
    """P6: in the middle of its step."""
    desk = Desk(redis)
    runner = Gated(RunnerOptions("echo", max_batch=4))
    worker = service(redis, lease_s=30)
    async with serving(worker, runner):
        [job] = await desk.submit(TASKS[name])
        await until(lambda: runner.num_steps == 1, "the step has begun")
        assert await desk.submissions.end([job], Cancelled()) == 1
        runner.gate.set()
        await until(lambda: worker.models["m"].host.intake._free == 4, "its place is free")
        await until(lambda: not worker.models["m"].host.engine.has_work, "the engine forgets it")
        assert isinstance((await ends(redis, [job]))[0], Cancelled)
        await check(desk, [job])


async def test_a_late_one_fails(redis: Redis) -> None:
    """At the next step boundary, where its turn had not come yet."""
    desk = Desk(redis)
    runner = Gated(RunnerOptions("echo", max_batch=4))
    worker = service(redis, lease_s=30)
    async with serving(worker, runner):
        busy = await desk.submit(Generate("abc", SAMPLING))
        await until(lambda: runner.num_steps == 1, "the step has begun")
        jobs = await desk.submit(*(TASKS[name] for name in STEPPED), deadline_s=2)
        await until(lambda: len(worker._ledger.claims) == 3, "they are in hand")
        late_s = time.monotonic() + 2
        await until(lambda: time.monotonic() > late_s, "the deadline has passed")
        runner.gate.set()
        for end in await ends(redis, jobs):
            assert isinstance(end, Failed) and end.code == "deadline_exceeded"
        assert isinstance((await ends(redis, busy))[0], Done)
        await check(desk, [*busy, *jobs])


class Poisoned(Echo):
    """Cannot read a certain word."""

    def encode(self, task: Task) -> Encoded:
        if isinstance(task, Tokenize) and task.prompt == "bad":
            raise KeyError("no such token")
        return super().encode(task)

    def step(self, slices: list[Slice]) -> list[StepResult | FleetError]:  # type: ignore[override]
        if any(part.sequence.encoded.prompt_ids == tuple(map(ord, "bad")) for part in slices):
            raise ZeroDivisionError
        return super().step(slices)


async def test_a_text_that_breaks_the_model_fails_alone(redis: Redis) -> None:
    desk = Desk(redis)
    async with serving(service(redis), Poisoned(RunnerOptions("echo", max_batch=8))):
        jobs = await desk.submit(
            *(kind(text) for kind in (Embed, Classify, Tokenize) for text in ("good", "bad", "ok"))
        )
        found = await ends(redis, jobs)
        assert [type(end) for end in found] == [Done, Failed, Done] * 3
        assert {end.code for end in found if isinstance(end, Failed)} == {"worker_failed"}
        await check(desk, jobs)


async def test_what_is_cut_is_told(redis: Redis) -> None:
    """And where that is not wanted, the text is refused."""
    desk = Desk(redis)
    async with serving(service(redis), echo(context_window=16)):
        jobs = await desk.submit(
            Embed("x" * 20), Embed("x" * 20, overflow="refuse"), Classify("1" * 20)
        )
        cut, refused, labelled = await ends(redis, jobs)
        assert isinstance(cut, Done) and cut.num_prompt_tokens == 16
        assert isinstance(labelled, Done) and isinstance(labelled.result, Labelled)
        assert labelled.result.labels[0] == Label("digits", 1.0)
        assert isinstance(refused, Failed) and (refused.code, refused.field) == (
            "context_length_exceeded",
            "input",
        )
        [started] = [event for event in await desk.events(jobs[0]) if isinstance(event, Started)]
        assert started.num_truncated == 4


async def test_tokens_need_no_step(redis: Redis) -> None:
    """They are answered while the engine is busy, from a place that they do not keep."""
    desk = Desk(redis)
    runner = Gated(RunnerOptions("echo", max_batch=4))
    worker = service(redis, lease_s=30)
    async with serving(worker, runner):
        busy = await desk.submit(Generate("abc", SAMPLING))
        await until(lambda: runner.num_steps == 1, "the step has begun")
        jobs = await desk.submit(*[Tokenize("hi"), Detokenize((104,))] * 5)
        assert all(isinstance(end, Done) for end in await ends(redis, jobs))
        assert runner.num_steps == 1
        runner.gate.set()
        assert isinstance((await ends(redis, busy))[0], Done)
        assert any(isinstance(event, Tokens) for event in await desk.events(busy[0]))
        await check(desk, [*busy, *jobs])
