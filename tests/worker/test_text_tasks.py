"""Tokens, vectors, labels and dialogues through a real queue and a real worker.

Each has one end, whatever happens.
"""

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
    Turn,
)
from shared.queue.submission import Quota
from shared.tasks.vectors import unpack
from tests.fixtures.desk import Desk
from tests.fixtures.polling import until
from tests.fixtures.worker.services import Gated, end_of, log_fields_of, service, serving
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
"""The tasks that need a step of the engine, and yield nothing before their end."""


def echo(**options: object) -> Echo:
    return Echo(RunnerOptions("echo", max_batch=4, **options))  # type: ignore[arg-type]


async def ends(redis: Redis, jobs: list[Job]) -> list[Terminal]:
    return [await end_of(redis, job) for job in jobs]


async def check(desk: Desk, jobs: list[Job]) -> None:
    """Assert that the last event of each job, and no other, is its end, and the queue is empty."""
    for job in jobs:
        events = await desk.events(job)
        assert isinstance(events[-1], Terminal)
        for event in events[:-1]:
            assert not isinstance(event, Terminal)
    assert await desk.counts() == (0, 0)


def check_end(name: str, end: Terminal) -> None:
    if name != "embed":
        assert end == ENDS[name], name
        return
    assert isinstance(end, Done)
    assert end.finish_reason == "embed"
    assert end.num_prompt_tokens == 2
    assert isinstance(end.result, Embedded)
    vector = [0.0] * HIDDEN
    vector[104 % HIDDEN] = 0.5
    vector[105 % HIDDEN] = 0.5
    assert unpack(end.result.vector) == vector


async def test_each_task_ends_once_with_its_result(redis: Redis) -> None:
    """P4: All tasks at once have one end each, and give the tenant's quota back.

    The second round fits the quota only if the first has returned it.
    """
    desk = Desk(redis)
    quota = Quota(concurrency=len(TASKS))
    async with serving(service(redis), echo()):
        for _ in range(2):
            jobs = await desk.submit(*TASKS.values(), quota=quota)
            for name, end in zip(TASKS, await ends(redis, jobs), strict=True):
                check_end(name, end)
            await check(desk, jobs)


@pytest.mark.parametrize("name", TASKS)
async def test_another_worker_does_it_again(redis: Redis, name: str) -> None:
    """P1: A task whose worker has died is done by the next worker.

    The log has nothing but the beginning, and the dead worker can add nothing any more.
    """
    desk = Desk(redis, lease_s=0.0)
    [job] = await desk.submit(TASKS[name])
    [claim] = await desk.take(1, "dead", fingerprint="")
    assert await desk.say(claim, Started(claim.epoch, "dead", 2))
    async with serving(service(redis), echo()):
        [end] = await ends(redis, [job])
        check_end(name, end)

    assert not await desk.say(claim, Done("stop", 1, 1), after=1), "a zombie was heard"
    _, epochs = await log_fields_of(redis, job)
    assert epochs == [1, 2]
    await check(desk, [job])


@pytest.mark.parametrize("name", STEPPED)
async def test_a_cancelled_one_frees_its_place(redis: Redis, name: str) -> None:
    """P6: A task that is cancelled in the middle of its step gives its place back."""
    desk = Desk(redis)
    runner = Gated(RunnerOptions("echo", max_batch=4))
    worker = service(redis, lease_s=30)
    async with serving(worker, runner):
        [job] = await desk.submit(TASKS[name])
        await until(lambda: runner.num_steps == 1, "the step has begun")

        assert await desk.submissions.end([job], Cancelled()) == 1
        runner.gate.set()
        await until(lambda: worker.models["m"].host.intake.free_slots == 4, "its place is free")
        await until(lambda: not worker.models["m"].host.engine.has_work, "the engine forgets it")
        assert isinstance(await end_of(redis, job), Cancelled)
        await check(desk, [job])


