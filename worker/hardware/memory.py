"""The memory of a device: whether weights fit before they are loaded, and the bytes of keys and
values behind them.

On the CPU keys and values get a fixed budget. On a GPU they get a share of what the weights leave
free, below the cap of `max_gpu_memory_gb`, if there is one.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from worker.engine.runner import RunnerOptions
from worker.models.errors import ModelFormatError
from worker.models.model_files import BYTES_OF, num_parameters


@dataclass(frozen=True)
class FreeMemory:
    """The bytes that can be had. `source` names their limit, and `remedy` says what to do when they
    are too few."""

    num_bytes: int
    source: str
    remedy: str


def free_memory(device: torch.device, max_bytes: int | None) -> FreeMemory | None:
    """Return the memory that this process may still allocate on a GPU: the lesser of what is free
    and what is left of `max_bytes`. None where neither limits it."""
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
    """Refuse a model whose weights alone are too large for the device, before any is loaded.

    Raise ModelFormatError. Files whose sizes only loading would tell pass.
    """
    room = free_memory(torch.device(options.device), options.max_device_bytes)
    count = num_parameters(Path(options.path))
    if room is None or count is None:
        return
    need = count * BYTES_OF[options.dtype]
    if need > room.num_bytes:
        smaller = "Serve them in bfloat16, or serve" if options.dtype == "float32" else "Serve"
        raise ModelFormatError(
            f"Its weights need {need / 2**30:.1f} GB in {options.dtype}; {room.source} allows "
            f"{room.num_bytes / 2**30:.1f} GB. {smaller} a smaller model, or this one in int8 on "
            "the CPU."
        )


def check_below_cap(options: RunnerOptions) -> None:
    """Refuse a model that turned out too large once loaded. Raise ModelFormatError."""
    room = free_memory(torch.device(options.device), options.max_device_bytes)
    if room is not None and room.num_bytes < 0:
        raise ModelFormatError(
            f"It needs {-room.num_bytes / 2**30:.1f} GB more than {room.source}. {room.remedy}"
        )


def kv_memory(options: RunnerOptions, device: torch.device) -> FreeMemory:
    """Return the budget of keys and values. To be called when the weights lie on `device`."""
    fixed = FreeMemory(
        options.kv_bytes, "kv_memory_mib", remedy="Raise it or lower the context window."
    )
    left = free_memory(device, options.max_device_bytes)
    if left is None:
        return fixed
    num_left = max(0, left.num_bytes)
    if options.kv_fraction is not None:
        share = int(num_left * options.kv_fraction)
        return FreeMemory(share, f"a share of {left.source}", remedy=left.remedy)
    if num_left < fixed.num_bytes:
        return replace(left, num_bytes=num_left)
    return fixed
