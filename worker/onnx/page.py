"""Pictures with text: one ONNX graph finds the lines, another one reads them.

Liao et al., "Real-time Scene Text Detection with Differentiable Binarization" (2019), for the
first; lines are read as sounds are, by CTC.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from shared.errors import FleetError, WorkerFailed
from shared.tasks.vision import Corner, PageText, ReadPicture, TextLine
from worker.engine.sampler import broken
from worker.engine.task_runner import Files, TaskOutput
from worker.media.images import MAX_IMAGE_BYTES, decode_image
from worker.models.errors import ModelFormatError
from worker.onnx.declaration import (
    LineFinder,
    LineInput,
    PageInput,
    PageReader,
    PixelInput,
    read_names,
    wrong,
)
from worker.onnx.graph import Array, Arrays, Graph
from worker.onnx.one_call import Axes, Item, LineGraph, Loaded, OnnxTask
from worker.onnx.pictures import pixels
from worker.onnx.scores import probabilities
from worker.tasks.one_shot import trial_of
from worker.tasks.vision import GREY

_LEAST_SIDE = 3.0
"""The least height of the core of a line, in pixels of the network's input."""
_WIDTH_STEP = 32
"""Widths of lines are rounded up to a multiple, so that more of them share a call."""
_TALL = 1.5
"""Where the height of a box is so many times its width, its text runs up or down."""
_TOLERANCE = 1e-3
_NO_OPENCV = (
    "A model that reads text in pictures needs OpenCV, which is missing: "
    "pip install 'aios-hrm-fleet[ocr]'."
)


@dataclass(frozen=True)
class Box:
    """The box of a line, corners [4, 2] (x, y) clockwise from the first letter's top."""

    corners: Array
    score: float


def line_graph_of(declaration: PageReader, declared_in: Path, *, one_by_one: bool) -> LineGraph:
    """Load the graph that reads lines.

    Raise ModelFormatError for one that does not fit the declaration, or whose answers depend on
    the lines beside one, and without OpenCV.
    """
    _opencv()
    declared = declaration.reader
    graph = Graph(declared_in.parent / declared.file, declared_in)
    info = graph.input(declared.input.name, "reader.input.name")
    channels = declared.input.num_channels
    shape: tuple[int | None, ...] = (None, channels, declared.input.height, None)
    if declared.input.layout == "NHWC":
        shape = (None, declared.input.height, None, channels)
    graph.check_shape(info, shape, "reader.input.height")
    if info.shape[_width_axis(declared.input)] is not None:
        raise wrong(declared_in, "reader.input", "expected a graph that takes lines of any width")
    graph.check_inputs((info.name,))
    names = read_names(declared_in, "reader.vocabulary", declared.vocabulary)
    if declared.blank >= len(names):
        problem = f"expected at most {len(names) - 1}, the last token of the vocabulary"
        raise wrong(declared_in, "reader.blank", problem)
    output = graph.output(declared.output.name, "reader.output.name")
    takes_many = info.shape[0] is None and output.shape[0] is None and not one_by_one
    lines = LineGraph(graph, info, output.name, names, takes_many)
    _check_lines(lines, declared.input)
    return lines


def _check_lines(lines: LineGraph, declared: LineInput) -> None:
    """Read two lines of noise alone and together. Raise ModelFormatError if the answers differ."""
    shape = [declared.num_channels, declared.height, declared.min_width]
    if declared.layout == "NHWC":
        shape = [declared.height, declared.min_width, declared.num_channels]
    noise = np.random.default_rng(0).uniform(-1, 1, (2, *shape)).astype(lines.input.dtype)
    file = lines.graph.file
    try:
        alone = [_scores(lines, noise[:1]), _scores(lines, noise[1:])]
        together = _scores(lines, noise) if lines.takes_many else np.concatenate(alone)
    except FleetError as error:
        raise ModelFormatError(f"{file} does not work: {error.message}") from error
    if alone[0].ndim != 3:
        raise ModelFormatError(f"{file} gives an output of {alone[0].ndim} axes: expected 3.")
    largest = float(np.abs(together).max(initial=1.0))
    if not np.allclose(together, np.concatenate(alone), rtol=0, atol=_TOLERANCE * largest):
        remedy = f"declare `one_by_one: true` in {lines.graph.declared_in.name}"
        raise ModelFormatError(f"{file} answers otherwise when two lines share a call; {remedy}.")


def _scores(lines: LineGraph, rows: Array) -> Array:
    [scores] = lines.graph.run({lines.input.name: rows}, (lines.output_name,)).values()
    return scores


def _opencv() -> Any:
    """Return OpenCV, with as many threads as torch has. Raise ModelFormatError without it."""
    try:
        import cv2
    except ImportError:
        raise ModelFormatError(_NO_OPENCV) from None
    cv2.setNumThreads(torch.get_num_threads())
    return cv2