async def test_a_late_one_fails(redis: Redis) -> None:
    """A task whose turn comes after its deadline fails at the next step boundary."""
    desk = Desk(redis)
    runner = Gated(RunnerOptions("echo", max_batch=4))
    worker = service(redis, lease_s=30)
    async with serving(worker, runner):
        [busy] = await desk.submit(Generate("abc", SAMPLING))
        await until(lambda: runner.num_steps == 1, "the step has begun")
        jobs = await desk.submit(TASKS["embed"], TASKS["classify"], deadline_s=10)
        await until(lambda: len(worker.ledger.claims) == 3, "they are in hand")
        late_s = time.monotonic() + 10
        await until(lambda: time.monotonic() > late_s, "the deadline has passed")

        runner.gate.set()

        for end in await ends(redis, jobs):
            assert isinstance(end, Failed)
            assert end.code == "deadline_exceeded"
        assert isinstance(await end_of(redis, busy), Done)
        await check(desk, [busy, *jobs])


class Poisoned(Echo):
    """An echo that cannot tokenize `bad`, nor compute it."""

    def encode(self, task: Task) -> Encoded:
        if isinstance(task, Tokenize) and task.prompt == "bad":
            raise KeyError("no such token")
        return super().encode(task)

    def step(self, slices: list[Slice]) -> list[StepResult | FleetError]:  # type: ignore[override]
        bad_ids = (ord("b"), ord("a"), ord("d"))
        for part in slices:
            if part.sequence.encoded.prompt_ids == bad_ids:
                raise ZeroDivisionError
        return super().step(slices)


async def test_a_text_that_breaks_the_model_fails_alone(redis: Redis) -> None:
    """A text that raises in the model fails, and the texts beside it are done."""
    desk = Desk(redis)
    async with serving(service(redis), Poisoned(RunnerOptions("echo", max_batch=8))):
        tasks: list[Task] = []
        for kind in (Embed, Classify, Tokenize):
            tasks += [kind("good"), kind("bad"), kind("ok")]
        jobs = await desk.submit(*tasks)

        for number, end in enumerate(await ends(redis, jobs)):
            is_bad = number % 3 == 1
            if is_bad:
                assert isinstance(end, Failed)
                assert end.code == "worker_failed"
            else:
                assert isinstance(end, Done)
        await check(desk, jobs)


async def test_what_is_cut_is_told(redis: Redis) -> None:
    """A text that is too long is cut, and the log says by how much, or it is refused."""
    desk = Desk(redis)
    async with serving(service(redis), echo(context_window=16)):
        jobs = await desk.submit(
            Embed("x" * 20), Embed("x" * 20, overflow="refuse"), Classify("1" * 20)
        )
        cut, refused, labelled = await ends(redis, jobs)

        assert isinstance(cut, Done)
        assert cut.num_prompt_tokens == 16
        events = await desk.events(jobs[0])
        [started] = [event for event in events if isinstance(event, Started)]
        assert started.num_truncated == 4

        assert isinstance(refused, Failed)
        assert refused.code == "context_length_exceeded"
        assert refused.field == "input"

        assert isinstance(labelled, Done)
        assert isinstance(labelled.result, Labelled)
        assert labelled.result.labels[0] == Label("digits", 1.0)


async def test_tokens_need_no_step(redis: Redis) -> None:
    """Tokenizing is answered while the engine is busy, and holds no place after it."""
    desk = Desk(redis)
    runner = Gated(RunnerOptions("echo", max_batch=4))
    worker = service(redis, lease_s=30)
    async with serving(worker, runner):
        [busy] = await desk.submit(Generate("abc", SAMPLING))
        await until(lambda: runner.num_steps == 1, "the step has begun")

        # Ten tasks are more than the places that are left.
        jobs = await desk.submit(*[Tokenize("hi"), Detokenize((104,))] * 5)
        for end in await ends(redis, jobs):
            assert isinstance(end, Done)
        assert runner.num_steps == 1

        runner.gate.set()
        assert isinstance(await end_of(redis, busy), Done)
        text, _ = await log_fields_of(redis, busy)
        assert text == "ab"
        await check(desk, [busy, *jobs])
