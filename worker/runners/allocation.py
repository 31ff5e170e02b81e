"""The place where an allocator's error becomes `OutOfMemory`."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

from worker.engine.runner import OutOfMemory
from worker.models.errors import is_out_of_memory

Arguments = ParamSpec("Arguments")
Results = TypeVar("Results")


def tells_out_of_memory(step: Callable[Arguments, Results]) -> Callable[Arguments, Results]:
    """Wrap a runner's `step` or `run` so that it raises OutOfMemory where torch finds no memory.

    Before that, the memory that the step had allocated is returned to the device.
    """

    @wraps(step)
    def guarded(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Results:
        try:
            return step(*args, **kwargs)
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
