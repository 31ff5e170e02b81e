"""The one error of the checkpoint loaders. It knows nothing of jobs or HTTP; whoever loads a model
maps it."""

_MEMORY_COMPLAINTS = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


class ModelFormatError(ValueError):
    """The files at a path are not a whole, consistent checkpoint of the format asked for; the
    message says why."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator complains. Torch has a class for it on accelerators and only words on a
    CPU."""
    if isinstance(error, MemoryError):
        return True
    complains = any(complaint in str(error) for complaint in _MEMORY_COMPLAINTS)
    return isinstance(error, RuntimeError) and complains
