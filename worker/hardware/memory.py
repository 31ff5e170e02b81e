"""The memory of a device: checks that weights fit, and the budget of keys and values.

Weights are checked before they are loaded. On the CPU keys and values get a fixed budget. On a GPU
they get a share of the memory that the weights leave free, below the limit `max_gpu_memory_gb`, if
that is set.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from worker.engine.runner import RunnerOptions
from worker.models.errors import ModelFormatError
from worker.models.model_files import BYTES_OF, num_parameters


@dataclass(frozen=True)
class FreeMemory:
    """The bytes that may be allocated.

    `source` names what limits them, and `remedy` says what to do when they are too few.
    """

    num_bytes: int
    source: str
    remedy: str


def free_memory(device: torch.device, max_bytes: int | None) -> FreeMemory | None:
    """Return the memory that this process may still allocate on a GPU.

    It is the lesser of the free memory and the rest of `max_bytes`. Return None where neither is a
    limit.
    """
    remedy = (
        "Serve the weights in bfloat16, lower the context window, or serve the model in int8 "
        "on the CPU."
    )
    limits: list[FreeMemory] = []
    if device.type == "cuda":
        num_free, _ = torch.cuda.mem_get_info(device)
        limits.append(FreeMemory(num_free, f"the free memory of {device}", remedy=remedy))
    if device.type != "cpu" and max_bytes is not None:
        if device.type == "cuda":
            num_used = torch.cuda.memory_allocated(device)
        else:
            num_used = torch.mps.current_allocated_memory()
        limits.append(FreeMemory(max_bytes - num_used, "max_gpu_memory_gb", remedy=remedy))
    return min(limits, key=lambda room: room.num_bytes, default=None)


def check_weights_fit(options: RunnerOptions) -> None:
    """Raise ModelFormatError for a model whose weights alone are too large for the device.

    Call this before any weight is loaded. Models whose size only loading would tell are accepted.
    """
    room = free_memory(torch.device(options.device), options.max_device_bytes)
    count = num_parameters(Path(options.path))
    if room is None or count is None:
        return
    num_bytes = count * BYTES_OF[options.dtype]
    if num_bytes > room.num_bytes:
        smaller = "Serve them in bfloat16, or serve" if options.dtype == "float32" else "Serve"
        raise ModelFormatError(
            f"Its weights need {num_bytes / 2**30:.1f} GB in {options.dtype}; {room.source} allows "
            f"{room.num_bytes / 2**30:.1f} GB. {smaller} a smaller model, or this one in int8 on "
            "the CPU."
        )


def check_below_cap(options: RunnerOptions) -> None:
    """Raise ModelFormatError for a loaded model that exceeds the limit of the device's memory."""
    room = free_memory(torch.device(options.device), options.max_device_bytes)
    if room is not None and room.num_bytes < 0:
        raise ModelFormatError(
            f"It needs {-room.num_bytes / 2**30:.1f} GB more than {room.source}. {room.remedy}"
        )


def kv_memory(options: RunnerOptions, device: torch.device) -> FreeMemory:
    """Return the budget of keys and values. Call this when the weights are on `device`."""
    remedy = "Raise it or lower the context window."
    if device.type == "cpu":
        remedy = "Raise it, lower the context window, or store fewer bits (kv_dtype)."
    fixed = FreeMemory(options.kv_bytes, "kv_memory_mib", remedy=remedy)
    free = free_memory(device, options.max_device_bytes)
    if free is None:
        return fixed
    num_free = max(0, free.num_bytes)
    if options.kv_fraction is not None:
        share = int(num_free * options.kv_fraction)
        return FreeMemory(share, f"a share of {free.source}", remedy=free.remedy)
    if num_free < fixed.num_bytes:
        return replace(free, num_bytes=num_free)
    return fixed
