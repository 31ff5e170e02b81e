"""How evenly tokens come beside a long task that is done whole, on a thread of its own.

python -m scripts.bench.beside [--seconds 30] [--model PATH]

One answer after another is decoded all the time. The gaps between its tokens are measured for a
while alone, then for as long beside a task that multiplies matrices with all its might, and so on
in turns. `taskset -c 0` shows one core.
"""

import argparse
import statistics
import threading
import time
from collections.abc import Hashable, Sequence
from itertools import pairwise

import torch

from shared.echo_task import EchoedTask, EchoTask
from shared.errors import FleetError
from shared.messages import Generate, Sampling, Task
from shared.settings import SAMPLE_MODEL
from worker.device import keep_freed_memory
from worker.engine import Engine
from worker.engine_thread import EngineThread
from worker.registry import load_sequence_runner
from worker.request import Emission, SequenceWork
from worker.runners.base import RunnerOptions
from worker.take import Take
from worker.task_engine import TaskEngine
from worker.task_runner import BatchProgress, TaskOutput, TaskRunnerSpec

_SIZE = 512
_ROUNDS = 3
_ASK = Generate(
    "Compute: 347 + 285", Sampling(max_tokens=400, min_tokens=400, seed=1, ignore_eos=True)
)


class Multiplier:
    """A task takes `step_ms` milliseconds of one core."""

    def __init__(self) -> None:
        self.spec = TaskRunnerSpec(
            "multiplier", "tasks", "multiplies", 1, ("echo_task",), EchoTask("1")
        )
        self._matrix = torch.rand(_SIZE, _SIZE)

    def check(self, task: Task) -> None:
        assert isinstance(task, EchoTask)

    def group_key(self, task: Task) -> Hashable:
        return None

    def run(self, tasks: Sequence[Task], progress: BatchProgress) -> list[TaskOutput | FleetError]:
        [task] = tasks
        assert isinstance(task, EchoTask)
        ends_s = time.monotonic() + task.step_ms / 1000
        while time.monotonic() < ends_s:
            torch.mm(self._matrix, self._matrix)
            progress.heartbeat()
        return [TaskOutput(EchoedTask(1))]


class Decoding:
    """An engine that always has an answer to give; notes when its tokens come."""

    def __init__(self, path: str) -> None:
        self._runner = load_sequence_runner("auto", RunnerOptions(path=path, max_batch=1))
        self._thread = EngineThread(on_death=lambda: None)
        self._engine = Engine(self._runner, self._note, self._thread.wake)
        self._thread.add(self._engine)
        self._number = 0
        self.moments_s: list[float] = []

    def start(self) -> None:
        self._thread.start()
        self._ask()

    def stop(self) -> None:
        self._thread.stop()
        self._thread.join()

    def _ask(self) -> None:
        self._number += 1
        self._engine.submit(
            SequenceWork(str(self._number), self._runner.encode(_ASK), _ASK.sampling)
        )

    def _note(self, emissions: list[Emission]) -> None:
        for emission in emissions:
            if emission.ids:
                self.moments_s.append(time.perf_counter())
            if emission.ended is not None:
                self._ask()


def gaps_ms(moments_s: Sequence[float], begin_s: float, end_s: float) -> list[float]:
    """Return the milliseconds between tokens that came in a span of time, in order of size."""
    inside = [moment for moment in moments_s if begin_s <= moment < end_s]
    return sorted(1000 * (later - sooner) for sooner, later in pairwise(inside))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="of each half of a round")
    parser.add_argument("--model", default=str(SAMPLE_MODEL), help="what decodes")
    parser.add_argument(
        "--keeps-priority",
        action="store_true",
        help="let the task's thread not give way, as it does",
    )
    asked = parser.parse_args(argv)
    torch.set_num_threads(1)
    keep_freed_memory()

    decoding = Decoding(asked.model)
    has_ended = threading.Event()

    def note_end(emissions: list[Emission]) -> None:
        if any(emission.ended is not None for emission in emissions):
            has_ended.set()

    tasks = EngineThread(on_death=lambda: None, name="tasks")
    if not asked.keeps_priority:
        tasks.give_way()
    engine = TaskEngine(Multiplier(), note_end, tasks.wake)
    tasks.add(engine)
    tasks.start()
    decoding.start()
    time.sleep(min(2.0, asked.seconds))

    ratios: list[float] = []
    for number in range(_ROUNDS):
        begin_s = time.perf_counter()
        time.sleep(asked.seconds)
        middle_s = time.perf_counter()
        has_ended.clear()
        engine.submit(
            engine.prepare(Take(str(number), EchoTask("x", step_ms=int(1000 * asked.seconds))))
        )
        has_ended.wait()
        end_s = time.perf_counter()
        alone = gaps_ms(decoding.moments_s, begin_s, middle_s)
        beside = gaps_ms(decoding.moments_s, middle_s, end_s)
        p99s = [gaps[int(0.99 * len(gaps))] for gaps in (alone, beside)]
        p50s = [statistics.median(gaps) for gaps in (alone, beside)]
        ratios.append(p99s[1] / p99s[0])
        print(
            f"round {number + 1}: alone p50 {p50s[0]:.2f} ms p99 {p99s[0]:.2f} ms; "
            f"beside p50 {p50s[1]:.2f} ms p99 {p99s[1]:.2f} ms; p99 x {ratios[-1]:.2f}"
        )
    print(f"p99 beside a task, as a multiple of p99 alone: median {statistics.median(ratios):.2f}")
    decoding.stop()
    tasks.stop()
    tasks.join()


if __name__ == "__main__":
    main()
