"""The place where an allocator's error becomes `OutOfMemory`."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch

from shared.errors import FleetError
from worker.engine.runner import OutOfMemory
from worker.engine.sequence import Slice, StepResult
from worker.models.errors import is_out_of_memory

Step = Callable[[Any, Sequence[Slice]], list[StepResult | FleetError]]


def tells_out_of_memory(step: Step) -> Step:
    """Wrap a runner's `step` so that it raises OutOfMemory where torch finds no memory.

    Before that, the memory that the step had allocated is returned to the device.
    """

    @wraps(step)
    def guarded(runner: Any, slices: Sequence[Slice]) -> list[StepResult | FleetError]:
        try:
            return step(runner, slices)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            problem = str(error).partition("\n")[0]

        # Outside the handler: inside it the error's traceback keeps the step's tensors alive, and
        # no memory could be returned.
        if torch.accelerator.is_available():
            torch.accelerator.empty_cache()
        raise OutOfMemory(problem)

    return guarded
