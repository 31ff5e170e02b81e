"""Keys and values in device memory, by layer slot and page. Knows shapes, not sequences.

They may be stored in a smaller dtype than a network computes them in. Then they are rounded when
they are written, and no token may attend to them as they were before.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from worker.native.operators import write_rows
from worker.native.quantized import SCALE_BYTES, dequantized, quantized


@dataclass(frozen=True)
class KVShape:
    """Size of one token's entry: `num_slots` pairs of (`num_heads`, `head_dim`) keys and values."""

    num_slots: int
    num_heads: int
    head_dim: int

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        """Return the bytes of one token's keys and values in all slots, stored in `dtype`."""
        return 2 * self.num_slots * self.num_heads * self.head_width(dtype) * dtype.itemsize

    def head_width(self, dtype: torch.dtype) -> int:
        """Return the number of elements of a stored head. In int8 its scale is among them."""
        if dtype == torch.int8:
            return self.head_dim + SCALE_BYTES
        return self.head_dim


class KVStore:
    """Keys and values, each a tensor [num_slots, num_pages, page_size, num_heads, head_dim].

    In int8 a head is wider by its scale (`worker/native/quantized.py`). A row is the index of a
    token, counted page by page. Rows start as zeros, and rows that are not finite must be cleared:
    a masked row counts zero times its value, and zero times NaN is NaN.
    """

    def __init__(
        self,
        shape: KVShape,
        num_pages: int,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        width = shape.head_width(dtype)
        size = (shape.num_slots, num_pages, page_size, shape.num_heads, width)
        self.keys = torch.zeros(size, dtype=dtype, device=device)
        self.values = torch.zeros(size, dtype=dtype, device=device)

    @property
    def device(self) -> torch.device:
        return self.keys.device

    def write(self, slot: int, rows: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store keys and values [N, num_heads, head_dim] at `rows` [N], rounded if need be."""
        write_rows(self.keys, slot, rows, keys)
        write_rows(self.values, slot, rows, values)

    def pool(self, slot: int) -> tuple[Tensor, Tensor]:
        """Return all keys and values of a slot as they lie in memory.

        Each is a view [num_pages, page_size, num_heads, head_dim], in the dtype of the store.
        """
        return self.keys[slot], self.values[slot]

    def clear(self, rows: Tensor) -> None:
        """Make `rows` [N] zero in every slot."""
        self.keys.flatten(1, 2)[:, rows] = 0
        self.values.flatten(1, 2)[:, rows] = 0

    def read(self, slot: int, pages: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return keys and values [B, P * page_size, num_heads, head_dim] of `pages` [B, P].

        They are converted to `dtype`.
        """
        flat = pages.flatten()
        size = (pages.shape[0], -1, *self.keys.shape[3:])
        keys = self.keys[slot].index_select(0, flat).view(size)
        values = self.values[slot].index_select(0, flat).view(size)
        return _converted(keys, dtype), _converted(values, dtype)

    def stored(self, x: Tensor) -> Tensor:
        """Return keys or values [..., num_heads, head_dim] as they lie in the store, contiguous."""
        if self.keys.dtype == torch.int8:
            return quantized(x)
        return x.to(self.keys.dtype).contiguous()

    def rounded(self, x: Tensor) -> Tensor:
        """Return keys or values [..., num_heads, head_dim] as they will be read from the store."""
        if self.keys.dtype == torch.int8:
            return dequantized(quantized(x), x.dtype)
        return x.to(self.keys.dtype).to(x.dtype)

    def copy_pages(self, sources: Tensor, targets: Tensor) -> None:
        """Copy the pages `sources` [N] to the pages `targets` [N] in every slot.

        All sources are read before any target is written.
        """
        self.keys[:, targets] = self.keys[:, sources]
        self.values[:, targets] = self.values[:, sources]


def _converted(stored: Tensor, dtype: torch.dtype) -> Tensor:
    """Return stored keys or values [..., num_heads, head_dim] in `dtype`."""
    if stored.dtype == torch.int8:
        return dequantized(stored, dtype)
    return stored.to(dtype)
