"""What requests ask of logits besides a draw: penalties, bias and withheld ends before it,
log-probabilities after it.

Each row is worked on alone, and only where its request asks, so that it comes out the same whatever
shares its batch. Repetition penalty as in Keskar et al. (2019), over prompt and response; presence
and frequency penalties as OpenAI documents them, over the response.
"""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from shared.messages import Sampling, TokenLogprob
from worker.sequence import TokenSequence


def adjust(logits: Tensor, sequences: Sequence[TokenSequence], eos_ids: frozenset[int]) -> Tensor:
    """`logits` [B, V] as the draw is to see them; the same tensor where no sequence asks for a
    change.

    In this order: repetition penalty, whose rule turns on the sign of the model's own logit;
    presence and frequency penalties; bias; and last the ends, which nothing may bring back.
    """
    asking = [
        row
        for row, item in enumerate(sequences)
        if item.sampling is not None and _asks(item, item.sampling)
    ]
    if not asking:
        return logits
    adjusted = logits.clone()
    for row in asking:
        _adjust_row(adjusted[row], sequences[row], eos_ids)
    return adjusted


def token_logprobs(
    logits: Tensor, chosen: Sequence[int], samplings: Sequence[Sampling]
) -> list[TokenLogprob | None]:
    """The log-probability (nats) of each row's chosen token and of its likeliest ones; None where
    nobody asks.

    A log-softmax in float64 of the logits [B, V] as they are. Texts are left empty.
    """
    found: list[TokenLogprob | None] = [None] * len(samplings)
    for row, (token, sampling) in enumerate(zip(chosen, samplings, strict=True)):
        if sampling.logprobs is not None:
            table = logits[row].double().log_softmax(-1)
            likeliest = table.topk(min(sampling.logprobs, len(table)))
            pairs = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
            found[row] = TokenLogprob(
                float(table[token]), top=tuple((item, "", value) for item, value in pairs)
            )
    return found


def _asks(sequence: TokenSequence, sampling: Sampling) -> bool:
    return bool(
        sampling.repetition_penalty != 1.0
        or sampling.presence_penalty
        or sampling.frequency_penalty
        or sampling.logit_bias
        or len(sequence.output_ids) < sampling.min_tokens
    )


def _adjust_row(row: Tensor, sequence: TokenSequence, eos_ids: frozenset[int]) -> None:
    """Change one sequence's logits [V] in place."""
    sampling, said = sequence.sampling, sequence.output_ids
    assert sampling is not None
    if sampling.repetition_penalty != 1.0:
        seen = torch.tensor(sequence.token_ids, device=row.device)
        scores = row[seen]
        row[seen] = torch.where(
            scores < 0, scores * sampling.repetition_penalty, scores / sampling.repetition_penalty
        )
    if said and (sampling.presence_penalty or sampling.frequency_penalty):
        counts = Counter(said)
        _add(
            row,
            [
                (i, -sampling.presence_penalty - n * sampling.frequency_penalty)
                for i, n in counts.items()
            ],
        )
    if sampling.logit_bias:
        _add(row, [(token, bias) for token, bias in sampling.logit_bias if token < len(row)])
    if len(said) < sampling.min_tokens:
        ends = {*sampling.stop_ids, *(() if sampling.ignore_eos else eos_ids)}
        row[[token for token in ends if token < len(row)]] = -torch.inf


def _add(row: Tensor, changes: Sequence[tuple[int, float]]) -> None:
    """Add to logits, to each token at most once."""
    ids = [token for token, _ in changes]
    row[ids] += torch.tensor([value for _, value in changes], dtype=row.dtype, device=row.device)
