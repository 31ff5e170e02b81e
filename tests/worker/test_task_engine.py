"""Batches of tasks that are done whole, and batches that fail, are cancelled or are late."""

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import FleetError, InvalidRequest
from shared.messages import Failed, Priority, Progress, Task, decode_event, encode
from shared.tasks.echo_task import EchoedTask, EchoTask
from worker.engine import task_engine
from worker.engine.request import Emission
from worker.engine.runner import OutOfMemory, RunnerOptions
from worker.engine.take import Take
from worker.engine.task_engine import TaskEngine
from worker.engine.task_runner import (
    NO_FILES,
    BatchProgress,
    Files,
    NewFile,
    TaskOutput,
    TaskRunnerSpec,
)
from worker.runners.echo_task import EchoTaskRunner


class Clock:
    """A clock that a test moves. `before_reading` is called before each reading."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.before_reading: Callable[[], None] = lambda: None

    def __call__(self) -> float:
        self.before_reading()
        return self.now_s


class Scripted:
    """Does tasks in batches of equal `steps`, and records the batches.

    `during` is called in the middle of each batch. A task `bad` raises, `wrong` fails alone, and
    more than `room` characters in a batch are too many.
    """

    def __init__(self, *, max_batch: int = 4, room: int = 1000) -> None:
        self.spec = TaskRunnerSpec(
            "scripted", "m", "test", max_batch, ("echo_task",), EchoTask("1")
        )
        self.room = room
        self.batches: list[list[str]] = []
        self.wanted: list[list[bool]] = []
        self.during: Callable[[BatchProgress], None] = lambda progress: None

    def read(self, task: Task, files: Files) -> EchoTask:
        assert isinstance(task, EchoTask)
        if not task.text:
            raise InvalidRequest("text: expected some.", field="text")
        return task

    def group_key(self, item: EchoTask) -> Hashable:
        return item.steps

    def run(
        self, items: Sequence[EchoTask], progress: BatchProgress
    ) -> list[TaskOutput | FleetError]:
        texts = [task.text for task in items]
        self.batches.append(texts)
        if len("".join(texts)) > self.room:
            raise OutOfMemory("full")
        if "bad" in texts:
            raise ValueError("broken")
        self.during(progress)
        self.wanted.append([progress.is_wanted(index) for index in range(len(items))])
        return [_output(text) for text in texts]


def _output(text: str) -> TaskOutput | FleetError:
    if text == "wrong":
        return InvalidRequest("wrong")
    if text == "unsendable":
        return TaskOutput(EchoedTask(object()))  # type: ignore[arg-type]
    return TaskOutput(EchoedTask(1), (NewFile(text.encode(), "text/plain"),))


@dataclass
class Harness:
    """An engine with its runner, its clock and its emissions."""

    engine: TaskEngine
    runner: Scripted
    clock: Clock
    emissions: list[Emission]

    def submit(
        self, text: str, *, steps: int = 1, priority: Priority = "default", deadline_s: float = 1e9
    ) -> None:
        take = Take(text, EchoTask(text, steps), priority=priority, deadline_s=deadline_s)
        self.engine.submit(self.engine.prepare(take))

    def run(self) -> None:
        while self.engine.has_work:
            self.engine.step()

    def ends(self) -> dict[str, str]:
        """Return the text or the error code of each task that has ended."""
        ends: dict[str, str] = {}
        for emission in self.emissions:
            if emission.ended is None:
                continue
            assert emission.key not in ends, "it ended twice"
            if isinstance(emission.ended, Failed):
                ends[emission.key] = emission.ended.code
            else:
                [file] = emission.files
                ends[emission.key] = file.data.decode()
        return ends

    def progress_of(self, key: str) -> list[int]:
        """Return the steps that were reported as done of a task."""
        steps = []
        for emission in self.emissions:
            if emission.key == key and emission.progress is not None:
                steps.append(emission.progress.done)
        return steps


def make_harness(*, max_batch: int = 4, room: int = 1000, batch_wait_s: float = 0.0) -> Harness:
    runner = Scripted(max_batch=max_batch, room=room)
    clock = Clock()
    emissions: list[Emission] = []
    engine = TaskEngine(runner, emissions.extend, now=clock, batch_wait_s=batch_wait_s)
    return Harness(engine, runner, clock, emissions)


def test_equal_ones_share_a_batch() -> None:
    """Tasks with the same number of steps share a batch, in the order of their arrival."""
    harness = make_harness()
    for text, steps in (("a", 1), ("b", 2), ("c", 1), ("d", 1), ("e", 1), ("f", 1), ("g", 2)):
        harness.submit(text, steps=steps)

    harness.run()

    assert harness.runner.batches == [["a", "c", "d", "e"], ["b", "g"], ["f"]]
    assert harness.ends() == {"a": "a", "b": "b", "c": "c", "d": "d", "e": "e", "f": "f", "g": "g"}


def test_the_better_class_goes_first() -> None:
    """Interactive tasks go before default ones, and bulk tasks last."""
    harness = make_harness(max_batch=2)
    harness.submit("a", priority="bulk")
    harness.submit("b", priority="default")
    harness.submit("c", priority="interactive")
    harness.submit("d", priority="bulk")
    harness.submit("e", priority="interactive")

    harness.run()

    assert harness.runner.batches == [["c", "e"], ["b", "a"], ["d"]]


def test_a_batch_waits_for_more_unless_it_is_full() -> None:
    """A batch begins when it is full, or `batch_wait_s` after its first task came."""
    harness = make_harness(max_batch=2, batch_wait_s=0.5)
    harness.submit("a")
    harness.engine.step()
    assert harness.runner.batches == []
    assert harness.engine.due_in_s == pytest.approx(0.5)

    harness.clock.now_s += 0.3
    harness.submit("other", steps=2)
    harness.engine.step()
    assert harness.runner.batches == []
    assert harness.engine.due_in_s == pytest.approx(0.2)

    harness.submit("b")
    harness.engine.step()
    assert harness.runner.batches == [["a", "b"]]
    assert harness.engine.due_in_s == pytest.approx(0.5), "the other one came 0.3 s later"

    harness.clock.now_s += 0.5
    harness.engine.step()
    assert harness.runner.batches == [["a", "b"], ["other"]]
    assert harness.engine.due_in_s is None


def test_a_task_that_comes_during_a_step_does_not_cut_the_wait_short() -> None:
    """A task that another thread submits in the middle of a step joins the batch that waits."""
    harness = make_harness(max_batch=2, batch_wait_s=0.5)
    harness.submit("a")

    def submit_another() -> None:
        nonlocal num_readings
        num_readings += 1
        # The first reading is for the arrival of "a".
        if num_readings == 2:
            harness.submit("b")

    num_readings = 0
    harness.clock.before_reading = submit_another
    harness.engine.step()
    assert harness.runner.batches == []

    harness.run()
    assert harness.runner.batches == [["a", "b"]]


def test_a_culprit_fails_alone() -> None:
    """A task that raises or fails takes no other task with it, and each has one end."""
    harness = make_harness(max_batch=8)
    for text in ("a", "bad", "c", "wrong", "e", "unsendable"):
        harness.submit(text)

    harness.run()

    assert harness.ends() == {
        "a": "a",
        "bad": "worker_failed",
        "c": "c",
        "wrong": "invalid_request",
        "e": "e",
        "unsendable": "worker_failed",
    }
    assert harness.engine.stats.num_failures == 3


def test_less_at_once_where_memory_lacks() -> None:
    """Batches that ran out of memory are halved, stay small for a while, and grow again."""
    harness = make_harness(max_batch=8, room=4)
    for text in ("aa", "bb", "cc", "dd"):
        harness.submit(text)
    harness.run()
    assert harness.runner.batches == [["aa", "bb", "cc", "dd"], ["aa", "bb"], ["cc", "dd"]]
    assert harness.ends() == {"aa": "aa", "bb": "bb", "cc": "cc", "dd": "dd"}

    harness.runner.batches.clear()
    for text in ("e", "f", "g"):
        harness.submit(text)
    harness.run()
    assert harness.runner.batches == [["e", "f"], ["g"]]

    # After so many batches without trouble the limit is doubled.
    for number in range(task_engine.CALM_BATCHES):
        harness.submit(str(number))
        harness.run()

    harness.runner.batches.clear()
    for text in ("h", "i", "j"):
        harness.submit(text)
    harness.run()
    assert harness.runner.batches == [["h", "i", "j"]]


def test_what_never_fits_is_told_so() -> None:
    """A task that does not fit alone either fails with `out_of_memory`."""
    harness = make_harness(room=4)
    harness.submit("too long")
    harness.submit("ok")

    harness.run()

    assert harness.ends() == {"too long": "out_of_memory", "ok": "ok"}


def test_nobody_hears_of_what_was_called_off() -> None:
    """A task that is aborted has no end, before its batch or in the middle of it.

    The runner hears of it, and the other tasks of the batch go on.
    """
    harness = make_harness()
    for text in ("a", "b", "c"):
        harness.submit(text)
    harness.engine.abort("a")
    harness.runner.during = lambda progress: harness.engine.abort("b")

    harness.run()

    assert harness.runner.batches == [["b", "c"]]
    assert harness.runner.wanted == [[False, True]]
    assert harness.ends() == {"c": "c"}


def test_who_is_late_is_told_at_once() -> None:
    """A task fails at its deadline, while it waits for others or in the middle of its batch."""
    harness = make_harness(batch_wait_s=9)
    harness.submit("waits", deadline_s=101)
    harness.clock.now_s = 102.0
    harness.engine.step()
    assert harness.runner.batches == []
    assert harness.ends() == {"waits": "deadline_exceeded"}

    harness = make_harness()
    harness.submit("a", deadline_s=101)
    harness.submit("b")

    def pass_time(progress: BatchProgress) -> None:
        harness.clock.now_s = 102.0
        assert not progress.is_wanted(0)
        assert harness.ends() == {"a": "deadline_exceeded"}, "it need not wait for the others"

    harness.runner.during = pass_time

    harness.run()

    assert harness.ends() == {"a": "deadline_exceeded", "b": "b"}


def test_nothing_more_is_taken_while_a_batch_is_at_work() -> None:
    """An engine accepts no task in the middle of a batch, and accepts again after it."""
    harness = make_harness()
    accepted: list[bool] = []
    harness.runner.during = lambda progress: accepted.append(harness.engine.accepts)
    harness.submit("a")
    assert harness.engine.accepts

    harness.run()

    assert accepted == [False]
    assert harness.engine.accepts
    assert harness.engine.load.running == 0


def test_progress_is_told_now_and_then_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first and the last step of a task are reported, and others at most every
    `_REPORT_EVERY_S`."""
    monkeypatch.setattr(task_engine, "REPORT_EVERY_S", 1e9)
    harness = make_harness()

    def report_each_step(progress: BatchProgress) -> None:
        for done in range(1, 101):
            progress.report(0, done, 100, "drawing")

    harness.runner.during = report_each_step
    harness.submit("a")
    harness.run()
    assert harness.progress_of("a") == [1, 100]

    monkeypatch.setattr(task_engine, "REPORT_EVERY_S", 0.0)
    harness.submit("b")
    harness.run()
    assert harness.progress_of("b") == list(range(1, 101))


