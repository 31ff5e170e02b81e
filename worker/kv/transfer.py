"""Tensors that go to a device in one copy.

A step is planned as many small tensors, and a copy of each would cost a round trip. On CUDA the
copy leaves from pinned memory, and the host does not wait for it: later kernels on the same stream
run after it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

_ALIGNMENT = 16

T = TypeVar("T")


def to_device(record: T, device: torch.device) -> T:
    """Return a copy of the dataclass with its tensors on `device`, or itself for the CPU.

    Tensors in dataclasses that it holds, and in tuples of dataclasses, are moved, too. All tensors
    must be on the CPU. Their shapes and dtypes stay.
    """
    if device.type == "cpu":
        return record

    tensors: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        tensors.append(tensor)
        return tensor

    # The first walk collects the tensors. The second walk, in the same order, puts the copies in.
    _walk(record, note)
    copies = iter(moved(tensors, device))
    changed: T = _walk(record, lambda _: next(copies))
    return changed


def moved(tensors: list[Tensor], device: torch.device) -> list[Tensor]:
    """Return CPU tensors on `device`, in one copy where that saves round trips."""
    if device.type == "cuda":
        return packed(tensors, device)
    return [tensor.to(device) for tensor in tensors]


def packed(tensors: list[Tensor], device: torch.device) -> list[Tensor]:
    """Return copies of CPU tensors on `device`.

    The copies lie one after the other in one buffer, which is copied whole.
    """
    parts = []
    offsets = []
    size = 0
    for tensor in tensors:
        part = tensor.contiguous().flatten().view(torch.uint8)
        parts.append(part)
        offsets.append(size)
        # Each tensor begins at a multiple of the alignment, where a tensor of any dtype may begin.
        size = -(-(size + part.numel()) // _ALIGNMENT) * _ALIGNMENT

    host = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
    for part, offset in zip(parts, offsets, strict=True):
        host[offset : offset + part.numel()] = part
    buffer = host.to(device, non_blocking=True)

    copies = []
    for tensor, part, offset in zip(tensors, parts, offsets, strict=True):
        copy = buffer[offset : offset + part.numel()]
        copies.append(copy.view(tensor.dtype).view(tensor.shape))
    return copies


def _walk(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return `value` with each tensor in it replaced by `change(tensor)`, in a fixed order."""
    if isinstance(value, Tensor):
        return change(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changes = {}
        for member in dataclasses.fields(value):
            if member.init:
                changes[member.name] = _walk(getattr(value, member.name), change)
        return dataclasses.replace(value, **changes)
    if isinstance(value, tuple) and any(dataclasses.is_dataclass(member) for member in value):
        return tuple(_walk(member, change) for member in value)
    return value
