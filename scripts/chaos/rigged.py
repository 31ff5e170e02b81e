"""The echo runners with a rig: they can be slow, held at an exact token, and made to crash their
process.

A prompt says where: `hold:NAME:K` yields nothing beyond K tokens (or K scores) while the file NAME
exists in the folder that AIOS_CHAOS_GATES names (a gate that is shut); `poison` kills the process
with SIGKILL. AIOS_CHAOS_STEP_S is how long each step takes. The n-th choice begins n characters
later than the first, so that they can be told apart.

A task that is done whole takes no more than K steps. `BATCH` of them are done at once.
"""

import os
import re
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from shared.echo_task import EchoTask
from shared.errors import FleetError
from shared.messages import Task
from worker.runners.base import RunnerOptions
from worker.runners.echo import Echo
from worker.runners.echo_task import EchoTaskRunner
from worker.sequence import Sampled, Slice, StepResult, TokenSequence
from worker.task_runner import BatchProgress

GATES_ENV, STEP_ENV = "AIOS_CHAOS_GATES", "AIOS_CHAOS_STEP_S"
POISON = "poison"
BATCH = 3

_HOLD = re.compile(r"hold:(\w+):(\d+)")
_HELD_STEP_S = 0.005


class RiggedEcho(Echo):
    """A held sequence stays where it is and the others go on, so that any number of jobs reach
    their places."""

    def __init__(self, options: RunnerOptions) -> None:
        super().__init__(options)
        self.spec = replace(
            self.spec, step_tokens=options.step_tokens
        )  # a job that is held must not use up the step
        gates = os.environ.get(GATES_ENV)
        self._gates = Path(gates) if gates else None
        self._step_s = float(os.environ.get(STEP_ENV, "0"))
        self._prompts: dict[TokenSequence, str] = {}

    def step(self, slices: Sequence[Slice]) -> list[StepResult | FleetError]:
        shut = {file.name for file in self._gates.iterdir()} if self._gates is not None else set()
        is_held = [self._is_held(part, shut) for part in slices]
        if self._step_s or all(is_held):
            time.sleep(max(self._step_s, _HELD_STEP_S if all(is_held) else 0.0))
        return [
            None if held else self._compute(part)
            for part, held in zip(slices, is_held, strict=True)
        ]

    def _compute(self, part: Slice) -> StepResult | FleetError:
        [result] = super().step([part])
        if not isinstance(result, Sampled) or part.sequence.choice == 0:
            return result
        prompt, said = part.sequence.encoded.prompt_ids, len(part.sequence.output_ids)
        return replace(result, token=prompt[(said + part.sequence.choice) % len(prompt)])

    def release(self, sequence: TokenSequence) -> None:
        self._prompts.pop(sequence, None)

    def _is_held(self, part: Slice, shut: set[str]) -> bool:
        """Whether the slice goes beyond a gate that is shut. A mark beside it, NAME.KEY.CHOICE,
        tells that it came."""
        prompt = self._prompt(part.sequence)
        if POISON in prompt:
            os.kill(os.getpid(), signal.SIGKILL)
        found = _HOLD.search(prompt)
        if found is None or self._gates is None or found[1] not in shut:
            return False
        scores, said = (
            len(part.sequence.scores) + part.num_continuations,
            len(part.sequence.output_ids) + 1,
        )
        if (scores if part.sequence.is_scoring else said) <= int(found[2]):
            return False
        (self._gates / f"{found[1]}.{part.sequence.key}.{part.sequence.choice}").touch()
        return True

    def _prompt(self, sequence: TokenSequence) -> str:
        if sequence not in self._prompts:
            self._prompts[sequence] = self.decode(sequence.encoded.prompt_ids)
        return self._prompts[sequence]


class RiggedEchoTask(EchoTaskRunner):
    """A batch stands still at a step as long as the gate of any of its tasks is shut there."""

    def __init__(self, options: RunnerOptions) -> None:
        super().__init__(options)
        self.spec = replace(self.spec, max_batch=BATCH)
        gates = os.environ.get(GATES_ENV)
        self._gates = Path(gates) if gates else None

    def take_step(self, tasks: Sequence[Task], step: int, progress: BatchProgress) -> None:
        super().take_step(tasks, step, progress)
        wanted = range(len(tasks))
        while any([progress.is_wanted(item) for item in wanted]) and any(
            [self._is_held(task, step) for task in tasks]
        ):
            time.sleep(_HELD_STEP_S)

    def _is_held(self, task: Task, step: int) -> bool:
        """Return whether the task may not finish this step. A mark, NAME.PID.REST, tells that it
        came here."""
        assert isinstance(task, EchoTask)
        found = _HOLD.search(task.text)
        if (
            found is None
            or self._gates is None
            or step < int(found[2])
            or not (self._gates / found[1]).exists()
        ):
            return False
        (self._gates / mark_of(task.text, os.getpid())).touch()
        return True


def mark_of(text: str, pid: int) -> str:
    """Return the name of the mark that a task with this text leaves in the process `pid`."""
    head, _, rest = text.partition(" ")
    return f"{head.split(':')[1]}.{pid}.{rest.strip()}"
