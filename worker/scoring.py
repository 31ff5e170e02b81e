"""From predictions to the log-likelihood of what was said."""

import itertools
import math
from collections.abc import Callable
from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from shared.errors import FleetError
from shared.messages import ContinuationScore
from worker.sampler import broken
from worker.sequence import Scores, Slice, StepResult

LOGIT_ROWS = 128
"""Positions whose logits over the whole vocabulary are held at once."""

Logits = Callable[[Tensor], Tensor]


def score_slices(logits: Logits, states: Tensor, slices: Rows[Slice], model: str) -> list[StepResult | FleetError]:
    """The scores of each slice's continuations, or WorkerFailed naming `model` where one is no number.

    `states` [N, hidden] predict the tokens of all targets of all slices, one after the other.
    """
    scores = iter(score_tokens(logits, states, [target for part in slices for target in part.targets]))
    results: list[StepResult | FleetError] = []
    for part in slices:
        own = tuple(itertools.islice(scores, len(part.targets)))
        is_sound = all(math.isfinite(score.log_likelihood) for score in own)
        results.append(Scores(own) if is_sound else broken(model))
    return results


def score_tokens(logits: Logits, states: Tensor, targets: Rows[Rows[int]]) -> list[ContinuationScore]:
    """Log-likelihood (nats, float64 sum) of each run of tokens under the `states` [N, hidden] that predict them.

    The logits of LOGIT_ROWS states are computed at a time, whichever runs they belong to.
    """
    wanted = torch.tensor([token for target in targets for token in target], device=states.device)
    pieces = zip(states.split(LOGIT_ROWS), wanted.split(LOGIT_ROWS), strict=True)
    found = [_look_up(logits(some), ids) for some, ids in pieces]
    lengths = [len(target) for target in targets]
    values = torch.cat([value for value, _ in found]).cpu().split(lengths)
    greedy = torch.cat([is_greedy for _, is_greedy in found]).cpu().split(lengths)
    return [
        ContinuationScore(float(value.sum()), len(value), bool(said.all()))
        for value, said in zip(values, greedy, strict=True)
    ]


def _look_up(logits: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row of `logits` [N, V] the log-probability of the token `wanted` [N], and whether it is the likeliest."""
    log_probs = logits.double().log_softmax(-1)
    return log_probs.gather(1, wanted[:, None])[:, 0], logits.argmax(-1) == wanted