def _inputs(declaration: PageReader, graph: Graph) -> Axes:
    declared = declaration.finder.input
    info = graph.input(declared.name, "finder.input.name")
    channels = declared.num_channels
    shape: tuple[int | None, ...] = (None, channels, None, None)
    if declared.layout == "NHWC":
        shape = (None, None, None, channels)
    graph.check_shape(info, shape, "finder.input.layout")
    sides = info.shape[1:3] if declared.layout == "NHWC" else info.shape[2:4]
    if sides != (None, None):
        raise wrong(graph.declared_in, "finder.input", "expected a graph that takes any size")
    return {info.name: 0}


def _outputs(declaration: PageReader, graph: Graph) -> Axes:
    return {graph.output(declaration.finder.output.name, "finder.output.name").name: 0}


def _read(task: ReadPicture, files: Files, loaded: Loaded) -> Item:
    declared: PageInput = loaded.declaration.finder.input
    data = files.read(task.image, max_bytes=MAX_IMAGE_BYTES)
    image = decode_image(data, max_pixels=loaded.max_pixels)
    scaled = image.resize(scaled_size(image, declared), Image.Resampling.BILINEAR)
    info = loaded.graph.input(declared.name, "finder.input.name")
    return Item(task, {info.name: pixels(scaled, declared, info.dtype)}, image)


def scaled_size(image: Image.Image, declared: PageInput) -> tuple[int, int]:
    """Return the width and the height of a picture in the network's input."""
    scale = max(1.0, declared.shortest / min(image.size))
    scale = min(scale, declared.longest / max(image.size))
    width, height = (
        max(1, round(side * scale / declared.multiple)) * declared.multiple for side in image.size
    )
    return width, height


