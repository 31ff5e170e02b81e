"""Pictures as inputs of an ONNX graph, and the tasks that look at them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from shared.errors import FleetError, WorkerFailed
from shared.tasks.vision import (
    ClassifyImage,
    DetectedObject,
    DetectedObjects,
    DetectObjects,
    Segment,
    Segmented,
    SegmentImage,
)
from worker.engine.task_runner import Files, NewFile, TaskOutput
from worker.media.images import MAX_IMAGE_BYTES, decode_image, png_of
from worker.onnx.boxes import Candidates, columns_of, corners, kept_objects
from worker.onnx.declaration import (
    MAX_SIDE,
    Columns,
    Detector,
    MaskOutput,
    PictureInput,
    PixelInput,
    Segmenter,
    wrong,
)
from worker.onnx.graph import Array, Arrays, Graph
from worker.onnx.masks import class_masks
from worker.onnx.one_call import Axes, Item, Loaded, OnnxTask, one_output
from worker.onnx.scores import labelled, probabilities
from worker.tasks.one_shot import trial_of
from worker.tasks.vision import GREY

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
_MAX_VALUE = 255
ImageTask = ClassifyImage | DetectObjects | SegmentImage


@dataclass(frozen=True)
class Placement:
    """A picture of `width` x `height` pixels as it lies in an input of the network.

    It is scaled to `scaled_width` x `scaled_height`, with its corner at (`left`, `top`). What lies
    outside the input was cut off.
    """

    width: int
    height: int
    scaled_width: float
    scaled_height: float
    left: float = 0.0
    top: float = 0.0

    def undone(self, corners: Array) -> Array:
        """Return boxes [N, 4] (xmin, ymin, xmax, ymax) in the picture's pixels, none outside it."""
        scale_x = self.width / self.scaled_width
        scale_y = self.height / self.scaled_height
        offset = np.array([self.left, self.top] * 2)
        boxes = (corners - offset) * np.array([scale_x, scale_y] * 2)
        inside: Array = np.clip(boxes, 0, np.array([self.width, self.height] * 2))
        return inside


def size_of(declared: PictureInput, graph: Graph) -> tuple[int, int]:
    """Return the height and the width of the network's input.

    Raise ModelFormatError where the declaration and the graph differ, or neither tells.
    """
    info = graph.input(declared.name, "input.name")
    channels_last = declared.layout == "NHWC"
    height, width = declared.size or (None, None)
    shape: tuple[int | None, ...] = (None, declared.num_channels, height, width)
    if channels_last:
        shape = (None, height, width, declared.num_channels)
    graph.check_shape(info, shape, "input.size" if len(info.shape) == 4 else "input.layout")
    if declared.dtype is not None and info.dtype != np.dtype(declared.dtype):
        problem = f"the graph takes {info.dtype}, got {declared.dtype!r}"
        raise wrong(graph.declared_in, "input.dtype", problem)
    if height is None or width is None:
        height, width = info.shape[1:3] if channels_last else info.shape[2:4]
    if height is None or width is None:
        problem = "the graph takes any size: declare [height, width]"
        raise wrong(graph.declared_in, "input.size", problem)
    if max(height, width) > MAX_SIDE:
        raise wrong(graph.declared_in, "input.size", f"expected at most {MAX_SIDE} pixels a side")
    return height, width


def placed(image: Image.Image, declared: PictureInput, height: int, width: int) -> Image.Image:
    """Return the picture as it lies in an input of this size."""
    resample = _RESAMPLING[declared.resample]
    placement = placement_of(image, declared, height, width)
    if declared.resize == "stretch":
        return image.resize((width, height), resample)
    if declared.resize == "letterbox":
        scaled = (round(placement.scaled_width), round(placement.scaled_height))
        canvas = Image.new("RGB", (width, height), (declared.border,) * 3)
        canvas.paste(image.resize(scaled, resample), (int(placement.left), int(placement.top)))
        return canvas
    # The part that is kept alone is scaled: the whole of a long picture would take too much memory.
    scale = image.width / placement.scaled_width
    left = max(0.0, -placement.left * scale)
    top = max(0.0, -placement.top * scale)
    right = min(image.width, left + width * scale)
    bottom = min(image.height, top + height * scale)
    part = (left, top, right, bottom)
    return image.resize((width, height), resample, box=part)


