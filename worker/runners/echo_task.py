"""A model-free runner of whole tasks: it waits, reports its progress, and returns a file of text.

It shows the second mechanism without a model, as `echo` shows the first. The tests that kill
workers run on both.
"""

import time
from collections.abc import Hashable, Sequence

from shared.errors import FleetError, InvalidRequest
from shared.messages import Task
from shared.tasks.echo_task import EchoedTask, EchoTask
from worker.engine.heartbeat import silent_for
from worker.engine.runner import RunnerOptions
from worker.engine.task_runner import BatchProgress, Files, NewFile, TaskOutput, TaskRunnerSpec

MAX_STEPS = 10_000
MAX_STEP_MS = 60_000
_MAX_CHARACTERS = 1 << 20
"""The largest number of characters in an answer."""


class EchoTaskRunner:
    """A runner whose batches take their steps together. Tasks with equal steps share a batch."""

    def __init__(self, options: RunnerOptions) -> None:
        self.spec = TaskRunnerSpec(
            "echo-task",
            options.name,
            found="echo-task: repeats a text step by step, no model",
            max_batch=options.max_batch,
            tasks=("echo_task",),
            trial=EchoTask("1"),
        )

    def read(self, task: Task, files: Files) -> EchoTask:
        if not isinstance(task, EchoTask):
            raise InvalidRequest("This model only serves the task 'echo_task'.", field="model")
        if not 1 <= task.steps <= MAX_STEPS:
            raise InvalidRequest(
                f"steps: expected 1 to {MAX_STEPS}, got {task.steps}.", field="steps"
            )
        if not 0 <= task.step_ms <= MAX_STEP_MS:
            raise InvalidRequest(
                f"step_ms: expected 0 to {MAX_STEP_MS}, got {task.step_ms}.", field="step_ms"
            )
        if len(task.text) * task.steps > _MAX_CHARACTERS:
            raise InvalidRequest(
                f"text: expected at most {_MAX_CHARACTERS} characters in all steps.", field="text"
            )
        return task

    def group_key(self, item: EchoTask) -> Hashable:
        return item.steps, item.step_ms

    def run(
        self, items: Sequence[EchoTask], progress: BatchProgress
    ) -> list[TaskOutput | FleetError]:
        texts = [""] * len(items)
        first = items[0]
        for step in range(first.steps):
            wanted = [progress.is_wanted(index) for index in range(len(items))]
            if not any(wanted):
                break
            self.take_step(items, step, progress)
            for index, task in enumerate(items):
                texts[index] += task.text
                progress.report(index, step + 1, first.steps)

        result = EchoedTask(first.steps)
        outputs: list[TaskOutput | FleetError] = []
        for text in texts:
            file = NewFile(text.encode(), "text/plain; charset=utf-8")
            outputs.append(TaskOutput(result, (file,)))
        return outputs

    def take_step(self, items: Sequence[EchoTask], step: int, progress: BatchProgress) -> None:
        """Sleep for one step of the batch."""
        step_s = items[0].step_ms / 1000
        # A step gives no heartbeat, like one long call of a foreign library.
        with silent_for(at_most_s=2 * step_s):
            time.sleep(step_s)
