"""Probabilities of a graph's outputs, and labels with them."""

import numpy as np

from shared.errors import FleetError, WorkerFailed
from shared.messages import Label, Labelled
from worker.engine.task_runner import TaskOutput
from worker.onnx.declaration import Apply, ScoresOutput
from worker.onnx.graph import Array
from worker.onnx.one_call import Loaded


def probabilities(values: Array, apply: Apply, axis: int = -1) -> Array:
    """Return float32 probabilities of the same shape."""
    values = values.astype(np.float32, copy=False)
    if apply == "softmax":
        powers = np.exp(values - values.max(axis=axis, keepdims=True))
        shares: Array = powers / powers.sum(axis=axis, keepdims=True)
        return shares
    if apply == "sigmoid":
        # exp of a positive number could overflow.
        small = np.exp(-np.abs(values))
        return np.where(values >= 0, 1 / (1 + small), small / (1 + small))
    return values


def labelled(rows: Array, loaded: Loaded, top_k: int | None) -> TaskOutput | FleetError:
    """Return the labels, likeliest first, by the mean of the scores [R, labels] of the rows.

    Return WorkerFailed where there is another number of labels than the declaration has.
    """
    output: ScoresOutput = loaded.declaration.output
    rows = rows.reshape(len(rows), -1)
    if rows.shape[1] != len(loaded.names):
        return WorkerFailed(
            f"{loaded.model!r} gives {rows.shape[1]} scores, but declares {len(loaded.names)} "
            "labels."
        )
    scores = probabilities(rows, output.apply).mean(axis=0)
    labels = []
    for name, score in zip(loaded.names, scores, strict=True):
        labels.append(Label(name, float(score)))
    labels.sort(key=lambda label: -label.score)
    return TaskOutput(Labelled(tuple(labels[:top_k])))