def boxes_of(shares: Array, declared: LineFinder) -> list[Box]:
    """Return the boxes of lines in a map [H, W] of probabilities, likeliest first."""
    cv2 = _opencv()
    core = (shares > declared.threshold).astype(np.uint8)
    outlines, _ = cv2.findContours(core, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    boxes: list[Box] = []
    for outline in outlines:
        (x, y), sides, angle = cv2.minAreaRect(outline)
        # To OpenCV a pixel is a point: here it has a side of 1.
        width, height = sides[0] + 1, sides[1] + 1
        if min(width, height) < _LEAST_SIDE:
            continue
        mask = np.zeros_like(core)
        cv2.fillPoly(mask, [outline], 1)
        score = float(shares[mask == 1].mean())
        if score < declared.box_threshold:
            continue
        added = declared.grow * width * height / (2 * (width + height))
        grown = ((x + 0.5, y + 0.5), (width + 2 * added, height + 2 * added), angle)
        boxes.append(Box(_in_order(cv2.boxPoints(grown)), score))
    boxes.sort(key=lambda box: -box.score)
    return boxes[: declared.max_lines]


def _in_order(corners: Array) -> Array:
    """Return corners [4, 2] clockwise, from the upper one of the two at the left."""
    left, right = np.split(corners[np.argsort(corners[:, 0], kind="stable")], 2)
    left = left[np.argsort(left[:, 1], kind="stable")]
    right = right[np.argsort(right[:, 1], kind="stable")]
    return np.stack([left[0], right[0], right[1], left[1]])


def cut_out(image: Array, corners: Array) -> Array:
    """Return the part [h, w, 3] of a picture [H, W, 3] in these corners."""
    cv2 = _opencv()
    top, right, bottom, left = np.linalg.norm(corners - np.roll(corners, -1, axis=0), axis=1)
    width = max(1, round(float(max(top, bottom))))
    height = max(1, round(float(max(left, right))))
    target = np.array([[0, 0], [width, 0], [width, height], [0, height]], dtype=np.float32)
    # OpenCV's coordinates are those of the middles of pixels.
    matrix = cv2.getPerspectiveTransform(np.float32(corners - 0.5), target - 0.5)
    part: Array = cv2.warpPerspective(
        image,
        matrix,
        (width, height),
        flags=cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return part


def ways_to_read(part: Array) -> list[Array]:
    """Return a part [h, w, 3] of a picture, or if it is tall, both ways to turn it."""
    height, width = part.shape[:2]
    if height < _TALL * width:
        return [part]
    return [np.rot90(part), np.rot90(part, 3)]


def widths_of(part: Array, declared: LineInput) -> tuple[int, int]:
    """Return the width of a line in the network's input, and that of the whole input."""
    height, width = part.shape[:2]
    scaled = min(declared.max_width, max(1, round(width * declared.height / height)))
    return scaled, max(declared.min_width, -(-scaled // _WIDTH_STEP) * _WIDTH_STEP)


def line_row(part: Array, declared: LineInput, dtype: np.dtype[Any]) -> Array:
    """Return a line as a row [1, ...] of the network's input, with zeros behind its end."""
    width, full_width = widths_of(part, declared)
    scaled = Image.fromarray(part).resize((width, declared.height), Image.Resampling.BILINEAR)
    room = [(0, 0)] * 4
    room[_width_axis(declared)] = (0, full_width - width)
    return np.pad(pixels(scaled, declared, dtype), room)


def _width_axis(declared: PixelInput) -> int:
    return 2 if declared.layout == "NHWC" else 3


def _texts(parts: Sequence[Array], loaded: Loaded) -> list[tuple[str, float]]:
    """Return what is written in each part of a picture, and how likely that is."""
    lines = loaded.lines
    assert lines is not None
    declared = loaded.declaration.reader
    by_width: dict[int, list[int]] = {}
    for number, part in enumerate(parts):
        _, width = widths_of(part, declared.input)
        by_width.setdefault(width, []).append(number)

    texts: dict[int, tuple[str, float]] = {}
    size = loaded.max_lines if lines.takes_many else 1
    for numbers in by_width.values():
        for start in range(0, len(numbers), size):
            batch = numbers[start : start + size]
            # Made only now: a page of long lines has more pixels in rows than in its picture.
            rows = [line_row(parts[n], declared.input, lines.input.dtype) for n in batch]
            scores = _scores(lines, np.concatenate(rows))
            if declared.output.layout == "BCT":
                scores = scores.transpose(0, 2, 1)
            shares = probabilities(scores, declared.apply)
            for number, line in zip(batch, shares, strict=True):
                texts[number] = _written(line, lines.names, declared.blank)
    return [texts[number] for number in range(len(parts))]


def _written(shares: Array, names: Sequence[str], blank: int) -> tuple[str, float]:
    """Return the text of a line by its likeliest tokens, given `shares` [T, tokens].

    Its likelihood is the mean of those of its tokens.
    """
    path = shares.argmax(axis=1)
    is_new = path != blank
    is_new[1:] &= path[1:] != path[:-1]
    if not is_new.any():
        return "", 0.0
    text = "".join(names[token] for token in path[is_new])
    return text, float(shares.max(axis=1)[is_new].mean())


def _page(item: Item, outputs: Arrays, loaded: Loaded) -> TaskOutput | FleetError:
    """Return the text of a picture: find its lines, read them, and put them in order."""
    declaration: PageReader = loaded.declaration
    lines = loaded.lines
    assert lines is not None
    [maps] = outputs.values()
    shares = maps.reshape(maps.shape[-2:]) if maps.ndim == 4 and maps.shape[1] == 1 else None
    if shares is None:
        problem = f"{loaded.graph.file.name} gives {list(maps.shape)}, expected [1, 1, H, W]"
        return WorkerFailed(f"{problem}: one map of probabilities.")

    image: Image.Image = item.about
    scale = np.array(image.size) / np.array(shares.shape[::-1])
    boxes = [Box(box.corners * scale, box.score) for box in boxes_of(shares, declaration.finder)]
    pixels_of_image = np.asarray(image)
    # All parts are read together. Those of a box begin at its number in `starts`.
    parts: list[Array] = []
    starts: list[int] = []
    for box in boxes:
        starts.append(len(parts))
        parts += ways_to_read(cut_out(pixels_of_image, box.corners))
    starts.append(len(parts))
    texts = _texts(parts, loaded)
    found: list[TextLine] = []
    for number, box in enumerate(boxes):
        ways = texts[starts[number] : starts[number + 1]]
        text, score = max(ways, key=lambda way: way[1])
        if not np.isfinite(score):
            return broken(loaded.model)
        if text.strip() and score >= item.task.threshold:
            found.append(TextLine(text, score, _corners(box.corners, image)))
    ordered: list[TextLine] = []
    texts_of_rows: list[str] = []
    for row in in_rows(found):
        ordered += row
        texts_of_rows.append(" ".join(line.text for line in row))
    return TaskOutput(PageText("\n".join(texts_of_rows), tuple(ordered)))


def _corners(corners: Array, image: Image.Image) -> tuple[Corner, Corner, Corner, Corner]:
    """Return corners [4, 2] in whole pixels of the picture."""
    limits = (image.width, image.height)
    first, second, third, fourth = np.clip(corners.round(), 0, limits).astype(int).tolist()
    return (tuple(first), tuple(second), tuple(third), tuple(fourth))


def in_rows(lines: Sequence[TextLine]) -> list[list[TextLine]]:
    """Return lines in rows, from top to bottom, those of a row from left to right.

    A line belongs to a row if its middle lies within the height of the row's first one.
    """
    rows: list[list[TextLine]] = []
    for line in sorted(lines, key=_top):
        middle = (_top(line) + _bottom(line)) / 2
        for row in rows:
            if _top(row[0]) <= middle <= _bottom(row[0]):
                row.append(line)
                break
        else:
            rows.append([line])
    for row in rows:
        row.sort(key=lambda line: min(x for x, _ in line.corners))
    return rows


def _top(line: TextLine) -> int:
    return min(y for _, y in line.corners)


def _bottom(line: TextLine) -> int:
    return max(y for _, y in line.corners)


PAGES = {
    "optical-character-recognition": OnnxTask(
        inputs=_inputs,
        outputs=_outputs,
        read=_read,
        output=_page,
        trial=trial_of(ReadPicture, GREY),
    ),
}
