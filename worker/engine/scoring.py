"""Log-likelihoods of given tokens, from the states that predict them."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shared.errors import FleetError
from shared.messages import ContinuationScore, TokenLogprob
from worker.engine.sampler import broken
from worker.engine.sequence import Scores, Slice, StepResult

LOGIT_ROWS = 128
"""Positions whose logits over the whole vocabulary are held at once."""

Logits = Callable[[Tensor], Tensor]


def score_slices(
    logits: Logits, states: Tensor, slices: Sequence[Slice], model: str
) -> list[StepResult | FleetError]:
    """Return the scores of each slice's continuations.

    A slice with a score that is not finite gets WorkerFailed, which names `model`. `states`
    [N, hidden] predict the tokens of all targets of all slices, one after the other. `logits` turns
    states [n, hidden] into logits [n, V].
    """
    num_top = 0
    target_ids: list[tuple[int, ...]] = []
    for part in slices:
        num_top = max(num_top, part.sequence.encoded.num_top or 0)
        target_ids += part.targets
    targets = iter(find_targets(logits, states, target_ids, num_top=num_top))

    results: list[StepResult | FleetError] = []
    for part in slices:
        num_top_of_part = part.sequence.encoded.num_top
        scores: list[ContinuationScore] = []
        tokens: list[TokenLogprob] = []
        for target in itertools.islice(targets, len(part.targets)):
            scores.append(target.score())
            if num_top_of_part is not None:
                tokens += target.tokens(num_top_of_part)
        if all(math.isfinite(score.log_likelihood) for score in scores):
            results.append(Scores(tuple(scores), tuple(tokens)))
        else:
            results.append(broken(model))
    return results


@dataclass(frozen=True)
class Target:
    """A run of N tokens with their log-probabilities under the states that predict them.

    `values` [N] are the tokens' log-probabilities (nats, float64). `is_greedy` [N] is True where
    the token is the likeliest. `top_ids` and `top_values` [N, num_top] are the likeliest tokens and
    their log-probabilities.
    """

    values: Tensor
    is_greedy: Tensor
    top_ids: Tensor
    top_values: Tensor

    def score(self) -> ContinuationScore:
        """Return the score of the whole run."""
        return ContinuationScore(
            float(self.values.sum()), len(self.values), bool(self.is_greedy.all())
        )

    def tokens(self, num_top: int) -> Iterator[TokenLogprob]:
        """Yield each token with at most `num_top` of the likeliest. Texts are left empty."""
        rows = zip(
            self.values.tolist(), self.top_ids.tolist(), self.top_values.tolist(), strict=True
        )
        for value, rival_ids, rival_values in rows:
            top: list[tuple[int, str, float]] = []
            for rival, rival_value in zip(rival_ids[:num_top], rival_values[:num_top], strict=True):
                top.append((rival, "", rival_value))
            yield TokenLogprob(value, top=tuple(top))


def find_targets(
    logits: Logits, states: Tensor, targets: Sequence[Sequence[int]], *, num_top: int = 0
) -> list[Target]:
    """Return the log-probabilities of each run of tokens, given the states that predict them.

    `states` [N, hidden] predict the tokens of all runs, one run after the other. Logits are
    computed for LOGIT_ROWS states at a time, whichever runs they belong to.
    """
    lengths: list[int] = []
    token_ids: list[int] = []
    for target in targets:
        lengths.append(len(target))
        token_ids += target
    tokens = torch.tensor(token_ids, device=states.device)

    values: list[Tensor] = []
    is_greedy: list[Tensor] = []
    top_ids: list[Tensor] = []
    top_values: list[Tensor] = []
    for some_states, some_tokens in zip(
        states.split(LOGIT_ROWS), tokens.split(LOGIT_ROWS), strict=True
    ):
        rows = _look_up(logits(some_states), some_tokens, num_top)
        values.append(rows.values)
        is_greedy.append(rows.is_greedy)
        top_ids.append(rows.top_ids)
        top_values.append(rows.top_values)

    # On the CPU, because from here on everything is small and read one number at a time.
    fields_by_target = zip(
        torch.cat(values).cpu().split(lengths),
        torch.cat(is_greedy).cpu().split(lengths),
        torch.cat(top_ids).cpu().split(lengths),
        torch.cat(top_values).cpu().split(lengths),
        strict=True,
    )
    return [Target(*fields) for fields in fields_by_target]


def _look_up(logits: Tensor, tokens: Tensor, num_top: int) -> Target:
    """Return `tokens` [N] with their log-probabilities by `logits` [N, V]."""
    log_probs = logits.double().log_softmax(-1)
    top = log_probs.topk(min(num_top, log_probs.shape[-1]))
    return Target(
        values=log_probs.gather(1, tokens[:, None])[:, 0],
        is_greedy=logits.argmax(-1) == tokens,
        top_ids=top.indices,
        top_values=top.values,
    )