def test_a_preview_is_shown_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_engine, "REPORT_EVERY_S", 1e9)
    harness = make_harness()

    def report_each_step(progress: BatchProgress) -> None:
        for done in range(1, 101):
            progress.report(0, done, 100, preview=b"x" if done == 40 else b"")

    harness.runner.during = report_each_step
    harness.submit("a")
    harness.run()
    assert harness.progress_of("a") == [1, 40, 100]
    previews = [one.progress.preview for one in harness.emissions if one.progress is not None]
    assert previews == [b"", b"x", b""]


def test_progress_in_numbers_of_numpy_can_be_sent() -> None:
    harness = make_harness()
    total: Any = np.int64(3)
    harness.runner.during = lambda progress: progress.report(0, total, total)
    harness.submit("a")
    harness.run()
    [progress] = [one.progress for one in harness.emissions if one.progress is not None]
    assert decode_event(encode(progress)) == Progress(3, 3)


_ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "bad", "wrong", "long enough"]),
        st.integers(1, 2),
        st.sampled_from(["interactive", "default", "bulk"]),
        st.sampled_from(["keep", "abort", "late"]),
    ),
    max_size=12,
)


@given(actions=_ACTIONS, max_batch=st.integers(1, 5), room=st.integers(1, 12))
def test_each_task_ends_once_or_was_called_off(
    actions: list[tuple[str, int, Priority, str]], max_batch: int, room: int
) -> None:
    """Every task that is not aborted has one end, and no batch is larger than `max_batch`.

    Tasks of every group, class and text come in any order.
    """
    runner = Scripted(max_batch=max_batch, room=room)
    emissions: list[Emission] = []
    engine = TaskEngine(runner, emissions.extend, now=Clock())

    kept = []
    for number, (text, steps, priority, fate) in enumerate(actions):
        key = str(number)
        deadline_s = 0.0 if fate == "late" else 1e9
        take = Take(
            key, EchoTask(text, steps), tenant="t", deadline_s=deadline_s, priority=priority
        )
        engine.submit(engine.prepare(take))
        if fate == "abort":
            engine.abort(key)
        else:
            kept.append(key)
    while engine.has_work:
        engine.step()

    ended = [emission.key for emission in emissions if emission.ended is not None]
    assert sorted(ended) == sorted(kept)
    for batch in runner.batches:
        assert len(batch) <= max_batch


