"""Measure the gaps between tokens while a long whole task runs on another thread.

python -m scripts.bench.beside [--seconds 30] [--model PATH]

One answer after the other is decoded all the time. The gaps between its tokens are measured alone,
then for as long beside a task that keeps multiplying matrices, and so on in turns. With `taskset -c
0` both share one core.
"""

import argparse
import statistics
import threading
import time
from collections.abc import Hashable, Sequence
from itertools import pairwise

import torch

from shared.errors import FleetError
from shared.messages import Generate, Sampling, Task
from shared.settings.settings import DEFAULT_MODEL
from shared.tasks.echo_task import EchoedTask, EchoTask
from worker.engine.engine import Engine
from worker.engine.engine_thread import EngineThread
from worker.engine.request import Emission, SequenceWork
from worker.engine.runner import RunnerOptions
from worker.engine.take import Take
from worker.engine.task_engine import TaskEngine
from worker.engine.task_runner import BatchProgress, Files, TaskOutput, TaskRunnerSpec
from worker.hardware.device import keep_freed_memory
from worker.runners.registry import load_sequence_runner

_SIZE = 512
_ROUNDS = 3
_TASK = Generate(
    "Compute: 347 + 285", Sampling(max_tokens=400, min_tokens=400, seed=1, ignore_eos=True)
)


class Multiplier:
    """A task runner that keeps one core busy for the `step_ms` milliseconds of its task."""

    def __init__(self) -> None:
        self.spec = TaskRunnerSpec(
            runner="multiplier",
            name="tasks",
            found="multiplies",
            max_batch=1,
            tasks=("echo_task",),
            trial=EchoTask("1"),
        )
        self._matrix = torch.rand(_SIZE, _SIZE)

    def read(self, task: Task, files: Files) -> Task:
        return task

    def group_key(self, item: Task) -> Hashable:
        return None

    def run(self, items: Sequence[Task], progress: BatchProgress) -> list[TaskOutput | FleetError]:
        [task] = items
        assert isinstance(task, EchoTask)
        ends_s = time.monotonic() + task.step_ms / 1000
        while time.monotonic() < ends_s:
            torch.mm(self._matrix, self._matrix)
            progress.heartbeat()
        return [TaskOutput(EchoedTask(1))]


class Decoding:
    """An engine that always decodes an answer, and records the times of its tokens."""

    def __init__(self, path: str) -> None:
        self._runner = load_sequence_runner("auto", RunnerOptions(path=path, max_batch=1))
        self._thread = EngineThread(on_death=lambda: None)
        self._engine = Engine(self._runner, self._receive, self._thread.wake)
        self._thread.add(self._engine)
        self._number = 0
        self.moments_s: list[float] = []

    def start(self) -> None:
        self._thread.start()
        self._submit()

    def stop(self) -> None:
        self._thread.stop()
        self._thread.join()

    def _submit(self) -> None:
        self._number += 1
        encoded = self._runner.encode(_TASK)
        self._engine.submit(SequenceWork(str(self._number), encoded, _TASK.sampling))

    def _receive(self, emissions: list[Emission]) -> None:
        """Record the times of tokens, and submit the next answer when one has ended."""
        for emission in emissions:
            if emission.ids:
                self.moments_s.append(time.perf_counter())
            if emission.ended is not None:
                self._submit()


def gaps_ms(moments_s: Sequence[float], begin_s: float, end_s: float) -> list[float]:
    """Return the milliseconds between the tokens of a span of time, in ascending order."""
    inside = [moment for moment in moments_s if begin_s <= moment < end_s]
    gaps = []
    for earlier, later in pairwise(inside):
        gaps.append(1000 * (later - earlier))
    return sorted(gaps)


def _p99(gaps: Sequence[float]) -> float:
    return gaps[int(0.99 * len(gaps))]


def _percentiles(gaps: Sequence[float]) -> str:
    return f"p50 {statistics.median(gaps):.2f} ms p99 {_p99(gaps):.2f} ms"


def main(argv: Sequence[str] | None = None) -> None:
    """Print the gaps alone and beside a task, in turns."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="of each half of a round")
    parser.add_argument("--model", default=str(DEFAULT_MODEL), help="the model that decodes")
    parser.add_argument(
        "--keeps-priority",
        action="store_true",
        help="leave the task's thread at full priority, which workers lower",
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    keep_freed_memory()

    decoding = Decoding(args.model)
    has_ended = threading.Event()

    def on_emissions(emissions: list[Emission]) -> None:
        if any(emission.ended is not None for emission in emissions):
            has_ended.set()

    tasks = EngineThread(on_death=lambda: None, name="tasks")
    if not args.keeps_priority:
        tasks.give_way()
    engine = TaskEngine(Multiplier(), on_emissions, tasks.wake)
    tasks.add(engine)
    tasks.start()
    decoding.start()
    # The first tokens are a warm-up and do not count.
    time.sleep(min(2.0, args.seconds))

    ratios: list[float] = []
    for number in range(_ROUNDS):
        begin_s = time.perf_counter()
        time.sleep(args.seconds)

        middle_s = time.perf_counter()
        has_ended.clear()
        task = EchoTask("x", step_ms=int(1000 * args.seconds))
        engine.submit(engine.prepare(Take(str(number), task)))
        has_ended.wait()
        end_s = time.perf_counter()
        alone = gaps_ms(decoding.moments_s, begin_s, middle_s)
        beside = gaps_ms(decoding.moments_s, middle_s, end_s)
        ratio = _p99(beside) / _p99(alone)
        ratios.append(ratio)
        print(
            f"round {number + 1}: alone {_percentiles(alone)}; beside {_percentiles(beside)}; "
            f"p99 x {ratio:.2f}"
        )

    print(f"p99 beside a task, as a multiple of p99 alone: median {statistics.median(ratios):.2f}")
    decoding.stop()
    tasks.stop()
    tasks.join()


if __name__ == "__main__":
    main()
