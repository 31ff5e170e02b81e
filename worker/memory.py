"""What fits into a device's memory: weights before they are loaded, keys and values behind them.

On the CPU keys and values get a fixed budget. On a GPU they get a share of what the weights leave
free, below the cap of `max_gpu_memory_gb`, if there is one.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from worker.model_files import BYTES_OF, num_parameters
from worker.models.errors import ModelFormatError
from worker.runners.base import RunnerOptions


@dataclass(frozen=True)
class FreeMemory:
    """Bytes to be had; `source` names what limits them, `remedy` says what to do when they are too
    few."""

    num_bytes: int
    source: str
    remedy: str


def free_memory(device: torch.device, max_bytes: int | None) -> FreeMemory | None:
    """What this process may still allocate on a GPU: of what is free, and of `max_bytes`; None
    where neither limits."""
    remedy = (
        "Serve the weights in bfloat16, lower the context window, or serve the model in int8 "
        "on the CPU."
    )
    rooms = []
    if device.type == "cuda":
        rooms.append(
            FreeMemory(torch.cuda.mem_get_info(device)[0], f"the free memory of {device}", remedy)
        )
    if device.type != "cpu" and max_bytes is not None:
        used = (
            torch.cuda.memory_allocated(device)
            if device.type == "cuda"
            else torch.mps.current_allocated_memory()
        )
        rooms.append(FreeMemory(max_bytes - used, "max_gpu_memory_gb", remedy))
    return min(rooms, key=lambda room: room.num_bytes, default=None)


def check_weights_fit(options: RunnerOptions) -> None:
    """Refuse a model whose weights alone are too large for the device (D8), before any is loaded.

    Raises ModelFormatError. Says nothing of files whose sizes only loading would tell.
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
    """Refuse a model that turned out too large once loaded. Raises ModelFormatError."""
    room = free_memory(torch.device(options.device), options.max_device_bytes)
    if room is not None and room.num_bytes < 0:
        raise ModelFormatError(
            f"It needs {-room.num_bytes / 2**30:.1f} GB more than {room.source}. {room.remedy}"
        )


def kv_memory(options: RunnerOptions, device: torch.device) -> FreeMemory:
    """The budget of keys and values, asked for when the weights lie on `device`."""
    fixed = FreeMemory(options.kv_bytes, "kv_memory_mib", "Raise it or lower the context window.")
    left = free_memory(device, options.max_device_bytes)
    if left is None:
        return fixed
    if options.kv_fraction is not None:
        return FreeMemory(
            int(max(0, left.num_bytes) * options.kv_fraction),
            f"a share of {left.source}",
            left.remedy,
        )
    return min(
        fixed, replace(left, num_bytes=max(0, left.num_bytes)), key=lambda room: room.num_bytes
    )
