"""From predictions to the log-likelihood of what was said."""

from collections.abc import Callable
from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from shared.messages import ContinuationScore

LOGIT_ROWS = 128
"""Positions whose logits over the whole vocabulary are held at once."""


def score_states(logits: Callable[[Tensor], Tensor], states: Tensor, token_ids: Rows[int]) -> ContinuationScore:
    """The score of `token_ids` under the states [T, hidden] that predict them, `logits` of a few at a time."""
    pieces = zip(states.split(LOGIT_ROWS), torch.tensor(token_ids).split(LOGIT_ROWS), strict=True)
    scores = [score_tokens(logits(some), wanted.tolist()) for some, wanted in pieces]
    return ContinuationScore(
        sum(score.log_likelihood for score in scores), len(token_ids), all(score.is_greedy for score in scores)
    )


def score_tokens(logits: Tensor, token_ids: Rows[int]) -> ContinuationScore:
    """Log-likelihood (nats, float64 sum) of `token_ids` under the rows of `logits` [T, V] that predict them."""
    wanted = torch.tensor(token_ids, device=logits.device)
    picked = logits.double().log_softmax(-1).gather(1, wanted[:, None])
    return ContinuationScore(float(picked.sum()), len(token_ids), bool((logits.argmax(-1) == wanted).all()))