def placement_of(image: Image.Image, declared: PictureInput, height: int, width: int) -> Placement:
    """Return how a picture is scaled and where it lies."""
    if declared.resize == "stretch":
        return Placement(image.width, image.height, width, height)
    if declared.resize == "letterbox":
        scale = min(width / image.width, height / image.height)
        scaled_width: float = max(1, round(image.width * scale))
        scaled_height: float = max(1, round(image.height * scale))
        left: float = (width - scaled_width) // 2
        top: float = (height - scaled_height) // 2
    else:
        scale = max(width / image.width, height / image.height) / declared.crop_pct
        scaled_width = image.width * scale
        scaled_height = image.height * scale
        left = (width - scaled_width) / 2
        top = (height - scaled_height) / 2
    if declared.align == "corner":
        left = 0
        top = 0
    return Placement(image.width, image.height, scaled_width, scaled_height, left, top)


def pixels(image: Image.Image, declared: PixelInput, dtype: np.dtype[Any]) -> Array:
    """Return a placed picture as a row [1, ...] of the network's input."""
    grey = declared.colours == "grey"
    values = np.asarray(image.convert("L") if grey else image, dtype=np.float32)
    if grey:
        values = values[:, :, None]
    if declared.colours == "BGR":
        values = values[:, :, ::-1]
    is_whole = np.issubdtype(dtype, np.integer)
    scale = declared.scale
    if scale is None:
        scale = 1.0 if is_whole else 1 / _MAX_VALUE
    mean = np.asarray(declared.mean, dtype=np.float32)
    std = np.asarray(declared.std, dtype=np.float32)
    values = (values * np.float32(scale) - mean) / std
    if is_whole:
        limits = np.iinfo(dtype)
        values = np.clip(values.round(), limits.min, limits.max)
    if declared.layout == "NCHW":
        values = values.transpose(2, 0, 1)
    return np.ascontiguousarray(values, dtype=dtype)[None]


def _inputs(declaration: Any, graph: Graph) -> Axes:
    size_of(declaration.input, graph)
    return {graph.input(declaration.input.name, "input.name").name: 0}


def _read(task: ImageTask, files: Files, loaded: Loaded) -> Item:
    declared: PictureInput = loaded.declaration.input
    data = files.read(task.image, max_bytes=MAX_IMAGE_BYTES)
    image = decode_image(data, max_pixels=loaded.max_pixels)
    height, width = size_of(declared, loaded.graph)
    info = loaded.graph.input(declared.name, "input.name")
    row = pixels(placed(image, declared, height, width), declared, info.dtype)
    return Item(task, {info.name: row}, placement_of(image, declared, height, width))


def _labels(item: Item, outputs: Arrays, loaded: Loaded) -> TaskOutput | FleetError:
    [scores] = outputs.values()
    return labelled(scores, loaded, item.task.top_k)


def _object_outputs(declaration: Detector, graph: Graph) -> Axes:
    axes = {}
    for part in ("boxes", "scores", "classes", "objectness"):
        declared: Columns | None = getattr(declaration.output, part)
        if declared is not None:
            # Several parts may lie in one output.
            axes[graph.output(declared.name, f"output.{part}.name").name] = 0
    return axes


