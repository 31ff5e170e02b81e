"""Keys and values in device memory, by layer slot and page. Knows shapes, not sequences."""

from dataclasses import dataclass

import torch
from torch import Tensor

from worker.native.operators import write_rows


@dataclass(frozen=True)
class KVShape:
    """Size of one token's entry: `num_slots` pairs of (`num_heads`, `head_dim`) keys and values."""

    num_slots: int
    num_heads: int
    head_dim: int

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        """Return the bytes of one token's keys and values in all slots."""
        return 2 * self.num_slots * self.num_heads * self.head_dim * dtype.itemsize


class KVStore:
    """Keys and values, each a tensor [num_slots, num_pages, page_size, num_heads, head_dim].

    A row is the index of a token, counted page by page. Rows start as zeros, and rows that are not
    finite must be cleared: a masked row counts zero times its value, and zero times NaN is NaN.
    """

    def __init__(
        self,
        shape: KVShape,
        num_pages: int,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        size = (shape.num_slots, num_pages, page_size, shape.num_heads, shape.head_dim)
        self.keys = torch.zeros(size, dtype=dtype, device=device)
        self.values = torch.zeros(size, dtype=dtype, device=device)

    @property
    def device(self) -> torch.device:
        return self.keys.device

    def write(self, slot: int, rows: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store keys and values [N, num_heads, head_dim] at `rows` [N]."""
        write_rows(self.keys, slot, rows, keys)
        write_rows(self.values, slot, rows, values)

    def pool(self, slot: int) -> tuple[Tensor, Tensor]:
        """Return all keys and values of a slot as they lie in memory.

        Each is a view [num_pages, page_size, num_heads, head_dim].
        """
        return self.keys[slot], self.values[slot]

    def clear(self, rows: Tensor) -> None:
        """Make `rows` [N] zero in every slot."""
        self.keys.flatten(1, 2)[:, rows] = 0
        self.values.flatten(1, 2)[:, rows] = 0

    def read(self, slot: int, pages: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values [B, P * page_size, num_heads, head_dim] of `pages` [B, P]."""
        flat = pages.flatten()
        size = (pages.shape[0], -1, *self.keys.shape[3:])
        keys = self.keys[slot].index_select(0, flat).view(size)
        values = self.values[slot].index_select(0, flat).view(size)
        return keys, values

    def copy_pages(self, sources: Tensor, targets: Tensor) -> None:
        """Copy the pages `sources` [N] to the pages `targets` [N] in every slot.

        All sources are read before any target is written.
        """
        self.keys[:, targets] = self.keys[:, sources]
        self.values[:, targets] = self.values[:, sources]
