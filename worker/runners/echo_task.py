"""A model-free runner of whole tasks: it waits, reports its progress, and makes a file of a text.

It shows the second mechanism without a model, as `echo` does the first. The kill matrix runs on
both.
"""

import time
from collections.abc import Hashable, Sequence

from shared.errors import FleetError, InvalidRequest
from shared.messages import Task
from shared.tasks.echo_task import EchoedTask, EchoTask
from worker.engine.heartbeat import silent_for
from worker.engine.runner import RunnerOptions
from worker.engine.task_runner import BatchProgress, NewFile, TaskOutput, TaskRunnerSpec

MOST_STEPS = 10_000
MOST_STEP_MS = 60_000
_MOST_CHARACTERS = 1 << 20
"""The most characters of an answer."""


class EchoTaskRunner:
    """A runner whose batches take their steps together: tasks with equal steps share a batch."""

    def __init__(self, options: RunnerOptions) -> None:
        self.spec = TaskRunnerSpec(
            "echo-task",
            options.name,
            found="echo-task: repeats a text step by step, no model",
            max_batch=options.max_batch,
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
            wanted = [progress.is_wanted(index) for index in range(len(tasks))]
            if not any(wanted):
                break
            self.take_step(tasks, step, progress)
            for index, task in enumerate(tasks):
                assert isinstance(task, EchoTask)
                texts[index] += task.text
                progress.report(index, step + 1, first.steps)

        result = EchoedTask(first.steps)
        outputs: list[TaskOutput | FleetError] = []
        for text in texts:
            file = NewFile(text.encode(), "text/plain; charset=utf-8")
            outputs.append(TaskOutput(result, (file,)))
        return outputs

    def take_step(self, tasks: Sequence[Task], step: int, progress: BatchProgress) -> None:
        """Be busy for one step."""
        first = tasks[0]
        assert isinstance(first, EchoTask)
        step_s = first.step_ms / 1000
        # No heartbeat comes from inside a step, as in one long call of a foreign library.
        with silent_for(at_most_s=2 * step_s):
            time.sleep(step_s)
