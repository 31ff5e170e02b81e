"""Sums of hidden states, for pooling."""

import math
from array import array

import torch
from torch import Tensor

from shared.errors import FleetError
from worker.engine.sampler import broken
from worker.engine.sequence import Pooled, StepResult


def pooled(states: Tensor, model: str) -> StepResult | FleetError:
    """Return the sum [hidden] of `states` [N, hidden], in float64.

    Return WorkerFailed, which names `model`, where the sum is not finite.
    """
    sums = array("d", states.to(torch.float64).sum(0).tolist())
    if not all(math.isfinite(value) for value in sums):
        return broken(model)
    return Pooled(sums, len(states))
