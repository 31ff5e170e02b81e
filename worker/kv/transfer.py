"""Tensors to a device in one copy: a step is planned as many small ones, and each copy of its own
costs a round trip.

On CUDA the copy leaves from pinned memory and nothing waits for it: what follows on the same stream
comes after it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

_ALIGNMENT = 16

T = TypeVar("T")


def to_device(record: T, device: torch.device) -> T:
    """The dataclass with every tensor on `device` that it, a dataclass in it or a tuple of those
    holds; on CPU itself.

    All of them must be on the CPU; shapes and dtypes stay.
    """
    if device.type == "cpu":
        return record
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    _walk(record, note)
    there = iter(moved(found, device))
    changed: T = _walk(record, lambda _: next(there))
    return changed


def moved(tensors: list[Tensor], device: torch.device) -> list[Tensor]:
    """CPU tensors on `device`; in one copy where that saves round trips."""
    return (
        packed(tensors, device) if device.type == "cuda" else [item.to(device) for item in tensors]
    )


def packed(tensors: list[Tensor], device: torch.device) -> list[Tensor]:
    """Copies of CPU tensors on `device`, which lie behind each other in one buffer and went there
    in one copy."""
    parts = [item.contiguous().flatten().view(torch.uint8) for item in tensors]
    offsets = [0]
    for part in parts:
        offsets.append(-(-(offsets[-1] + part.numel()) // _ALIGNMENT) * _ALIGNMENT)
    host = torch.empty(offsets[-1], dtype=torch.uint8, pin_memory=device.type == "cuda")
    for part, offset in zip(parts, offsets, strict=False):
        host[offset : offset + part.numel()] = part
    there = host.to(device, non_blocking=True)
    return [
        there[offset : offset + part.numel()].view(item.dtype).view(item.shape)
        for item, part, offset in zip(tensors, parts, offsets, strict=False)
    ]


def _walk(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`value` with each tensor in it replaced by what `change` makes of it, in one order always."""
    if isinstance(value, Tensor):
        return change(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [item.name for item in dataclasses.fields(value) if item.init]
        return dataclasses.replace(
            value, **{name: _walk(getattr(value, name), change) for name in names}
        )
    if isinstance(value, tuple) and any(dataclasses.is_dataclass(item) for item in value):
        return tuple(_walk(item, change) for item in value)
    return value
