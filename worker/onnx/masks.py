"""Maps of classes, as masks of a picture's own size."""

import math
from collections.abc import Iterator

import numpy as np
from PIL import Image

from shared.errors import WorkerFailed
from worker.engine.heartbeat import heartbeat
from worker.onnx.declaration import MaskOutput
from worker.onnx.graph import Array
from worker.onnx.scores import probabilities

_ROUNDING = 1e-6
Box = tuple[float, float, float, float]
"""A part of a map: left, top, right and bottom, in shares of its sides."""


def class_masks(
    maps: Array, declared: MaskOutput, part: Box, size: tuple[int, int], *, threshold: float
) -> Iterator[tuple[int, Array]]:
    """Yield the number and the mask [height, width] of each class that may be in a picture.

    `maps` are those of one row. The picture lies in a `part` of them, which is scaled to `size`.
    Raise WorkerFailed for maps of another number of axes than the declaration has.
    """
    if maps.ndim != len(declared.layout):
        raise WorkerFailed(
            f"A map of the shape {list(maps.shape)} is not {declared.layout}: correct output.layout."
        )
    if declared.layout == "NHW":
        numbers = _scaled(maps[0], part, size, Image.Resampling.NEAREST).round().astype(int)
        yield from _masks_of(numbers)
        return
    channels = maps[0]
    if declared.layout == "NHWC":
        channels = channels.transpose(2, 0, 1)
    if declared.apply == "softmax":
        # The order of scores is that of their softmax.
        yield from _masks_of(_likeliest(channels, part, size))
        return
    scores = probabilities(channels, declared.apply)
    for number, channel in enumerate(scores):
        heartbeat()
        yield number, _scaled(channel, part, size, Image.Resampling.BILINEAR) > threshold


def _masks_of(numbers: Array) -> Iterator[tuple[int, Array]]:
    for number in np.unique(numbers):
        heartbeat()
        yield int(number), numbers == number


def _likeliest(channels: Array, part: Box, size: tuple[int, int]) -> Array:
    """Return the number [height, width] of each pixel's likeliest class.

    One class after the other is scaled, because all of them would take too much memory.
    """
    best = np.full(size, -np.inf, dtype=np.float32)
    numbers = np.zeros(size, dtype=np.int32)
    for number, channel in enumerate(channels):
        heartbeat()
        scores = _scaled(channel, part, size, Image.Resampling.BILINEAR)
        is_better = scores > best
        best[is_better] = scores[is_better]
        numbers[is_better] = number
    return numbers


def _scaled(
    channel: Array, part: Box, size: tuple[int, int], resampling: Image.Resampling
) -> Array:
    """Return a part of a map [H, W], scaled to `size` (height, width)."""
    height, width = channel.shape
    left, top, right, bottom = part
    # What lies beside the part is cut off first: scaling would mix its edge into the part.
    first_row = math.floor(top * height + _ROUNDING)
    first_column = math.floor(left * width + _ROUNDING)
    end_row = math.ceil(bottom * height - _ROUNDING)
    end_column = math.ceil(right * width - _ROUNDING)
    inside = channel[first_row:end_row, first_column:end_column]
    box = (
        max(0.0, left * width - first_column),
        max(0.0, top * height - first_row),
        min(inside.shape[1], right * width - first_column),
        min(inside.shape[0], bottom * height - first_row),
    )
    image = Image.fromarray(np.ascontiguousarray(inside, dtype=np.float32))
    return np.asarray(image.resize((size[1], size[0]), resampling, box=box))
