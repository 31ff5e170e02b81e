"""The labels of a classifier, by the rules of transformers."""

import math
from typing import Any

from torch import Tensor
from transformers import PretrainedConfig

from shared.errors import FleetError
from shared.messages import Label
from worker.engine.sampler import broken


def scores_of(logits: Tensor, config: PretrainedConfig) -> list[list[float]]:
    """Return the labels' scores [B, labels] by transformers' rule, given `logits` [B, labels].

    The scores of a regression are its logits. Labels that do not exclude each other, or a single
    label, get a sigmoid each. All other labels get a softmax.
    """
    if config.problem_type == "regression":
        scores = logits
    elif config.problem_type == "multi_label_classification" or logits.shape[-1] == 1:
        scores = logits.sigmoid()
    else:
        scores = logits.softmax(-1)
    rows: list[list[float]] = scores.tolist()
    return rows


def labels_of(
    scores: list[float], config: PretrainedConfig, model: str
) -> tuple[Label, ...] | FleetError:
    """Return all labels with their `scores` [labels], the likeliest first.

    Return an error, which names the model, where a score is not finite.
    """
    if not all(math.isfinite(score) for score in scores):
        return broken(model)
    names: Any = config.id2label
    labels = [Label(str(names[number]), score) for number, score in enumerate(scores)]
    labels.sort(key=lambda label: -label.score)
    return tuple(labels)
