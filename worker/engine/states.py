"""Sums of hidden states, for pooling."""

import math
from array import array

import torch
from torch import Tensor

from shared.errors import FleetError
from worker.engine.sampler import broken
from worker.engine.sequence import Pooled, StepResult


def pooled(states: Tensor, model: str) -> StepResult | FleetError:
    """Return the sum of `states` [N, hidden] in float64, or WorkerFailed naming `model` where it is
    no number."""
    sums = array("d", states.to(torch.float64).sum(0).tolist())
    if not all(map(math.isfinite, sums)):
        return broken(model)
    return Pooled(sums, len(states))
