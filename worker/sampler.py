"""Choosing tokens: Gumbel-max in float64, with noise that is a hash of (seed, position, token id) and nothing else.

So a row's choice depends neither on its batch mates nor on the worker: it can only change where two tokens nearly tie.
Greedy is temperature 0. Gumbel-max: argmax(logits / T + g) with g = -log(-log(u)) draws from softmax(logits / T)
(Gumbel 1954; Maddison et al. 2014).
"""

from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from shared.errors import FleetError, WorkerFailed
from shared.messages import Sampling
from worker.noise import GOLDEN, MIX1, MIX2, position_key
from worker.sequence import Sampled, Sequence, StepResult


def sample(
    logits: Tensor, sequences: Rows[Sequence], eos_ids: frozenset[int], model: str
) -> list[StepResult | FleetError]:
    """The next token of each sequence by its row of `logits` [B, V]; WorkerFailed naming `model` where it has none."""
    samplings = [item.sampling for item in sequences if item.sampling is not None]
    chosen = choose(logits, samplings, [len(item.output_ids) for item in sequences])
    is_sound = torch.isfinite(logits).all(dim=-1).tolist()
    return [Sampled(token) if sound else broken(model) for token, sound in zip(chosen, is_sound, strict=True)]


def broken(model: str) -> WorkerFailed:
    """The failure of a sequence whose logits are not numbers."""
    return WorkerFailed(f"Logits of {model!r} are not finite: its weights are broken or overflow in this dtype.")


def choose(logits: Tensor, samplings: Rows[Sampling], positions: Rows[int]) -> list[int]:
    """One token id per row of `logits` [B, V]; `positions` counts the response tokens already there."""
    chosen = logits.argmax(dim=-1)
    drawn = [row for row, sampling in enumerate(samplings) if sampling.temperature > 0]
    if drawn:
        chosen[drawn] = _draw(logits[drawn].double(), [samplings[i] for i in drawn], [positions[i] for i in drawn])
    return [int(token) for token in chosen.tolist()]


def _draw(logits: Tensor, samplings: Rows[Sampling], positions: Rows[int]) -> Tensor:
    temperature = torch.tensor([item.temperature for item in samplings], dtype=torch.float64, device=logits.device)
    scaled = (logits - logits.amax(dim=-1, keepdim=True)) / temperature[:, None]
    if any(item.top_k or item.top_p < 1.0 for item in samplings):
        scaled = scaled.masked_fill(_cut(scaled, samplings), -torch.inf)
    keys = [position_key(item.seed, position) for item, position in zip(samplings, positions, strict=True)]
    return (scaled + gumbel_noise(keys, logits.shape[1], logits.device)).argmax(dim=-1)


def _cut(scaled: Tensor, samplings: Rows[Sampling]) -> Tensor:
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


def gumbel_noise(keys: Rows[int], size: int, device: torch.device) -> Tensor:
    """[len(keys), size] standard Gumbel draws; entry (b, v) depends on `keys[b]` and v alone."""
    start = torch.tensor([_signed(key) for key in keys], dtype=torch.int64, device=device)[:, None]
    tokens = torch.arange(1, size + 1, dtype=torch.int64, device=device)[None, :]
    bits = _mix_tensor(start + tokens * _signed(GOLDEN))
    uniform = (_shift_right(bits, 12).double() + 0.5) * 2.0**-52
    return -(-uniform.log()).log()


def _mix_tensor(value: Tensor) -> Tensor:
    value = (value ^ _shift_right(value, 30)) * _signed(MIX1)
    value = (value ^ _shift_right(value, 27)) * _signed(MIX2)
    return value ^ _shift_right(value, 31)


def _shift_right(value: Tensor, count: int) -> Tensor:
    """A logical shift: int64 tensors shift arithmetically."""
    return (value >> count) & ((1 << (64 - count)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
