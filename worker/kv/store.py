"""Keys and values in device memory, by layer slot and token row. Knows shapes, not sequences."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class KVShape:
    """What one token costs: `num_slots` pairs of (`num_heads`, `head_dim`) keys and values."""

    num_slots: int
    num_heads: int
    head_dim: int

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        return 2 * self.num_slots * self.num_heads * self.head_dim * dtype.itemsize


class KVStore:
    """Two tensors [num_slots, num_rows, num_heads, head_dim]. Rows start as zeros: a masked row must be finite."""

    def __init__(self, shape: KVShape, num_rows: int, dtype: torch.dtype, device: torch.device) -> None:
        size = (shape.num_slots, num_rows, shape.num_heads, shape.head_dim)
        self._keys = torch.zeros(size, dtype=dtype, device=device)
        self._values = torch.zeros(size, dtype=dtype, device=device)

    def write(self, slot: int, rows: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store keys and values [N, num_heads, head_dim] at `rows` [N]."""
        self._keys[slot].index_copy_(0, rows, keys)
        self._values[slot].index_copy_(0, rows, values)

    def read(self, slot: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, L, num_heads, head_dim] at `rows` [B, L]."""
        flat, size = rows.flatten(), (*rows.shape, *self._keys.shape[2:])
        return self._keys[slot].index_select(0, flat).view(size), self._values[slot].index_select(0, flat).view(size)
