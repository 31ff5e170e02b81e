"""Boxes of detected objects: decoded, and chosen by non-maximum suppression."""

from dataclasses import dataclass

import numpy as np

from shared.errors import WorkerFailed
from worker.onnx.declaration import Boxes, Columns, Detector
from worker.onnx.graph import Array, Arrays

MAX_CANDIDATES = 1000
"""The most boxes, likeliest first, among which a picture's objects are chosen."""


@dataclass(frozen=True)
class Candidates:
    """N boxes [N, 4] (xmin, ymin, xmax, ymax), each with its score and the number of its class."""

    boxes: Array
    scores: Array
    classes: Array

    @staticmethod
    def of(
        boxes: Array, scores: Array, classes: Array | None, background: int | None
    ) -> "Candidates":
        """Return the candidates of boxes [N, 4] and their scores, in one column or one a class.

        None is of the class `background`. Raise WorkerFailed for columns that do not match.
        """
        if len(boxes) != len(scores) or (classes is not None and scores.shape[1] != 1):
            raise WorkerFailed(
                f"{len(boxes)} boxes have scores of the shape {list(scores.shape)}: the declared "
                "columns of the output do not match."
            )
        if classes is None:
            if background is not None:
                is_background = np.arange(scores.shape[1]) == background
                scores = np.where(is_background, -1.0, scores)
            classes = scores.argmax(axis=1)
        elif background is not None:
            scores = np.where(classes[:, None] == background, -1.0, scores)
        return Candidates(boxes, scores.max(axis=1), classes)

    def at(self, indices: Array) -> "Candidates":
        return Candidates(self.boxes[indices], self.scores[indices], self.classes[indices])


def columns_of(declared: Columns, outputs: Arrays) -> Array:
    """Return the declared columns [N, K] of a row of outputs, in float64.

    Raise WorkerFailed for an output that does not have them.
    """
    array = outputs[declared.name] if declared.name is not None else next(iter(outputs.values()))
    rows = array[0]
    if rows.ndim == 1:
        rows = rows[:, None]
    elif declared.layout == "BCN":
        rows = rows.T
    first, end = declared.columns or (0, rows.shape[-1])
    if rows.ndim != 2 or end > rows.shape[-1]:
        raise WorkerFailed(
            f"An output of the shape {list(array.shape)} has no columns {first} to {end} of "
            "objects: correct the declaration."
        )
    columns: Array = rows[:, first:end].astype(np.float64)
    return columns


def corners(boxes: Array, declared: Boxes, height: int, width: int) -> Array:
    """Return boxes [N, 4] of the declared format as xmin, ymin, xmax, ymax in the input's pixels.

    Raise WorkerFailed where there are not four columns.
    """
    if boxes.shape[1] != 4:
        raise WorkerFailed(f"Boxes of {boxes.shape[1]} columns: 4 are expected.")
    if declared.units == "shares":
        sides = np.array([width, height] * 2)
        if declared.format == "yxyx":
            sides = np.array([height, width] * 2)
        boxes = boxes * sides
    if declared.format == "yxyx":
        return boxes[:, [1, 0, 3, 2]]
    if declared.format == "xyxy":
        return boxes
    starts = boxes[:, :2]
    if declared.format == "cxcywh":
        starts = starts - boxes[:, 2:] / 2
    return np.concatenate([starts, starts + boxes[:, 2:]], axis=1)


def kept_objects(candidates: Candidates, declaration: Detector, threshold: float) -> Candidates:
    """Return the objects above `threshold`, likeliest first, without those that others suppress."""
    likely = np.flatnonzero(candidates.scores > threshold)
    # A stable order: of equal scores the first box wins.
    order = likely[np.argsort(-candidates.scores[likely], kind="stable")]
    chosen = candidates.at(order[:MAX_CANDIDATES])
    nms = declaration.nms
    if nms is not None:
        groups = chosen.classes
        if nms.across_classes:
            groups = np.zeros(len(chosen.classes), dtype=int)
        chosen = chosen.at(_unsuppressed(chosen.boxes, groups, nms.iou))
    return chosen.at(np.arange(len(chosen.scores))[: declaration.max_objects])


def _unsuppressed(boxes: Array, groups: Array, most_iou: float) -> Array:
    """Return the indices of boxes that overlap no likelier box of their group more than this.

    `boxes` [N, 4] are in the order of their scores. A suppressed box suppresses no other.
    """
    sizes = np.maximum(0, boxes[:, 2:] - boxes[:, :2])
    areas = sizes.prod(axis=1)
    is_kept = np.ones(len(boxes), dtype=bool)
    for index in range(len(boxes)):
        if not is_kept[index]:
            continue
        rest = slice(index + 1, None)
        starts = np.maximum(boxes[index, :2], boxes[rest, :2])
        ends = np.minimum(boxes[index, 2:], boxes[rest, 2:])
        shared = np.maximum(0, ends - starts).prod(axis=1)
        union = areas[index] + areas[rest] - shared
        overlaps = shared > most_iou * union
        is_kept[rest] &= ~(overlaps & (groups[rest] == groups[index]))
    return np.flatnonzero(is_kept)
