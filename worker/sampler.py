"""Choosing tokens: Gumbel-max in float64, with noise that is a hash of (seed, position, token id) and nothing else.

So a row's choice depends neither on its batch mates nor on the worker: it can only change where two tokens nearly tie.
Greedy is temperature 0. Gumbel-max: argmax(logits / T + g) with g = -log(-log(u)) draws from softmax(logits / T)
(Gumbel 1954; Maddison et al. 2014). The hash is the finaliser of splitmix64 (Steele, Lea and Flood 2014).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from shared.messages import Sampling

_MASK = (1 << 64) - 1
_GOLDEN, _MIX1, _MIX2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def sample(logits: Tensor, samplings: Sequence[Sampling], positions: Sequence[int]) -> list[int]:
    """One token id per row of `logits` [B, V]; `positions` counts the response tokens already there."""
    chosen = logits.argmax(dim=-1)
    drawn = [row for row, sampling in enumerate(samplings) if sampling.temperature > 0]
    if drawn:
        chosen[drawn] = _draw(logits[drawn].double(), [samplings[i] for i in drawn], [positions[i] for i in drawn])
    return [int(token) for token in chosen.tolist()]


def _draw(logits: Tensor, samplings: Sequence[Sampling], positions: Sequence[int]) -> Tensor:
    temperature = torch.tensor([item.temperature for item in samplings], dtype=torch.float64, device=logits.device)
    scaled = (logits - logits.amax(dim=-1, keepdim=True)) / temperature[:, None]
    if any(item.top_k or item.top_p < 1.0 for item in samplings):
        scaled = scaled.masked_fill(_cut(scaled, samplings), -torch.inf)
    keys = [_key(item.seed, position) for item, position in zip(samplings, positions, strict=True)]
    return (scaled + gumbel_noise(keys, logits.shape[1], logits.device)).argmax(dim=-1)


def _cut(scaled: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    """True where top-k or top-p forbids a token. Top-p keeps the smallest set of likeliest tokens that reaches p."""
    size = scaled.shape[1]
    order = scaled.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(size, device=scaled.device)[None, :]
    top_k = torch.tensor([item.top_k or size for item in samplings], device=scaled.device)[:, None]
    top_p = torch.tensor([item.top_p for item in samplings], dtype=torch.float64, device=scaled.device)[:, None]
    kept = order.values.masked_fill(rank >= top_k, -torch.inf).softmax(dim=-1)
    before = kept.cumsum(dim=-1) - kept
    forbidden = (rank >= top_k) | ((before >= top_p) & (rank > 0))
    return torch.zeros_like(forbidden).scatter(1, order.indices, forbidden)


def gumbel_noise(keys: Sequence[int], size: int, device: torch.device) -> Tensor:
    """[len(keys), size] standard Gumbel draws; entry (b, v) depends on `keys[b]` and v alone."""
    start = torch.tensor([_signed(key) for key in keys], dtype=torch.int64, device=device)[:, None]
    tokens = torch.arange(1, size + 1, dtype=torch.int64, device=device)[None, :]
    bits = _mix_tensor(start + tokens * _signed(_GOLDEN))
    uniform = (_shift_right(bits, 12).double() + 0.5) * 2.0**-52
    return -(-uniform.log()).log()


def _key(seed: int, position: int) -> int:
    return _mix((_mix((seed + _GOLDEN) & _MASK) + (position + 1) * _GOLDEN) & _MASK)


def _mix(value: int) -> int:
    value = ((value ^ (value >> 30)) * _MIX1) & _MASK
    value = ((value ^ (value >> 27)) * _MIX2) & _MASK
    return value ^ (value >> 31)


def _mix_tensor(value: Tensor) -> Tensor:
    value = (value ^ _shift_right(value, 30)) * _signed(_MIX1)
    value = (value ^ _shift_right(value, 27)) * _signed(_MIX2)
    return value ^ _shift_right(value, 31)


def _shift_right(value: Tensor, count: int) -> Tensor:
    """A logical shift: int64 tensors shift arithmetically."""
    return (value >> count) & ((1 << (64 - count)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
