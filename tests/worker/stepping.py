"""Runs a runner through a real engine, without threads or Redis: what every oracle test needs."""

from collections.abc import Sequence
from typing import TypeVar

from shared.messages import (
    Classify,
    ContinuationScore,
    Done,
    Embed,
    Embedded,
    Generate,
    Labelled,
    Result,
    Score,
    Scored,
    Solution,
    Solve,
    Task,
)
from worker.engine import Engine
from worker.request import Emission, SequenceWork
from worker.runners.base import Runner

SomeResult = TypeVar("SomeResult", bound=Result)


def generate_all(
    runner: Runner, tasks: Sequence[Generate], replayed: Sequence[Sequence[int]] | None = None
) -> list[list[int]]:
    """All response ids of each task, the tasks decoded together; `replayed` tokens count as said
    before."""
    said = [list(ids) for ids in replayed] if replayed else [[] for _ in tasks]
    emissions = run(runner, tasks, said)
    for emission in emissions:
        assert emission.ended is None or isinstance(emission.ended, Done), emission.ended
        said[int(emission.key)] += emission.ids
    return said


def score_all(runner: Runner, tasks: Sequence[Score]) -> list[tuple[ContinuationScore, ...]]:
    """The scores of each task, the tasks scored together."""
    return [end_of(done, Scored).scores for done in _ends(runner, tasks)]


def solve_all(runner: Runner, tasks: Sequence[Solve]) -> list[Solution]:
    """The solution of each puzzle, the puzzles solved together."""
    return [end_of(done, Solution) for done in _ends(runner, tasks)]


def embed_all(runner: Runner, tasks: Sequence[Embed]) -> list[bytes]:
    """The vector of each text, the texts read together."""
    return [end_of(done, Embedded).vector for done in _ends(runner, tasks)]


def classify_all(runner: Runner, tasks: Sequence[Classify]) -> list[dict[str, float]]:
    """The labels of each text, the texts read together."""
    ends = [end_of(done, Labelled) for done in _ends(runner, tasks)]
    return [{label.name: label.score for label in end.labels} for end in ends]


def end_of(done: object, kind: type[SomeResult]) -> SomeResult:
    """The result of a job that is done."""
    assert isinstance(done, Done), done
    assert isinstance(done.result, kind), done
    return done.result


def _ends(runner: Runner, tasks: Sequence[Task]) -> list[Done]:
    ended = {int(item.key): item.ended for item in run(runner, tasks, [[] for _ in tasks])}
    for end in ended.values():
        assert isinstance(end, Done), end
    return [end for _, end in sorted(ended.items()) if isinstance(end, Done)]


def run(runner: Runner, tasks: Sequence[Task], said: Sequence[Sequence[int]]) -> list[Emission]:
    """Every emission of an engine that gets all tasks at once and runs until nothing is left."""
    emissions: list[Emission] = []
    engine = Engine(runner, emissions.extend)
    for index, (task, ids) in enumerate(zip(tasks, said, strict=True)):
        sampling = task.sampling if isinstance(task, Generate) else None
        engine.submit(SequenceWork(str(index), runner.encode(task), sampling, (tuple(ids),)))
    while engine.has_work:
        engine.step()
    return emissions


class Serving:
    """One engine over time: `said` and `done` are in the order of submission."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.said: list[list[int]] = []
        self.done: list[Done] = []
        self._ends: dict[str, Done] = {}
        self.engine = Engine(runner, self._note)

    def submit(self, task: Task) -> None:
        sampling = task.sampling if isinstance(task, Generate) else None
        self.engine.submit(SequenceWork(str(len(self.said)), self.runner.encode(task), sampling))
        self.said.append([])

    def finish(self, tasks: Sequence[Task] = ()) -> None:
        for task in tasks:
            self.submit(task)
        while self.engine.has_work:
            self.engine.step()
        self.done = [self._ends[str(number)] for number in range(len(self.said))]

    def _note(self, emissions: list[Emission]) -> None:
        for item in emissions:
            self.said[int(item.key)] += item.ids
            if isinstance(item.ended, Done):
                self._ends[item.key] = item.ended
