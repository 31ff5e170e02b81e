"""Rigged echo runners: they can be slow, be held at an exact token, and crash their process.

A prompt with `hold:NAME:K` yields no more than K tokens (or K scores) while the gate NAME is shut.
A gate is shut while there is a file of its name in the folder that AIOS_CHAOS_GATES names. A prompt
with `poison` kills the process with SIGKILL. AIOS_CHAOS_STEP_S is the time of each step in seconds.
The n-th choice begins n characters later than the first, so that the choices differ.

An echo task that is held takes no more than K steps. A batch has up to `BATCH` tasks.
"""

import os
import re
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from shared.errors import FleetError
from shared.tasks.echo_task import EchoTask
from worker.engine.runner import RunnerOptions
from worker.engine.sequence import Sampled, Slice, StepResult, TokenSequence
from worker.engine.task_runner import BatchProgress
from worker.runners.echo import Echo
from worker.runners.echo_task import EchoTaskRunner

GATES_ENV = "AIOS_CHAOS_GATES"
STEP_ENV = "AIOS_CHAOS_STEP_S"
POISON = "poison"
BATCH = 3

_HOLD = re.compile(r"hold:(\w+):(\d+)")
_HELD_STEP_S = 0.005


class RiggedEcho(Echo):
    """The rigged runner of the echo model.

    While a sequence is held the others go on, so that any number of jobs reach their gates.
    """

    def __init__(self, options: RunnerOptions) -> None:
        super().__init__(options)
        # The limit of the settings, not the echo model's: held sequences must not use it up.
        self.spec = replace(self.spec, step_tokens=options.step_tokens)
        self._gates = _gates_folder()
        self._step_s = float(os.environ.get(STEP_ENV, "0"))
        self._prompts: dict[TokenSequence, str] = {}

    def step(self, slices: Sequence[Slice]) -> list[StepResult | FleetError]:
        shut_gates = set()
        if self._gates is not None:
            shut_gates = {file.name for file in self._gates.iterdir()}
        is_held = [self._is_held(part, shut_gates) for part in slices]

        # If all sequences are held, a step would return at once, and the engine would spin.
        pause_s = self._step_s
        if all(is_held):
            pause_s = max(pause_s, _HELD_STEP_S)
        if pause_s:
            time.sleep(pause_s)

        results: list[StepResult | FleetError] = []
        for part, held in zip(slices, is_held, strict=True):
            results.append(None if held else self._compute(part))
        return results

    def _compute(self, part: Slice) -> StepResult | FleetError:
        [result] = super().step([part])
        choice = part.sequence.choice
        if not isinstance(result, Sampled) or choice == 0:
            return result
        prompt_ids = part.sequence.encoded.prompt_ids
        num_generated = len(part.sequence.output_ids)
        return replace(result, token=prompt_ids[(num_generated + choice) % len(prompt_ids)])

    def release(self, sequence: TokenSequence) -> None:
        self._prompts.pop(sequence, None)

    def _is_held(self, part: Slice, shut_gates: set[str]) -> bool:
        """Return whether the slice goes beyond a gate that is shut.

        If it does, write a file NAME.KEY.CHOICE beside the gate, by which a test sees that the
        sequence is held.
        """
        prompt = self._prompt(part.sequence)
        if POISON in prompt:
            os.kill(os.getpid(), signal.SIGKILL)

        match = _HOLD.search(prompt)
        if match is None or self._gates is None:
            return False
        gate = match[1]
        limit = int(match[2])
        if gate not in shut_gates:
            return False

        if part.sequence.is_scoring:
            reached = len(part.sequence.scores) + part.num_continuations
        else:
            reached = len(part.sequence.output_ids) + 1
        if reached <= limit:
            return False
        (self._gates / f"{gate}.{part.sequence.key}.{part.sequence.choice}").touch()
        return True

    def _prompt(self, sequence: TokenSequence) -> str:
        if sequence not in self._prompts:
            self._prompts[sequence] = self.decode(sequence.encoded.prompt_ids)
        return self._prompts[sequence]


class RiggedEchoTask(EchoTaskRunner):
    """The rigged runner of echo tasks.

    A batch waits at a step while any of its tasks is held there.
    """

    def __init__(self, options: RunnerOptions) -> None:
        super().__init__(options)
        self.spec = replace(self.spec, max_batch=BATCH)
        self._gates = _gates_folder()

    def take_step(self, items: Sequence[EchoTask], step: int, progress: BatchProgress) -> None:
        super().take_step(items, step, progress)
        while self._must_wait(items, step, progress):
            time.sleep(_HELD_STEP_S)

    def _must_wait(self, items: Sequence[EchoTask], step: int, progress: BatchProgress) -> bool:
        """Return whether any task is still wanted, and any is held."""
        # Lists, not generators, so that both are called for every task: `is_wanted` is also the
        # worker's heartbeat, and `_is_held` writes the file of each task that is held.
        is_wanted = [progress.is_wanted(index) for index in range(len(items))]
        if not any(is_wanted):
            return False
        is_held = [self._is_held(task, step) for task in items]
        return any(is_held)

    def _is_held(self, task: EchoTask, step: int) -> bool:
        """Return whether the task may not finish this step yet.

        If so, write the file `mark_of` beside the gate, by which a test sees that the task is held.
        """
        match = _HOLD.search(task.text)
        if match is None or self._gates is None:
            return False
        gate = self._gates / match[1]
        limit = int(match[2])
        if step < limit or not gate.exists():
            return False
        (self._gates / mark_of(task.text, os.getpid())).touch()
        return True


def mark_of(text: str, pid: int) -> str:
    """Return the name of the file that tells that the process `pid` holds an echo task.

    The name is NAME.PID.REST for the text `hold:NAME:K REST`.
    """
    head, _, rest = text.partition(" ")
    gate = head.split(":")[1]
    return f"{gate}.{pid}.{rest.strip()}"


def _gates_folder() -> Path | None:
    folder = os.environ.get(GATES_ENV)
    return Path(folder) if folder else None