def test_what_a_model_cannot_do_is_refused_before_it_waits() -> None:
    """A task that its runner refuses never enters the queue of the engine."""
    harness = make_harness()
    with pytest.raises(InvalidRequest):
        harness.submit("")
    assert not harness.engine.has_work


def test_the_echo_stops_when_nobody_wants_it() -> None:
    """A task that is aborted stops between two steps, and leaves the rest undone."""
    runner = EchoTaskRunner(RunnerOptions("echo-task", max_batch=2))
    emissions: list[Emission] = []
    has_begun = threading.Event()

    def emit(news: list[Emission]) -> None:
        emissions.extend(news)
        has_begun.set()

    engine = TaskEngine(runner, emit)
    engine.submit(engine.prepare(Take("k", EchoTask("x", steps=10_000, step_ms=10))))
    stepping = threading.Thread(target=engine.step)
    stepping.start()
    assert has_begun.wait(60)

    engine.abort("k")

    # All its steps would take 100 s.
    stepping.join(60)
    assert not stepping.is_alive()
    for emission in emissions:
        assert emission.ended is None


@pytest.mark.parametrize(
    ("task", "field"),
    [
        (EchoTask("x", steps=0), "steps"),
        (EchoTask("x", steps=10_001), "steps"),
        (EchoTask("x", step_ms=-1), "step_ms"),
        (EchoTask("x", step_ms=60_001), "step_ms"),
        (EchoTask("x" * 200, steps=10_000), "text"),
    ],
)
def test_the_echo_does_what_ends_soon(task: EchoTask, field: str) -> None:
    """A task with too many or too long steps, or too much text, is refused by its field."""
    with pytest.raises(InvalidRequest) as caught:
        EchoTaskRunner(RunnerOptions("echo-task")).read(task, NO_FILES)
    assert caught.value.field == field
