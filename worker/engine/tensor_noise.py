"""Random numbers in tensors. Each is a function of a key and of its own index, and of nothing else.

So a row's numbers depend neither on its batch nor on the worker. `worker.engine.noise` makes keys.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from worker.engine.noise import GOLDEN, MIX1, MIX2, signed


def gumbel_noise(keys: Sequence[int], size: int, device: torch.device) -> Tensor:
    """Return standard Gumbel draws [len(keys), size] in fp64.

    The entry (b, v) depends on `keys[b]` and v alone.
    """
    return -(-_uniform(keys, size, device).log()).log()


def normal_noise(key: int, size: int, device: torch.device) -> Tensor:
    """Return standard normal draws [size] in fp64, by the method of Box and Muller (1958)."""
    radii, angles = _uniform([key], 2 * size, device)[0].view(2, size)
    noise: Tensor = (-2.0 * radii.log()).sqrt() * (2.0 * math.pi * angles).cos()
    return noise


def _uniform(keys: Sequence[int], size: int, device: torch.device) -> Tensor:
    """Return draws [len(keys), size] in fp64, between 0 and 1 and never either."""
    signed_keys = [signed(key) for key in keys]
    start = torch.tensor(signed_keys, dtype=torch.int64, device=device)[:, None]
    indices = torch.arange(1, size + 1, dtype=torch.int64, device=device)[None, :]
    bits = _mix_tensor(start + indices * signed(GOLDEN))
    # The half keeps the draw off 0 and 1, whose logarithms are not finite.
    return (_shift_right(bits, 12).double() + 0.5) * 2.0**-52


def _mix_tensor(value: Tensor) -> Tensor:
    """Return `noise.mix` of each int64 entry."""
    value = (value ^ _shift_right(value, 30)) * signed(MIX1)
    value = (value ^ _shift_right(value, 27)) * signed(MIX2)
    return value ^ _shift_right(value, 31)


def _shift_right(value: Tensor, count: int) -> Tensor:
    """Shift int64 entries to the right with zeros coming in: torch's own shift copies the sign."""
    return (value >> count) & ((1 << (64 - count)) - 1)
