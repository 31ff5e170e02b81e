"""Runs a runner through a real engine, without threads or Redis: what every oracle test needs."""

from collections.abc import Sequence

from shared.messages import ContinuationScore, Done, Generate, Score
from worker.engine import Engine
from worker.request import Emission, Work
from worker.runners.base import Runner


def generate_all(
    runner: Runner, tasks: Sequence[Generate], replayed: Sequence[Sequence[int]] | None = None
) -> list[list[int]]:
    """All response ids of each task, the tasks decoded together; `replayed` tokens count as said before."""
    said = [list(ids) for ids in replayed] if replayed else [[] for _ in tasks]
    emissions = run(runner, tasks, said)
    for emission in emissions:
        assert emission.ended is None or isinstance(emission.ended, Done), emission.ended
        said[int(emission.key)] += emission.ids
    return said


def score_all(runner: Runner, tasks: Sequence[Score]) -> list[tuple[ContinuationScore, ...]]:
    """The scores of each task, the tasks scored together."""
    ended = {int(item.key): item.ended for item in run(runner, tasks, [[] for _ in tasks])}
    results = []
    for index in range(len(tasks)):
        done = ended[index]
        assert isinstance(done, Done), done
        results.append(done.scores)
    return results


def run(runner: Runner, tasks: Sequence[Generate | Score], said: Sequence[Sequence[int]]) -> list[Emission]:
    """Every emission of an engine that gets all tasks at once and runs until nothing is left."""
    emissions: list[Emission] = []
    engine = Engine(runner, emissions.extend)
    for index, (task, ids) in enumerate(zip(tasks, said, strict=True)):
        sampling = task.sampling if isinstance(task, Generate) else None
        engine.submit(Work(str(index), runner.encode(task), sampling, (tuple(ids),)))
    while engine.has_work:
        engine.step()
    return emissions
