"""Where an allocator's complaint becomes `OutOfMemory`: torch has a class for it on accelerators, a
sentence on CPU.

Python keeps what a failed step had allocated alive for as long as its error is being handled. So
the error is let go first; only then is there memory to give back, and to try again with.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch

from shared.errors import FleetError
from worker.models.errors import is_out_of_memory
from worker.runners.base import OutOfMemory
from worker.sequence import Slice, StepResult

Step = Callable[[Any, Sequence[Slice]], list[StepResult | FleetError]]


def tells_out_of_memory(step: Step) -> Step:
    """A runner's `step` that raises OutOfMemory, with all it had allocated given back, where torch
    finds no memory."""

    @wraps(step)
    def guarded(runner: Any, slices: Sequence[Slice]) -> list[StepResult | FleetError]:
        try:
            return step(runner, slices)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            problem = str(error).partition("\n")[0]
        if torch.accelerator.is_available():
            torch.accelerator.empty_cache()
        raise OutOfMemory(problem)

    return guarded