def _objects(item: Item, outputs: Arrays, loaded: Loaded) -> TaskOutput | FleetError:
    """Return the objects of a picture: decode, choose, and undo the placement."""
    declaration: Detector = loaded.declaration
    output = declaration.output
    task: DetectObjects = item.task
    height, width = size_of(declaration.input, loaded.graph)

    boxes = corners(columns_of(output.boxes, outputs), output.boxes, height, width)
    scores = probabilities(columns_of(output.scores, outputs), output.scores.apply)
    if output.classes is None and scores.shape[1] != len(loaded.names):
        return _other_number(loaded, scores.shape[1])
    if output.objectness is not None:
        objectness = columns_of(output.objectness, outputs)
        scores = scores * probabilities(objectness, output.objectness.apply)
    classes = None
    if output.classes is not None:
        classes = columns_of(output.classes, outputs)[:, 0].round().astype(int)
    candidates = Candidates.of(boxes, scores, classes, declaration.background)
    kept = kept_objects(candidates, declaration, task.threshold)

    placement: Placement = item.about
    objects: list[DetectedObject] = []
    for box, score, number in zip(
        placement.undone(kept.boxes), kept.scores, kept.classes, strict=True
    ):
        if not 0 <= number < len(loaded.names):
            return _other_number(loaded, int(number) + 1)
        xmin, ymin, xmax, ymax = (round(float(value)) for value in box)
        # A box in the border of a letterbox has nothing of the picture in it.
        if xmin < xmax and ymin < ymax:
            label = loaded.names[number]
            objects.append(DetectedObject(label, float(score), xmin, ymin, xmax, ymax))
    return TaskOutput(DetectedObjects(tuple(objects)))


def _other_number(loaded: Loaded, count: int) -> FleetError:
    """Return the failure of a graph with other classes than are declared."""
    return WorkerFailed(
        f"{loaded.model!r} knows {count} classes, but declares {len(loaded.names)} labels."
    )


def _segments(item: Item, outputs: Arrays, loaded: Loaded) -> TaskOutput | FleetError:
    declaration: Segmenter = loaded.declaration
    placement: Placement = item.about
    height, width = size_of(declaration.input, loaded.graph)
    [maps] = outputs.values()
    # The part of the input in which the picture lies, in shares of the input's sides.
    part = (
        placement.left / width,
        placement.top / height,
        (placement.left + placement.scaled_width) / width,
        (placement.top + placement.scaled_height) / height,
    )
    num_classes = _num_classes(maps, declaration.output)
    if num_classes is not None and num_classes != len(loaded.names):
        return _other_number(loaded, num_classes)
    segments: list[Segment] = []
    files: list[NewFile] = []
    picture = (placement.height, placement.width)
    threshold = item.task.mask_threshold
    for number, mask in class_masks(maps, declaration.output, part, picture, threshold=threshold):
        if number >= len(loaded.names):
            return _other_number(loaded, number + 1)
        if number == declaration.background or not mask.any():
            continue
        image = Image.fromarray(mask.astype(np.uint8) * _MAX_VALUE)
        segments.append(Segment(loaded.names[number], None, float(mask.mean())))
        files.append(NewFile(png_of(image), "image/png", f"mask-{len(files)}.png"))
    return TaskOutput(Segmented(tuple(segments)), tuple(files))


def _num_classes(maps: Array, declared: MaskOutput) -> int | None:
    """Return the number of classes of maps, None where only their pixels tell."""
    if declared.layout == "NHW" or maps.ndim != len(declared.layout):
        return None
    return int(maps.shape[declared.layout.index("C")])


PICTURES = {
    "image-classification": OnnxTask(
        inputs=_inputs,
        outputs=one_output,
        read=_read,
        output=_labels,
        trial=trial_of(ClassifyImage, GREY),
    ),
    "object-detection": OnnxTask(
        inputs=_inputs,
        outputs=_object_outputs,
        read=_read,
        output=_objects,
        trial=trial_of(DetectObjects, GREY),
    ),
    "image-segmentation": OnnxTask(
        inputs=_inputs,
        outputs=one_output,
        read=_read,
        output=_segments,
        trial=trial_of(SegmentImage, GREY),
    ),
}
