"""Choosing tokens: Gumbel-max in float64, with noise that is a hash of (seed, position, token id)
and nothing else.

So a row's choice depends neither on its batch mates nor on the worker: it can only change where two
tokens nearly tie. Greedy is temperature 0. Gumbel-max: argmax(logits / T + g) with g =
-log(-log(u)) draws from softmax(logits / T) (Gumbel 1954; Maddison et al. 2014).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from shared.errors import FleetError, InvalidRequest, WorkerFailed
from shared.messages import Sampling
from worker.logits import adjust, token_logprobs
from worker.noise import GOLDEN, MIX1, MIX2, position_key
from worker.sequence import Sampled, StepResult, TokenSequence


def sample(
    logits: Tensor, sequences: Sequence[TokenSequence], eos_ids: frozenset[int], model: str
) -> list[StepResult | FleetError]:
    """The next token of each sequence by its row of `logits` [B, V]; a FleetError for a row that
    can have none.

    InvalidRequest for a bias on no token of the vocabulary; WorkerFailed naming `model` for logits
    that are no numbers.
    """
    samplings = [item.sampling for item in sequences if item.sampling is not None]
    chosen = choose(
        adjust(logits, sequences, eos_ids), samplings, [len(item.output_ids) for item in sequences]
    )
    logprobs = token_logprobs(logits, chosen, samplings)
    results: list[StepResult | FleetError] = list(map(Sampled, chosen, logprobs))
    for row, is_sound in enumerate(torch.isfinite(logits).all(dim=-1).tolist()):
        if not is_sound:
            results[row] = broken(model)
        elif any(token >= logits.shape[1] for token, _ in samplings[row].logit_bias):
            expected = f"logit_bias: token ids from 0 to {logits.shape[1] - 1} are expected."
            results[row] = InvalidRequest(expected, field="logit_bias")
    return results


def broken(model: str) -> WorkerFailed:
    """The failure of a sequence whose logits are not numbers."""
    return WorkerFailed(
        f"Logits of {model!r} are not finite: its weights are broken or overflow in this dtype."
    )


def choose(logits: Tensor, samplings: Sequence[Sampling], positions: Sequence[int]) -> list[int]:
    """One token id per row of `logits` [B, V]; `positions` counts the response tokens already
    there."""
    chosen = logits.argmax(dim=-1)
    drawn = [row for row, sampling in enumerate(samplings) if sampling.temperature > 0]
    if drawn:
        chosen[drawn] = _draw(
            logits[drawn].double(), [samplings[i] for i in drawn], [positions[i] for i in drawn]
        )
    return [int(token) for token in chosen.tolist()]


def _draw(logits: Tensor, samplings: Sequence[Sampling], positions: Sequence[int]) -> Tensor:
    temperature = torch.tensor(
        [item.temperature for item in samplings], dtype=torch.float64, device=logits.device
    )
    scaled = (logits - logits.amax(dim=-1, keepdim=True)) / temperature[:, None]
    scaled = keep_allowed(scaled, samplings)
    keys = [
        position_key(item.seed, position)
        for item, position in zip(samplings, positions, strict=True)
    ]
    return (scaled + gumbel_noise(keys, logits.shape[1], logits.device)).argmax(dim=-1)


def keep_allowed(scaled: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    """`scaled` [B, V], whose rows have their maximum at 0, with the tokens that top-k, top-p or
    min-p forbid at -inf.

    Top-p counts the mass of what top-k leaves; min-p forbids what is less likely than that share of
    the likeliest.
    """
    cutting = [row for row, item in enumerate(samplings) if item.top_k or item.top_p < 1.0]
    flooring = [row for row, item in enumerate(samplings) if item.min_p]
    allowed = scaled.clone() if cutting or flooring else scaled
    if cutting:
        forbidden = _cut(scaled[cutting], [samplings[row] for row in cutting])
        allowed[cutting] = allowed[cutting].masked_fill(forbidden, -torch.inf)
    if flooring:
        floors = [math.log(samplings[row].min_p) for row in flooring]
        floor = torch.tensor(floors, dtype=scaled.dtype, device=scaled.device)[:, None]
        allowed[flooring] = allowed[flooring].masked_fill(scaled[flooring] < floor, -torch.inf)
    return allowed


def _cut(scaled: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    """True where top-k or top-p forbids a token. Top-p keeps the smallest set of likeliest tokens
    that reaches p."""
    size = scaled.shape[1]
    order = scaled.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(size, device=scaled.device)[None, :]
    top_k = torch.tensor([item.top_k or size for item in samplings], device=scaled.device)[:, None]
    top_p = torch.tensor(
        [item.top_p for item in samplings], dtype=torch.float64, device=scaled.device
    )[:, None]
    kept = order.values.masked_fill(rank >= top_k, -torch.inf).softmax(dim=-1)
    before = kept.cumsum(dim=-1) - kept
    forbidden = (rank >= top_k) | (
        (before >= top_p) & (rank > 0) & (top_p < 1.0)
    )  # rounding may let mass reach 1
    return torch.zeros_like(forbidden).scatter(1, order.indices, forbidden)


def gumbel_noise(keys: Sequence[int], size: int, device: torch.device) -> Tensor:
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
