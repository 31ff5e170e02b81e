"""The choice of tokens: Gumbel-max in float64, with noise that hashes (seed, position, token id).

The noise depends on nothing else. So a row's choice depends neither on the other rows of its batch
nor on the worker: it can only change where two tokens nearly tie. Greedy is temperature 0.

Gumbel-max: argmax(logits / T + g) with g = -log(-log(u)) draws from softmax(logits / T)
(Gumbel 1954; Maddison et al. 2014).

On a CPU a kernel of `worker.native` chooses. It bounds the noise of each token, and computes it, in
fp64, only for the few that may have the largest sum. So it chooses what is chosen here.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from shared.errors import FleetError, InvalidRequest, WorkerFailed
from shared.messages import Sampling
from worker.engine.logits import adjust, token_logprobs
from worker.engine.noise import position_key, signed
from worker.engine.sequence import Sampled, TokenSequence
from worker.engine.tensor_noise import gumbel_noise
from worker.native.operators import all_finite, can_choose, choose_tokens


def sample(
    logits: Tensor, sequences: Sequence[TokenSequence], eos_ids: frozenset[int], model: str
) -> list[Sampled | FleetError]:
    """Return the next token of each sequence by its row of `logits` [B, V].

    A row for which no token can be chosen gets a FleetError instead. It is InvalidRequest for a
    bias on an id outside the vocabulary, and WorkerFailed, which names `model`, for logits that are
    not finite.
    """
    samplings = _samplings(sequences)
    # The draw sees penalties, bias and withheld ends; log-probabilities are the model's own.
    chosen = draw(logits, sequences, eos_ids)
    logprobs = token_logprobs(logits, chosen, samplings)

    vocab_size = logits.shape[1]
    results: list[Sampled | FleetError] = []
    for row, is_finite in enumerate(all_finite(logits).tolist()):
        if not is_finite:
            results.append(broken(model))
        elif any(token >= vocab_size for token, _ in samplings[row].logit_bias):
            problem = f"logit_bias: token ids from 0 to {vocab_size - 1} are expected."
            results.append(InvalidRequest(problem, field="logit_bias"))
        else:
            results.append(Sampled(chosen[row], logprobs[row]))
    return results


def draw(logits: Tensor, sequences: Sequence[TokenSequence], eos_ids: frozenset[int]) -> list[int]:
    """Return the id that is next in each sequence by its row of `logits` [B, V].

    It is any id for a row that is not finite.
    """
    positions = [len(sequence.output_ids) for sequence in sequences]
    return choose(adjust(logits, sequences, eos_ids), _samplings(sequences), positions)


def _samplings(sequences: Sequence[TokenSequence]) -> list[Sampling]:
    samplings: list[Sampling] = []
    for sequence in sequences:
        if sequence.sampling is not None:
            samplings.append(sequence.sampling)
    return samplings


def broken(model: str) -> WorkerFailed:
    """Return the failure of a sequence whose logits, or states, are not finite."""
    return WorkerFailed(
        f"Logits of {model!r} are not finite: its weights are broken or overflow in this dtype."
    )


def choose(logits: Tensor, samplings: Sequence[Sampling], positions: Sequence[int]) -> list[int]:
    """Return one token id per row of `logits` [B, V].

    `positions` counts the response tokens that each row has already.
    """
    if can_choose(logits):
        return _choose_in_native(logits, samplings, positions)
    chosen = logits.argmax(dim=-1)
    drawn: list[int] = []
    drawn_samplings: list[Sampling] = []
    keys: list[int] = []
    for row, sampling in enumerate(samplings):
        if sampling.temperature > 0:
            drawn.append(row)
            drawn_samplings.append(sampling)
            keys.append(position_key(sampling.seed, positions[row]))
    if drawn:
        chosen[drawn] = _draw(logits[drawn].double(), drawn_samplings, keys)
    return [int(token) for token in chosen.tolist()]


def _choose_in_native(
    logits: Tensor, samplings: Sequence[Sampling], positions: Sequence[int]
) -> list[int]:
    """Choose as `choose` does, by the kernel."""
    keys = []
    for sampling, position in zip(samplings, positions, strict=True):
        keys.append(signed(position_key(sampling.seed, position)))
    chosen = choose_tokens(
        logits,
        temperatures=_doubles([sampling.temperature for sampling in samplings]),
        top_ks=_int64s([sampling.top_k or 0 for sampling in samplings]),
        top_ps=_doubles([sampling.top_p for sampling in samplings]),
        min_ps=_doubles([sampling.min_p for sampling in samplings]),
        keys=_int64s(keys),
    )
    return [int(token) for token in chosen.tolist()]


def _doubles(values: list[float]) -> Tensor:
    return torch.from_numpy(np.array(values, dtype=np.float64))


def _int64s(values: list[int]) -> Tensor:
    return torch.from_numpy(np.array(values, dtype=np.int64))


def _draw(logits: Tensor, samplings: Sequence[Sampling], keys: Sequence[int]) -> Tensor:
    temperatures = [sampling.temperature for sampling in samplings]
    temperature = torch.tensor(temperatures, dtype=torch.float64, device=logits.device)
    scaled = (logits - logits.amax(dim=-1, keepdim=True)) / temperature[:, None]
    scaled = keep_allowed(scaled, samplings)
    return (scaled + gumbel_noise(keys, logits.shape[1], logits.device)).argmax(dim=-1)


def keep_allowed(scaled: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    """Return `scaled` [B, V] with the tokens that top-k, top-p or min-p forbid at -inf.

    The maximum of each row of `scaled` is 0. Top-p counts the mass of the tokens that top-k leaves.
    Min-p forbids tokens that are less likely than that share of the likeliest token's probability.
    """
    cut_rows: list[int] = []
    cut_samplings: list[Sampling] = []
    floor_rows: list[int] = []
    floors: list[float] = []
    for row, sampling in enumerate(samplings):
        if sampling.top_k or sampling.top_p < 1.0:
            cut_rows.append(row)
            cut_samplings.append(sampling)
        if sampling.min_p:
            floor_rows.append(row)
            # The likeliest token is at 0, so a share of its probability is a bound on `scaled`.
            floors.append(math.log(sampling.min_p))
    if not cut_rows and not floor_rows:
        return scaled

    allowed = scaled.clone()
    if cut_rows:
        forbidden = _cut(scaled[cut_rows], cut_samplings)
        allowed[cut_rows] = allowed[cut_rows].masked_fill(forbidden, -torch.inf)
    if floor_rows:
        floor = torch.tensor(floors, dtype=scaled.dtype, device=scaled.device)[:, None]
        is_below = scaled[floor_rows] < floor
        allowed[floor_rows] = allowed[floor_rows].masked_fill(is_below, -torch.inf)
    return allowed


def _cut(scaled: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    """Return a mask [B, V] that is True where top-k or top-p forbids a token.

    Top-p keeps the smallest set of likeliest tokens that reaches p.
    """
    size = scaled.shape[1]
    top_ks: list[int] = []
    top_ps: list[float] = []
    for sampling in samplings:
        top_ks.append(sampling.top_k or size)
        top_ps.append(sampling.top_p)
    top_k = torch.tensor(top_ks, device=scaled.device)[:, None]
    top_p = torch.tensor(top_ps, dtype=torch.float64, device=scaled.device)[:, None]

    order = scaled.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(size, device=scaled.device)[None, :]
    kept = order.values.masked_fill(rank >= top_k, -torch.inf).softmax(dim=-1)
    mass_before = kept.cumsum(dim=-1) - kept
    # Rounding may let the mass reach 1 early, where a top_p of 1 must forbid nothing.
    by_top_p = (mass_before >= top_p) & (rank > 0) & (top_p < 1.0)
    forbidden = (rank >= top_k) | by_top_p
    return torch.zeros_like(forbidden).scatter(1, order.indices, forbidden)
