"""A model-free runner of tasks that are done whole: it waits, tells how far it has come, and makes
a file of a text.

It shows what the second mechanism does without a model, as `echo` does for the first; the kill
matrix runs on both.
"""

import time
from collections.abc import Hashable, Sequence

from shared.echo_task import EchoedTask, EchoTask
from shared.errors import FleetError, InvalidRequest
from shared.messages import Task
from worker.heartbeat import silent_for
from worker.runners.base import RunnerOptions
from worker.task_runner import BatchProgress, NewFile, TaskOutput, TaskRunnerSpec

MOST_STEPS = 10_000
MOST_STEP_MS = 60_000
_MOST_CHARACTERS = 1 << 20
"""In the whole answer."""


class EchoTaskRunner:
    """All tasks of a batch take their steps side by side, so those with equal steps share one."""

    def __init__(self, options: RunnerOptions) -> None:
        self.spec = TaskRunnerSpec(
            "echo-task",
            options.name,
            "echo-task: repeats a text step by step, no model",
            options.max_batch,
            tasks=("echo_task",),
            trial=EchoTask("1"),
        )

    def check(self, task: Task) -> None:
        if not isinstance(task, EchoTask):
            raise InvalidRequest("This model only serves the task 'echo_task'.", field="model")
        if not 1 <= task.steps <= MOST_STEPS:
            raise InvalidRequest(
                f"steps: expected 1 to {MOST_STEPS}, got {task.steps}.", field="steps"
            )
        if not 0 <= task.step_ms <= MOST_STEP_MS:
            raise InvalidRequest(
                f"step_ms: expected 0 to {MOST_STEP_MS}, got {task.step_ms}.", field="step_ms"
            )
        if len(task.text) * task.steps > _MOST_CHARACTERS:
            raise InvalidRequest(
                f"text: expected at most {_MOST_CHARACTERS} characters in all steps.", field="text"
            )

    def group_key(self, task: Task) -> Hashable:
        assert isinstance(task, EchoTask)
        return task.steps, task.step_ms

    def run(self, tasks: Sequence[Task], progress: BatchProgress) -> list[TaskOutput | FleetError]:
        texts = [""] * len(tasks)
        first = tasks[0]
        assert isinstance(first, EchoTask)
        for step in range(first.steps):
            if not any([progress.is_wanted(item) for item in range(len(tasks))]):
                break
            self.take_step(tasks, step, progress)
            for item, task in enumerate(tasks):
                assert isinstance(task, EchoTask)
                texts[item] += task.text
                progress.report(item, step + 1, first.steps)
        result = EchoedTask(first.steps)
        return [
            TaskOutput(result, (NewFile(text.encode(), "text/plain; charset=utf-8"),))
            for text in texts
        ]

    def take_step(self, tasks: Sequence[Task], step: int, progress: BatchProgress) -> None:
        """Be busy. Nothing beats inside a step, as in one long call of a foreign library."""
        first = tasks[0]
        assert isinstance(first, EchoTask)
        step_s = first.step_ms / 1000
        with silent_for(at_most_s=2 * step_s):
            time.sleep(step_s)
