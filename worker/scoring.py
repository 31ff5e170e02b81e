"""From predictions to the log-likelihood of what was said."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shared.errors import FleetError
from shared.messages import ContinuationScore, TokenLogprob
from worker.sampler import broken
from worker.sequence import Scores, Slice, StepResult

LOGIT_ROWS = 128
"""Positions whose logits over the whole vocabulary are held at once."""

Logits = Callable[[Tensor], Tensor]


def score_slices(
    logits: Logits, states: Tensor, slices: Sequence[Slice], model: str
) -> list[StepResult | FleetError]:
    """The scores of each slice's continuations, or WorkerFailed naming `model` where one is no
    number.

    `states` [N, hidden] predict the tokens of all targets of all slices, one after the other.
    """
    num_top = max(part.sequence.encoded.num_top or 0 for part in slices)
    found = find_targets(
        logits, states, [target for part in slices for target in part.targets], num_top=num_top
    )
    results: list[StepResult | FleetError] = []
    for part in slices:
        own, wanted = (
            list(itertools.islice(found, len(part.targets))),
            part.sequence.encoded.num_top,
        )
        scores = tuple(item.score() for item in own)
        tokens = (
            () if wanted is None else tuple(token for item in own for token in item.tokens(wanted))
        )
        is_sound = all(math.isfinite(score.log_likelihood) for score in scores)
        results.append(Scores(scores, tokens) if is_sound else broken(model))
    return results


@dataclass(frozen=True)
class Target:
    """A run of tokens: of each its log-probability (nats, float64) [N], whether it is the likeliest
    [N], and the likeliest tokens' ids and log-probabilities [N, num_top]."""

    values: Tensor
    is_greedy: Tensor
    top_ids: Tensor
    top_values: Tensor

    def score(self) -> ContinuationScore:
        return ContinuationScore(
            float(self.values.sum()), len(self.values), bool(self.is_greedy.all())
        )

    def tokens(self, num_top: int) -> Iterator[TokenLogprob]:
        """Each token with at most `num_top` of the likeliest; texts are left empty."""
        rows = zip(
            self.values.tolist(), self.top_ids.tolist(), self.top_values.tolist(), strict=True
        )
        for value, ids, values in rows:
            pairs = itertools.islice(zip(ids, values, strict=True), num_top)
            yield TokenLogprob(value, top=tuple((token, "", other) for token, other in pairs))


def find_targets(
    logits: Logits, states: Tensor, targets: Sequence[Sequence[int]], *, num_top: int = 0
) -> Iterator[Target]:
    """Each run of tokens under the `states` [N, hidden] that predict them all, one run after the
    other.

    The logits of LOGIT_ROWS states are computed at a time, whichever runs they belong to.
    """
    wanted = torch.tensor([token for target in targets for token in target], device=states.device)
    pieces = zip(states.split(LOGIT_ROWS), wanted.split(LOGIT_ROWS), strict=True)
    found = [_look_up(logits(some), ids, num_top) for some, ids in pieces]
    lengths = [len(target) for target in targets]
    return map(
        Target, *(torch.cat(column).cpu().split(lengths) for column in zip(*found, strict=True))
    )


def _look_up(logits: Tensor, wanted: Tensor, num_top: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The columns of a `Target` for the tokens `wanted` [N] under `logits` [N, V]."""
    log_probs = logits.double().log_softmax(-1)
    top = log_probs.topk(min(num_top, log_probs.shape[-1]))
    return (
        log_probs.gather(1, wanted[:, None])[:, 0],
        logits.argmax(-1) == wanted,
        top.indices,
        top.values,
    )
