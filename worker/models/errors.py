"""The one error of the checkpoint loaders.

It knows nothing of jobs or HTTP. The code that loads a model maps it.
"""

_MEMORY_MESSAGES = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


class ModelFormatError(ValueError):
    """Error of files that are not a whole, consistent checkpoint of the expected format.

    The message says why, and what to do.
    """


class ModelAway(ModelFormatError):
    """Error of a model that an engine elsewhere serves, which does not answer now."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocator found no memory."""
    if isinstance(error, MemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    # On accelerators torch raises a subclass of RuntimeError, on a CPU a plain RuntimeError that
    # only its message tells from others.
    message = str(error)
    return any(text in message for text in _MEMORY_MESSAGES)
