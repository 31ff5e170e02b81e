"""The echo runner with a rig: it can be slow, held at an exact token, and made to crash its process.

A prompt says where: `hold:NAME:K` yields nothing beyond K tokens (or K scores) while the file NAME exists in the folder
that AIOS_CHAOS_GATES names (a gate that is shut); `poison` kills the process with SIGKILL. AIOS_CHAOS_STEP_S is how
long each step takes. The n-th choice begins n characters later than the first, so that they can be told apart.
"""

import os
import re
import signal
import time
from collections.abc import Sequence as Rows
from dataclasses import replace
from pathlib import Path

from shared.errors import FleetError
from worker.runners.base import RunnerOptions
from worker.runners.echo import Echo
from worker.sequence import Sampled, Sequence, Slice, StepResult

GATES_ENV, STEP_ENV = "AIOS_CHAOS_GATES", "AIOS_CHAOS_STEP_S"
POISON = "poison"

_HOLD = re.compile(r"hold:(\w+):(\d+)")
_HELD_STEP_S = 0.005


class RiggedEcho(Echo):
    """A held sequence stays where it is and the others go on, so that any number of jobs reach their places."""

    def __init__(self, options: RunnerOptions) -> None:
        super().__init__(options)
        self.spec = replace(self.spec, step_tokens=options.step_tokens)  # a job that is held must not use up the step
        gates = os.environ.get(GATES_ENV)
        self._gates = Path(gates) if gates else None
        self._step_s = float(os.environ.get(STEP_ENV, "0"))
        self._prompts: dict[Sequence, str] = {}

    def step(self, slices: Rows[Slice]) -> list[StepResult | FleetError]:
        shut = {file.name for file in self._gates.iterdir()} if self._gates is not None else set()
        is_held = [self._is_held(part, shut) for part in slices]
        if self._step_s or all(is_held):
            time.sleep(max(self._step_s, _HELD_STEP_S if all(is_held) else 0.0))
        return [None if held else self._compute(part) for part, held in zip(slices, is_held, strict=True)]

    def _compute(self, part: Slice) -> StepResult | FleetError:
        [result] = super().step([part])
        if not isinstance(result, Sampled) or part.sequence.choice == 0:
            return result
        prompt, said = part.sequence.encoded.prompt_ids, len(part.sequence.output_ids)
        return replace(result, token=prompt[(said + part.sequence.choice) % len(prompt)])

    def release(self, sequence: Sequence) -> None:
        self._prompts.pop(sequence, None)

    def _is_held(self, part: Slice, shut: set[str]) -> bool:
        """Whether the slice goes beyond a gate that is shut. A mark beside it, NAME.KEY.CHOICE, tells that it came."""
        prompt = self._prompt(part.sequence)
        if POISON in prompt:
            os.kill(os.getpid(), signal.SIGKILL)
        found = _HOLD.search(prompt)
        if found is None or self._gates is None or found[1] not in shut:
            return False
        scores, said = len(part.sequence.scores) + part.num_tails, len(part.sequence.output_ids) + 1
        if (scores if part.sequence.is_scoring else said) <= int(found[2]):
            return False
        (self._gates / f"{found[1]}.{part.sequence.key}.{part.sequence.choice}").touch()
        return True

    def _prompt(self, sequence: Sequence) -> str:
        if sequence not in self._prompts:
            self._prompts[sequence] = self.decode(sequence.encoded.prompt_ids)
        return self._prompts[sequence]
