"""The labels of classifiers, as transformers and its pipelines give them."""

import math
from typing import Any

from torch import Tensor
from transformers import PretrainedConfig

from shared.errors import FleetError, InvalidRequest
from shared.messages import Label, Labelled
from worker.engine.sampler import broken
from worker.engine.task_runner import TaskOutput

ALL_LABELS = 1 << 30
"""More labels than any network has."""


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


def labels_output(task: Any, labels: list[dict[str, Any]], seconds: float) -> TaskOutput:
    """Return the labels of a pipeline, likeliest first, as a result."""
    return TaskOutput(Labelled(tuple(Label(one["label"], one["score"]) for one in labels)))


def check_template(template: str) -> None:
    """Raise InvalidRequest for a template that has no one place for a label."""
    if template.count("{}") != 1 or template.replace("{}", "").count("{"):
        raise InvalidRequest("template: expected {} once, where the label goes.", field="template")
