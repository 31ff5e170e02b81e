"""Penalties, bias and withheld ends before the draw of a token, and log-probabilities after it.

Each row is changed alone, and only where its request asks for it, so that it comes out the same
whatever shares its batch. The repetition penalty is that of Keskar et al. (2019), over prompt and
response. Presence and frequency penalties are as OpenAI documents them, over the response.
"""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from shared.messages import Sampling, TokenLogprob
from worker.engine.sequence import TokenSequence


def adjust(logits: Tensor, sequences: Sequence[TokenSequence], eos_ids: frozenset[int]) -> Tensor:
    """Return the logits [B, V] from which tokens are drawn, given the model's `logits` [B, V].

    The result is the same tensor where no sequence needs a change.
    """
    rows: list[int] = []
    for row, sequence in enumerate(sequences):
        if sequence.sampling is not None and _needs_change(sequence, sequence.sampling):
            rows.append(row)
    if not rows:
        return logits
    adjusted = logits.clone()
    for row in rows:
        _adjust_row(adjusted[row], sequences[row], eos_ids)
    return adjusted


def token_logprobs(
    logits: Tensor, chosen: Sequence[int], samplings: Sequence[Sampling]
) -> list[TokenLogprob | None]:
    """Return the log-probability (nats) of each row's chosen token and of its likeliest ones.

    The entry is None where a request does not ask for log-probabilities. The numbers are a
    log-softmax in float64 of the model's own `logits` [B, V]. Texts are left empty.
    """
    logprobs: list[TokenLogprob | None] = [None] * len(samplings)
    for row, (token, sampling) in enumerate(zip(chosen, samplings, strict=True)):
        if sampling.logprobs is None:
            continue
        table = logits[row].double().log_softmax(-1)
        likeliest = table.topk(min(sampling.logprobs, len(table)))
        top: list[tuple[int, str, float]] = []
        for rival, value in zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True):
            top.append((rival, "", value))
        logprobs[row] = TokenLogprob(float(table[token]), top=tuple(top))
    return logprobs


def _needs_change(sequence: TokenSequence, sampling: Sampling) -> bool:
    """Return whether penalties, bias or withheld ends change the sequence's next logits."""
    if sampling.repetition_penalty != 1.0:
        return True
    if sampling.presence_penalty or sampling.frequency_penalty:
        return True
    if sampling.logit_bias:
        return True
    return len(sequence.output_ids) < sampling.min_tokens


def _adjust_row(row: Tensor, sequence: TokenSequence, eos_ids: frozenset[int]) -> None:
    """Change one sequence's logits [V] in place."""
    sampling = sequence.sampling
    assert sampling is not None
    output_ids = sequence.output_ids

    # First, because this penalty depends on the sign of the model's own logit.
    penalty = sampling.repetition_penalty
    if penalty != 1.0:
        # Ids beyond the vocabulary stand for pictures in a prompt.
        tokens = [token for token in sequence.token_ids if token < len(row)]
        seen = torch.tensor(tokens, dtype=torch.long, device=row.device)
        scores = row[seen]
        row[seen] = torch.where(scores < 0, scores * penalty, scores / penalty)

    if output_ids and (sampling.presence_penalty or sampling.frequency_penalty):
        counts = Counter(output_ids)
        penalties: list[float] = []
        for count in counts.values():
            penalties.append(-sampling.presence_penalty - count * sampling.frequency_penalty)
        _add(row, list(counts), penalties)

    if sampling.logit_bias:
        ids: list[int] = []
        biases: list[float] = []
        for token, bias in sampling.logit_bias:
            if token < len(row):
                ids.append(token)
                biases.append(bias)
        _add(row, ids, biases)

    # Last, because nothing may bring a withheld end back.
    if len(output_ids) < sampling.min_tokens:
        ends = set(sampling.stop_ids)
        if not sampling.ignore_eos:
            ends |= eos_ids
        row[[token for token in ends if token < len(row)]] = -torch.inf


def _add(row: Tensor, ids: Sequence[int], values: Sequence[float]) -> None:
    """Add `values` to the logits `row` [V] at `ids`, which are distinct."""
    row[ids] += torch.tensor(values, dtype=row.dtype, device=row.device)
