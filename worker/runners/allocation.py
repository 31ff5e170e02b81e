"""The seam where an allocator's error becomes `OutOfMemory`.

Torch has an error class for it on accelerators, and only a message on CPU.
"""

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
    """Wrap a runner's `step`: where torch finds no memory it gives back what it had allocated and
    raises OutOfMemory."""

    @wraps(step)
    def guarded(runner: Any, slices: Sequence[Slice]) -> list[StepResult | FleetError]:
        try:
            return step(runner, slices)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            problem = str(error).partition("\n")[0]

        # Outside the handler: while the error is being handled, its traceback keeps all that the
        # step had allocated alive, and there is nothing to give back.
        if torch.accelerator.is_available():
            torch.accelerator.empty_cache()
        raise OutOfMemory(problem)

    return guarded
