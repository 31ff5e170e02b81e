"""Keys and values in int8: the numbers of a head and, in the four bytes behind them, their scale.

The scale, in fp32, is the head's largest magnitude over 127. The head is divided by it and rounded
to whole numbers from -127 to 127, the nearest, and the even one of two. `kernels.c` does the same,
bit by bit.

Int8 has no NaN. A head that is not finite gets the scale NaN, so that all of it is read as NaN.
"""

import torch
from torch import Tensor

SCALE_BYTES = 4
_PEAK = 127


def quantized(x: Tensor) -> Tensor:
    """Return heads [..., head_dim] in int8: [..., head_dim + SCALE_BYTES]."""
    wide = x.float()
    # A head of zeros is not divided by zero.
    least = torch.finfo(torch.float32).tiny
    scale = (wide.abs().amax(-1, keepdim=True) / _PEAK).clamp_min(least)
    scale = scale.masked_fill(~scale.isfinite(), torch.nan)
    numbers = (wide / scale).nan_to_num(0.0).round().to(torch.int8)
    return torch.cat((numbers, scale.view(torch.int8)), dim=-1)


def dequantized(heads: Tensor, dtype: torch.dtype) -> Tensor:
    """Return int8 heads [..., head_dim + SCALE_BYTES] in `dtype`: [..., head_dim]."""
    numbers = heads[..., :-SCALE_BYTES]
    scale = heads[..., -SCALE_BYTES:].contiguous().view(torch.float32)
    return (numbers * scale).to(dtype)
