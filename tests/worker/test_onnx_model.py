"""ONNX models answer as onnxruntime does when it is called directly, and their YAML is checked."""

import base64
import io
import itertools
import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import yaml
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image
from redis.asyncio import Redis

from shared.errors import FleetError, InvalidRequest, WorkerFailed
from shared.messages import (
    Classify,
    Done,
    Embed,
    Embedded,
    Generate,
    Labelled,
    Sampling,
    decode_event,
    encode,
)
from shared.settings.settings import ModelEntry, Settings
from shared.tasks import runner_table
from shared.tasks.runner_options import MediaOptions
from shared.tasks.sound import (
    ClassifySound,
    DetectedSpeech,
    DetectSpeech,
    Transcribe,
    Transcript,
)
from shared.tasks.vectors import unpack
from shared.tasks.vision import (
    ClassifyImage,
    DetectedObjects,
    DetectObjects,
    Segmented,
    SegmentImage,
)
from tests.fixtures import onnx_models
from tests.fixtures.onnx_models import (
    CHUNK,
    CONTEXT,
    HOP,
    LABELS,
    SIDE,
    SIGNS,
    Made,
    declared,
    node,
    write_onnx,
)
from tests.fixtures.pictures import encoded, picture
from tests.fixtures.sounds import RATE, tones, wav
from tests.fixtures.tiny_encoder import TEXTS, word_tokenizer
from tests.fixtures.worker.fleets import fleet
from worker.engine.runner import OutOfMemory, RunnerOptions
from worker.engine.task_runner import FilesAtHand, TaskOutput, Unwatched
from worker.host.facts import facts_of
from worker.host.fingerprint import fingerprint
from worker.host.loading import warm_up
from worker.models.errors import ModelFormatError
from worker.models.model_files import weight_bytes
from worker.onnx.declaration import read_declaration
from worker.onnx.graph import Graph
from worker.runners.onnx_model import ONNX_TASKS, OnnxRunner
from worker.runners.registry import detect, load_runner

Array = NDArray[Any]
SIZES = [(64, 32), (48, 96), (16, 16), (70, 50), (3, 2), (300, 2)]


class Watched(Unwatched):
    """A batch whose callers may have left. It counts the reports of each."""

    def __init__(self, *, is_wanted: bool) -> None:
        self._is_wanted = is_wanted
        self.reports: list[tuple[int, int, int | None]] = []

    def report(self, index: int, done: int, total: int | None = None, note: str = "") -> None:
        self.reports.append((index, done, total))

    def is_wanted(self, index: int) -> bool:
        return self._is_wanted


def make(path: Path, **more: Any) -> OnnxRunner:
    runner = load_runner("auto", RunnerOptions(str(path), name="m", **more))
    assert isinstance(runner, OnnxRunner)
    return runner


def made(kind: str, path: Path, graph: Made | None = None, **changes: Any) -> OnnxRunner:
    """Return a model for a task, with changed fields of its YAML."""
    write_onnx(kind, path, graph, **changes)
    return make(path)


def direct(path: Path, **feeds: Array) -> list[Any]:
    """Return the outputs of the graph, by a call of onnxruntime."""
    session = onnxruntime.InferenceSession(path / "model.onnx", providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def run(runner: OnnxRunner, *items: Any) -> list[TaskOutput]:
    outputs = []
    for output in runner.run(items, Unwatched()):
        assert isinstance(output, TaskOutput), output
        done: Done = Done("stop", 0, 0, result=output.result)
        assert decode_event(encode(done)) == done, "it can be sent"
        outputs.append(output)
    return outputs


def answers(runner: OnnxRunner, tasks: Sequence[Any], files: dict[str, bytes]) -> list[TaskOutput]:
    """Return the answer of each task alone. Those of one group get the same together."""
    items = [runner.read(task, FilesAtHand(files)) for task in tasks]
    alone = [run(runner, item)[0] for item in items]
    groups: dict[Any, list[int]] = {}
    for index, item in enumerate(items):
        groups.setdefault(runner.group_key(item), []).append(index)
    assert max(map(len, groups.values())) > 1, "some share a call"
    for indices in groups.values():
        together = run(runner, *[items[index] for index in indices])
        for index, output in zip(indices, together, strict=True):
            assert_alike(output, alone[index])
    return alone


def assert_alike(output: TaskOutput, alone: TaskOutput) -> None:
    """Assert that two outputs are equal but for the last digits."""
    assert output.files == alone.files
    result, expected = output.result, alone.result
    if isinstance(result, Embedded) and isinstance(expected, Embedded):
        assert unpack(result.vector) == pytest.approx(unpack(expected.vector), abs=1e-5)
        return
    numbers = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")
    assert numbers.sub("", repr(result)) == numbers.sub("", repr(expected))
    values = [float(number) for number in numbers.findall(repr(result))]
    others = [float(number) for number in numbers.findall(repr(expected))]
    assert values == pytest.approx(others, abs=1e-5)


def labels_of(output: TaskOutput) -> dict[str, float]:
    assert isinstance(output.result, Labelled)
    scores = [label.score for label in output.result.labels]
    assert scores == sorted(scores, reverse=True)
    return {label.name: label.score for label in output.result.labels}


def softmax(logits: Array) -> Array:
    return torch.tensor(logits).softmax(-1).numpy()


def named(scores: Array) -> dict[str, float]:
    return {
        name: pytest.approx(score, abs=1e-5) for name, score in zip(LABELS, scores, strict=True)
    }


def pictures() -> dict[str, Image.Image]:
    return {f"file-{n}": picture(*size, seed=n) for n, size in enumerate(SIZES)}


def files_of(images: dict[str, Image.Image]) -> dict[str, bytes]:
    return {name: encoded(image) for name, image in images.items()}


def test_every_task_has_a_model() -> None:
    assert set(ONNX_TASKS) == set(onnx_models.ONNX_TASKS)
    assert set(ONNX_TASKS) == set(runner_table.ONNX_TASKS)


@pytest.mark.parametrize("task", onnx_models.ONNX_TASKS)
def test_a_trial_shows_that_it_works(task: str, tmp_path: Path) -> None:
    runner = made(task, tmp_path)
    assert runner.spec.tasks == (task,)
    assert runner.spec.found == f"model.onnx: {task}, in batches"
    assert re.match("(labelled its trial|embedded a text|did a )", warm_up(runner))
    with pytest.raises(InvalidRequest, match="does not serve 'generate'"):
        runner.read(Generate("a", Sampling(1, seed=1)), FilesAtHand({}))


def contained(image: Image.Image) -> Image.Image:
    """Return the picture scaled to fit the input, with a pixel each way at least."""
    scale = min(SIDE / image.width, SIDE / image.height)
    sides = [max(1, round(side * scale)) for side in image.size]
    return image.resize((sides[0], sides[1]), Image.Resampling.BILINEAR)


def letterboxed(image: Image.Image, border: int, *, is_centred: bool) -> Image.Image:
    inside = contained(image)
    canvas = np.full((SIDE, SIDE, 3), border, dtype=np.uint8)
    top = (SIDE - inside.height) // 2 if is_centred else 0
    left = (SIDE - inside.width) // 2 if is_centred else 0
    canvas[top : top + inside.height, left : left + inside.width] = np.asarray(inside)
    return Image.fromarray(canvas)


def cropped(image: Image.Image, share: float) -> Image.Image:
    shorter = round(SIDE / share)
    if image.width < image.height:
        scaled = image.resize((shorter, shorter * image.height // image.width))
    else:
        scaled = image.resize((shorter * image.width // image.height, shorter))
    left = (scaled.width - SIDE) // 2
    top = (scaled.height - SIDE) // 2
    return scaled.crop((left, top, left + SIDE, top + SIDE))


def stretched(image: Image.Image) -> Image.Image:
    return image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)


LOOKS: dict[str, tuple[dict[str, Any], Any]] = {
    "plain": ({}, lambda image: np.asarray(stretched(image)) / 255),
    "nearest": (
        {"resample": "nearest"},
        lambda image: np.asarray(image.resize((SIDE, SIDE), Image.Resampling.NEAREST)) / 255,
    ),
    "normalised": (
        {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]},
        lambda image: (
            (np.asarray(stretched(image)) / 255 - [0.5, 0.4, 0.3]) / np.array([0.2, 0.3, 0.4])
        ),
    ),
    "blue first, 0 to 255": (
        {"colours": "BGR", "scale": 1, "mean": [127], "std": [128]},
        lambda image: (np.asarray(stretched(image)).astype(float)[..., ::-1] - 127) / 128,
    ),
    "letterbox": (
        {"resize": "letterbox", "border": 114},
        lambda image: np.asarray(letterboxed(image, 114, is_centred=True)) / 255,
    ),
    "letterbox in the corner": (
        {"resize": "letterbox", "align": "corner"},
        lambda image: np.asarray(letterboxed(image, 0, is_centred=False)) / 255,
    ),
}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("look", LOOKS)
def test_pictures_become_inputs_as_declared(look: str, channels_last: bool, tmp_path: Path) -> None:
    fields, expected_pixels = LOOKS[look]
    layout = "NHWC" if channels_last else "NCHW"
    graph = onnx_models.picture_classifier(channels_last=channels_last)
    runner = made(
        "image-classification",
        tmp_path,
        graph,
        input={"layout": layout, "size": [SIDE, SIDE], "dtype": "float32", **fields},
    )
    images = pictures()
    outputs = answers(runner, [ClassifyImage(name) for name in images], files_of(images))

    assert len({repr(output.result) for output in outputs}) == len(SIZES)
    for image, output in zip(images.values(), outputs, strict=True):
        pixels = expected_pixels(image)
        if not channels_last:
            pixels = pixels.transpose(2, 0, 1)
        [logits] = direct(tmp_path, pixels=pixels[None].astype(np.float32))
        assert labels_of(output) == named(softmax(logits[0]))


@pytest.mark.parametrize(("share", "size"), [(1.0, (64, 32)), (0.5, (48, 96)), (0.5, (96, 48))])
def test_the_middle_of_a_picture_is_cut_out(
    share: float, size: tuple[int, int], tmp_path: Path
) -> None:
    runner = made(
        "image-classification",
        tmp_path,
        input={"resize": "crop", "crop_pct": share, "resample": "bicubic"},
    )
    image = picture(*size)
    item = runner.read(ClassifyImage("x"), FilesAtHand({"x": encoded(image)}))
    pixels = np.asarray(cropped(image, share), dtype=np.float32) / 255
    [logits] = direct(tmp_path, pixels=pixels.transpose(2, 0, 1)[None])
    [output] = run(runner, item)
    scores = {name: pytest.approx(score, abs=0.02) for name, score in labels_of(output).items()}
    assert dict(zip(LABELS, softmax(logits[0]), strict=True)) == scores


@pytest.mark.parametrize("resize", ["stretch", "crop", "letterbox"])
def test_pictures_of_any_size_are_taken(resize: str, tmp_path: Path) -> None:
    """Also very long ones, and those whose sides are no multiples of the input's."""
    runner = made("image-classification", tmp_path, input={"resize": resize})
    sizes = np.random.default_rng(0).integers(1, 400, (100, 2)).tolist()
    for width, height in [(1, 1), (1, 5000), (5000, 1), *sizes]:
        data = encoded(Image.new("RGB", (width, height), (0, 100, 255)))
        item = runner.read(ClassifyImage("x"), FilesAtHand({"x": data}))
        pixels = item.rows["pixels"][0]
        assert pixels.shape == (3, SIDE, SIDE)
        if resize != "letterbox":
            # A picture of one colour has that colour everywhere.
            assert np.allclose(pixels, np.array([0, 100, 255])[:, None, None] / 255)


def test_bytes_and_grey(tmp_path: Path) -> None:
    """Whole numbers are taken as they are, and grey has one channel."""
    shape = ("n", SIDE, SIDE, 1)
    graph = Made(
        [
            node("Cast", "pixels", "floats", to=TensorProto.FLOAT),
            node("Flatten", "floats", "flat", axis=1),
            node("MatMul", "flat w", "scores"),
        ],
        {"w": onnx_models.random(SIDE * SIDE, 3, scale=0.001)},
        {"pixels": (TensorProto.UINT8, shape)},
        {"scores": (TensorProto.FLOAT, ("n", 3))},
    )
    runner = made(
        "image-classification",
        tmp_path,
        graph,
        input={"layout": "NHWC", "colours": "grey", "dtype": "uint8"},
        output={"apply": "sigmoid"},
    )
    image = picture()
    [output] = run(runner, runner.read(ClassifyImage("x"), FilesAtHand({"x": encoded(image)})))
    grey = np.asarray(stretched(image).convert("L"))
    [scores] = direct(tmp_path, pixels=grey[None, :, :, None])
    assert labels_of(output) == named(torch.tensor(scores[0]).sigmoid().numpy())


def test_only_the_likeliest_are_returned(tmp_path: Path) -> None:
    runner = made("image-classification", tmp_path)
    files = FilesAtHand({"x": encoded(picture())})
    [one] = run(runner, runner.read(ClassifyImage("x", top_k=1), files))
    [all_labels] = run(runner, runner.read(ClassifyImage("x"), files))
    assert list(labels_of(one)) == list(labels_of(all_labels))[:1]


Corners = tuple[float, float, float, float]


def as_corners(box: Sequence[float], form: str) -> Corners:
    one, two, three, four = box
    if form == "xyxy":
        return one, two, three, four
    if form == "yxyx":
        return two, one, four, three
    if form == "xywh":
        return one, two, one + three, two + four
    return one - three / 2, two - four / 2, one + three / 2, two + four / 2


def overlap(one: Corners, other: Corners) -> float:
    """Return the intersection over union of two boxes."""
    width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = [max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1]) for box in (one, other)]
    union = sum(areas) - width * height
    return width * height / union if union else 0.0


Seen = tuple[str, float, tuple[int, int, int, int]]


def expected_objects(
    rows: Array,
    image: Image.Image,
    *,
    form: str,
    threshold: float,
    iou: float,
    across: bool = False,
) -> list[Seen]:
    """Return the objects in the rows (box, score of each class) of a letterboxed picture."""
    candidates = []
    for row in rows.tolist():
        scores = row[4:]
        number = scores.index(max(scores))
        if scores[number] > threshold:
            candidates.append((scores[number], number, as_corners(row[:4], form)))
    candidates.sort(key=lambda one: -one[0])
    kept: list[tuple[float, int, Corners]] = []
    for score, number, box in candidates:
        rivals = [one for one in kept if across or one[1] == number]
        if all(overlap(one[2], box) <= iou for one in rivals):
            kept.append((score, number, box))

    inside = contained(image)
    left = (SIDE - inside.width) // 2
    top = (SIDE - inside.height) // 2
    seen = []
    for score, number, box in kept:
        xmin, xmax = ((x - left) * image.width / inside.width for x in (box[0], box[2]))
        ymin, ymax = ((y - top) * image.height / inside.height for y in (box[1], box[3]))
        corners = (
            round(min(max(xmin, 0), image.width)),
            round(min(max(ymin, 0), image.height)),
            round(min(max(xmax, 0), image.width)),
            round(min(max(ymax, 0), image.height)),
        )
        if corners[0] < corners[2] and corners[1] < corners[3]:
            seen.append((LABELS[number], pytest.approx(score, abs=1e-5), corners))
    return seen


def objects_of(output: TaskOutput) -> list[Seen]:
    assert isinstance(output.result, DetectedObjects)
    return [
        (one.label, one.score, (one.xmin, one.ymin, one.xmax, one.ymax))
        for one in output.result.objects
    ]


def letterboxed_row(image: Image.Image) -> Array:
    """Return the input of the tiny detector and segmenter."""
    pixels = np.asarray(letterboxed(image, 0, is_centred=True)) / 255
    pixels = (pixels - [0.5, 0.4, 0.3]) / np.array([0.2, 0.3, 0.4])
    return pixels.transpose(2, 0, 1)[None].astype(np.float32)


@pytest.mark.parametrize("form", ["xyxy", "yxyx", "xywh", "cxcywh"])
@pytest.mark.parametrize("columns_first", [False, True])
def test_objects_are_found_as_by_hand(form: str, columns_first: bool, tmp_path: Path) -> None:
    layout = "BCN" if columns_first else "BNC"
    output = {
        "boxes": {"name": "objects", "columns": [0, 4], "format": form, "layout": layout},
        "scores": {"columns": [4, 7], "layout": layout},
    }
    graph = onnx_models.detector(columns_first=columns_first)
    runner = made("object-detection", tmp_path, graph, output=output)
    images = pictures()
    outputs = answers(runner, [DetectObjects(name, 0.4) for name in images], files_of(images))

    num_objects = 0
    num_suppressed = 0
    for image, found in zip(images.values(), outputs, strict=True):
        [rows] = direct(tmp_path, pixels=letterboxed_row(image))
        rows = rows[0].T if columns_first else rows[0]
        expected = expected_objects(rows, image, form=form, threshold=0.4, iou=0.3)
        everything = expected_objects(rows, image, form=form, threshold=0.4, iou=1.0)
        assert objects_of(found) == expected
        num_objects += len(expected)
        num_suppressed += len(everything) - len(expected)
    assert num_objects > 5
    assert form in ("xyxy", "yxyx") or num_suppressed > 0


def test_suppression_may_be_off_or_across_classes(tmp_path: Path) -> None:
    image = picture(64, 32)
    files = FilesAtHand({"x": encoded(image)})
    counts = []
    for number, nms in enumerate([None, {"iou": 0.2}, {"iou": 0.2, "across_classes": True}]):
        path = tmp_path / str(number)
        runner = made("object-detection", path, nms=nms)
        [found] = run(runner, runner.read(DetectObjects("x", 0.0), files))
        [rows] = direct(path, pixels=letterboxed_row(image))
        expected = expected_objects(
            rows[0],
            image,
            form="cxcywh",
            threshold=0.0,
            iou=1.0 if nms is None else 0.2,
            across=number == 2,
        )
        assert objects_of(found) == expected
        counts.append(len(expected))
    assert counts[0] > counts[1] > counts[2] > 0


def test_boxes_in_shares_with_classes_and_objectness(tmp_path: Path) -> None:
    """Scores times objectness, numbers of classes in a column, and one of them is no object."""
    graph = onnx_models.detector()
    graph.weights["scales"][:] = 1
    changes: dict[str, Any] = {
        "output": {
            "boxes": {"columns": [0, 4], "format": "cxcywh", "units": "shares"},
            "scores": {"columns": [4, 5]},
            "classes": {"columns": [5, 6]},
            "objectness": {"columns": [6, 7]},
        },
        "nms": None,
        "max_objects": 3,
    }
    image = picture(64, 32)
    files = FilesAtHand({"x": encoded(image)})
    runner = made("object-detection", tmp_path / "all", graph, **changes)
    [found] = run(runner, runner.read(DetectObjects("x", 0.0), files))
    [rows] = direct(tmp_path / "all", pixels=letterboxed_row(image))
    rows = rows[0].astype(np.float64)
    numbers = rows[:, 5].round().astype(int)
    flat = np.zeros((len(rows), 7))
    flat[:, :4] = rows[:, :4] * SIDE
    flat[np.arange(len(rows)), 4 + numbers] = rows[:, 4] * rows[:, 6]
    assert set(numbers) == {0, 1}
    expected = expected_objects(flat, image, form="cxcywh", threshold=0.0, iou=1.0)
    assert objects_of(found) == expected[: len(objects_of(found))]
    assert 0 < len(objects_of(found)) <= 3

    runner = made("object-detection", tmp_path / "some", graph, **changes, background=0)
    [found] = run(runner, runner.read(DetectObjects("x", 0.0), files))
    assert objects_of(found)
    assert {label for label, _, _ in objects_of(found)} == {LABELS[1]}


def masks_of(output: TaskOutput) -> dict[str, Array]:
    assert isinstance(output.result, Segmented)
    masks = {}
    for segment, file in zip(output.result.segments, output.files, strict=True):
        mask = np.asarray(Image.open(io.BytesIO(file.data)))
        assert set(np.unique(mask)) <= {0, 255}
        assert segment.area == pytest.approx((mask == 255).mean())
        assert segment.area > 0
        masks[segment.label] = mask == 255
    return masks


def scaled_maps(path: Path, image: Image.Image) -> Array:
    """Return the maps [classes, height, width] in the picture's own size, by torch."""
    [maps] = direct(path, pixels=letterboxed_row(image))
    inside = contained(image)
    top = (SIDE - inside.height) // 2 // 2
    left = (SIDE - inside.width) // 2 // 2
    part = maps[:, :, top : top + inside.height // 2, left : left + inside.width // 2]
    size = (image.height, image.width)
    interpolate = torch.nn.functional.interpolate
    return interpolate(torch.tensor(part), size, mode="bilinear", align_corners=False)[0].numpy()


@pytest.mark.parametrize("apply", ["softmax", "sigmoid"])
def test_segments_are_maps_in_the_size_of_the_picture(apply: str, tmp_path: Path) -> None:
    """The border of a letterbox is cut off. Softmax: each pixel has a class. Sigmoid: or several."""
    runner = made("image-segmentation", tmp_path, output={"apply": apply})
    # Sizes whose letterbox is a whole number of pixels of the maps.
    images = {f"file-{n}": picture(*size, seed=n) for n, size in enumerate([(64, 32), (32, 64)])}
    tasks = [SegmentImage(name, mask_threshold=0.6) for name in images]
    for image, output in zip(
        images.values(), answers(runner, tasks, files_of(images)), strict=True
    ):
        maps = scaled_maps(tmp_path, image)
        masks = masks_of(output)
        if apply == "softmax":
            expected = {name: maps.argmax(0) == number for number, name in enumerate(LABELS)}
            assert sum(mask.mean() for mask in masks.values()) == pytest.approx(1)
        else:
            # A sigmoid and bilinear scaling do not change places: compare roughly.
            limit = math.log(0.6 / 0.4)
            expected = {name: maps[number] > limit for number, name in enumerate(LABELS)}
        expected = {name: mask for name, mask in expected.items() if mask.any()}
        assert masks.keys() == expected.keys()
        assert len(masks) > 1
        for name, mask in masks.items():
            most = 0.002 if apply == "softmax" else 0.06
            assert (mask != expected[name]).mean() < most


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
def test_masks_have_the_size_of_any_picture(resize: str, tmp_path: Path) -> None:
    runner = made("image-segmentation", tmp_path, input={"resize": resize})
    images = pictures()
    tasks = [SegmentImage(name) for name in images]
    outputs = answers(runner, tasks, files_of(images))
    for image, output in zip(images.values(), outputs, strict=True):
        masks = masks_of(output)
        shapes = {mask.shape for mask in masks.values()}
        assert shapes == {(image.height, image.width)}
        # Each pixel has one class.
        assert (sum(mask.astype(int) for mask in masks.values()) == 1).all()


def test_a_graph_may_tell_classes_itself(tmp_path: Path) -> None:
    graph = onnx_models.segmenter()
    graph.nodes.append(node("ArgMax", "maps", "numbers", axis=1, keepdims=0))
    half = SIDE // 2
    graph.outputs.clear()
    graph.outputs["numbers"] = (TensorProto.INT64, ("n", half, half))
    changes = {"input": {"mean": [0.5], "std": [0.2]}, "output": {"layout": "NHW"}}
    image = picture(32, 32)
    files = FilesAtHand({"x": encoded(image)})
    runner = made("image-segmentation", tmp_path / "all", graph, **changes)
    [output] = run(runner, runner.read(SegmentImage("x"), files))
    pixels = (np.asarray(stretched(image)) / 255 - 0.5) / 0.2
    row = pixels.transpose(2, 0, 1)[None].astype(np.float32)
    [numbers] = direct(tmp_path / "all", pixels=row)
    wide = numbers[0].repeat(4, axis=0).repeat(4, axis=1)
    for name, mask in masks_of(output).items():
        assert (mask == (wide == LABELS.index(name))).all()
    names = list(masks_of(output))
    assert len(names) > 1

    background = LABELS.index(names[0])
    runner = made("image-segmentation", tmp_path / "b", graph, **changes, background=background)
    [output] = run(runner, runner.read(SegmentImage("x"), files))
    assert list(masks_of(output)) == names[1:]


SAME_LENGTH = ("bad bad bad", "good film bad", "very very long")


@pytest.mark.parametrize("length", [None, 12])
def test_texts_are_labelled_as_by_hand(length: int | None, tmp_path: Path) -> None:
    runner = made("classify", tmp_path, input={"length": length})
    texts = [*TEXTS, *SAME_LENGTH]
    tokenizer = word_tokenizer()
    for text, output in zip(texts, answers(runner, list(map(Classify, texts)), {}), strict=True):
        ids = tokenizer(text)["input_ids"]
        if length is not None and len(ids) > length:
            # It loses tokens before its mark at the end.
            ids = [*ids[: length - 1], ids[-1]]
        width = length or len(ids)
        padded = np.zeros((1, width), dtype=np.int64)
        padded[0, : len(ids)] = ids
        mask = np.zeros((1, width), dtype=np.int64)
        mask[0, : len(ids)] = 1
        [logits] = direct(tmp_path, input_ids=padded, attention_mask=mask)
        assert labels_of(output) == named(softmax(logits[0]))


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_texts_become_vectors_as_by_hand(pooling: str, tmp_path: Path) -> None:
    runner = made("embed", tmp_path, output={"name": "states", "pooling": pooling})
    texts = [*TEXTS, *SAME_LENGTH]
    tokenizer = word_tokenizer()
    for normalize in (True, False):
        tasks = [Embed(text, normalize) for text in texts]
        for text, output in zip(texts, answers(runner, tasks, {}), strict=True):
            ids = np.array([tokenizer(text)["input_ids"]])
            [states] = direct(tmp_path, input_ids=ids, attention_mask=np.ones_like(ids))
            vector = states[0].mean(0) if pooling == "mean" else states[0, 0]
            if normalize:
                vector = vector / np.linalg.norm(vector)
            assert isinstance(output.result, Embedded)
            assert unpack(output.result.vector) == pytest.approx(vector.tolist(), abs=1e-5)


def test_padding_takes_no_part_in_a_mean(tmp_path: Path) -> None:
    short = made("embed", tmp_path / "short")
    padded = made("embed", tmp_path / "padded", input={"length": 20})
    [one] = run(short, short.read(Embed("very good"), FilesAtHand({})))
    [other] = run(padded, padded.read(Embed("very good"), FilesAtHand({})))
    assert_alike(other, one)


def test_a_fixed_length_is_that_of_the_graph(tmp_path: Path) -> None:
    graph = onnx_models.reader(is_classifier=True, rows=1, length=10)
    runner = made("classify", tmp_path, graph)
    assert runner.spec.context_window == 10
    assert runner.spec.found.endswith("one by one")
    [output] = run(runner, runner.read(Classify(TEXTS[-1]), FilesAtHand({})))
    ids = word_tokenizer()(TEXTS[-1])["input_ids"]
    ids = np.array([[*ids[:9], ids[-1]]])
    [logits] = direct(tmp_path, input_ids=ids, attention_mask=np.ones_like(ids))
    assert labels_of(output) == named(softmax(logits[0]))


def sounds() -> dict[str, Array]:
    return {
        "a": tones(440, 880, seconds=0.5),
        "b": tones(300, seconds=0.5),
        "c": tones(100, 2000, seconds=0.73),
        "d": tones(700, seconds=0.01),
    }


def heard(samples: Array) -> Array:
    """Return the samples that come back from a WAV file of 16 bits."""
    return ((samples * 32_767).round() / 32_768).astype(np.float32)


def sound_files() -> dict[str, bytes]:
    return {name: wav(samples) for name, samples in sounds().items()}


def test_sounds_are_labelled_as_by_hand(tmp_path: Path) -> None:
    runner = made("audio-classification", tmp_path)
    outputs = answers(runner, [ClassifySound(name) for name in sounds()], sound_files())
    for samples, output in zip(sounds().values(), outputs, strict=True):
        # A tenth of a second at least.
        padded = np.pad(heard(samples), (0, max(0, RATE // 10 - len(samples))))
        [logits] = direct(tmp_path, samples=padded[None])
        assert labels_of(output) == named(softmax(logits[0]))


def test_long_sounds_are_labelled_in_windows(tmp_path: Path) -> None:
    length = 3200
    runner = made(
        "audio-classification", tmp_path, input={"rate": RATE, "samples": length, "normalize": True}
    )
    outputs = answers(runner, [ClassifySound(name) for name in sounds()], sound_files())
    for sound, output in zip(sounds().values(), outputs, strict=True):
        samples = heard(sound)
        samples = (samples - samples.mean()) / samples.std()
        scores = []
        for start in range(0, len(samples), length):
            window = samples[start : start + length]
            window = np.pad(window, (0, length - len(window)))
            [logits] = direct(tmp_path, samples=window[None])
            scores.append(softmax(logits[0]))
        assert labels_of(output) == {
            name: pytest.approx(score, abs=1e-4)
            for name, score in zip(LABELS, np.mean(scores, axis=0), strict=True)
        }


def collapsed(path: Sequence[int]) -> str:
    signs = [SIGNS[token] for token, _ in itertools.groupby(path)]
    return " ".join("".join(signs).replace("|", " ").split())


def test_a_transcript_is_that_of_the_best_path(tmp_path: Path) -> None:
    runner = made("automatic-speech-recognition", tmp_path)
    outputs = answers(runner, [Transcribe(name) for name in sounds()], sound_files())
    texts = []
    for samples, output in zip(sounds().values(), outputs, strict=True):
        padded = np.pad(heard(samples), (0, max(0, RATE // 10 - len(samples))))
        [logits] = direct(tmp_path, samples=padded[None])
        assert isinstance(output.result, Transcript)
        assert output.result.text == collapsed(logits[0].argmax(-1).tolist())
        assert output.result.seconds == pytest.approx(len(samples) / RATE)
        texts.append(output.result.text)
    assert len(set(texts)) > 1

    for task in (Transcribe("a", language="en"), Transcribe("a", translate=True)):
        with pytest.raises(InvalidRequest, match="one language"):
            runner.read(task, FilesAtHand(sound_files()))


def level_reader(columns_first: bool = False) -> Made:
    """Return a graph that writes the token whose tenth is the first sample of each hop."""
    kernel = np.zeros((1, 1, HOP), dtype=np.float32)
    kernel[0, 0, 0] = 10
    nodes = [
        node("Unsqueeze", "samples one", "channel"),
        node("Conv", "channel w", "levels", strides=[HOP]),
        node("Sub", "levels tokens", "far"),
        node("Mul", "far far", "squares"),
        node("Neg", "squares", "scores" if columns_first else "wide"),
    ]
    shape = ("n", len(SIGNS), "frames")
    if not columns_first:
        nodes.append(node("Transpose", "wide", "scores", perm=[0, 2, 1]))
        shape = ("n", "frames", len(SIGNS))
    return Made(
        nodes,
        {
            "w": kernel,
            "one": np.array([1]),
            "tokens": np.arange(len(SIGNS), dtype=np.float32)[None, :, None],
        },
        {"samples": (TensorProto.FLOAT, ("n", "t"))},
        {"scores": (TensorProto.FLOAT, shape)},
    )


@pytest.mark.parametrize("columns_first", [False, True])
def test_repeats_blanks_and_spaces(columns_first: bool, tmp_path: Path) -> None:
    # a a _ a | | b _ _ c c _ | d, each for a hundredth of a second
    path = [2, 2, 0, 2, 1, 1, 3, 0, 0, 4, 4, 0, 1, 5]
    samples = np.repeat(np.array(path, dtype=np.float32) / 10, HOP)
    files = FilesAtHand({"x": wav(samples)})
    runner = made(
        "automatic-speech-recognition",
        tmp_path,
        level_reader(columns_first),
        output={"layout": "BCT" if columns_first else "BTC"},
    )
    [output] = run(runner, runner.read(Transcribe("x", "word"), files))
    assert isinstance(output.result, Transcript)
    assert output.result.text == "aa bc d"
    assert output.result.seconds == pytest.approx(0.14)
    parts = [(one.text, one.start, one.end) for one in output.result.parts]
    assert parts == [
        ("aa", pytest.approx(0.0), pytest.approx(0.04)),
        ("bc", pytest.approx(0.06), pytest.approx(0.11)),
        ("d", pytest.approx(0.13), pytest.approx(0.14)),
    ]


def test_words_of_pieces_and_windows(tmp_path: Path) -> None:
    """A token may begin a word. A window's edge is no edge of a word; the rest is silence."""
    vocabulary = ["<blank>", "▁the", "▁c", "a", "t", "s"]
    path = [1, 2, 3, 4, 0, 5, 0, 1]
    samples = np.repeat(np.array(path, dtype=np.float32) / 10, HOP)
    (tmp_path / "words.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    runner = made(
        "automatic-speech-recognition",
        tmp_path,
        level_reader(),
        input={"rate": RATE, "samples": 3 * HOP},
        vocabulary="words.txt",
        space="▁",
    )
    [output] = run(runner, runner.read(Transcribe("x"), FilesAtHand({"x": wav(samples)})))
    assert isinstance(output.result, Transcript)
    assert output.result.text == "the cats the"
    assert output.result.parts == ()


def speech_like() -> Array:
    """Return silence and tones by turns, two of them weak and short."""
    pieces = []
    for seconds, size in [
        (0.3, 0.0),
        (0.8, 0.8),
        (0.1, 0.0),
        (0.4, 0.6),
        (0.6, 0.02),
        (0.1, 0.8),
        (0.7, 0.0),
        (0.5, 0.33),
        (0.05, 0.5),
    ]:
        pieces.append(size * tones(300, seconds=seconds))
    return np.concatenate(pieces).astype(np.float32)


def direct_probabilities(path: Path, samples: Array) -> list[float]:
    """Return the probability of each chunk, from one call after the other."""
    state = np.zeros((2, 1, 4), dtype=np.float32)
    padded = np.concatenate([np.zeros(CONTEXT, dtype=np.float32), heard(samples)])
    padded = np.pad(padded, (0, -len(samples) % CHUNK))
    probabilities = []
    for start in range(CONTEXT, len(padded), CHUNK):
        given = padded[start - CONTEXT : start + CHUNK]
        output, state = direct(path, input=given[None], state=state, sr=np.array(RATE))
        probabilities.append(float(output[0, 0]))
    return probabilities


def expected_speech(
    probabilities: list[float], task: DetectSpeech, seconds: float
) -> list[tuple[float, float, float]]:
    """Return the parts with speech: written as letters, and found by patterns."""
    letters = ""
    for probability in probabilities:
        if probability >= task.threshold:
            letters += "S"
        else:
            letters += "m" if probability >= task.threshold - 0.15 else "q"
    chunk_s = CHUNK / RATE
    spans = [match.span() for match in re.finditer("S[Sm]*", letters)]
    joined = [spans[0]]
    for first, end in spans[1:]:
        if (first - joined[-1][1]) * chunk_s < task.min_silence_s:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((first, end))
    parts = []
    for first, end in joined:
        end_s = min(end * chunk_s, seconds)
        if end_s - first * chunk_s >= task.min_speech_s:
            mean = sum(probabilities[first:end]) / (end - first)
            parts.append((first * chunk_s, end_s, mean))
    return parts


def speech_of(output: TaskOutput) -> list[tuple[Any, Any, Any]]:
    assert isinstance(output.result, DetectedSpeech)
    return [
        (
            pytest.approx(one.start),
            pytest.approx(one.end),
            pytest.approx(one.score, abs=1e-5),
        )
        for one in output.result.parts
    ]


def test_speech_is_found_chunk_by_chunk(tmp_path: Path) -> None:
    runner = made("voice-activity-detection", tmp_path)
    samples = speech_like()
    # Of the same length, and of others, of which one shares calls.
    sounds_of = {
        "a": samples,
        "b": samples[::-1],
        "c": samples[:9000],
        "d": samples[3000:],
    }
    files = {name: wav(sound.copy()) for name, sound in sounds_of.items()}
    tasks = [
        DetectSpeech("a"),
        DetectSpeech("b"),
        DetectSpeech("c"),
        DetectSpeech("d"),
        DetectSpeech("a", threshold=0.3),
        DetectSpeech("a", min_silence_s=0.5),
        DetectSpeech("a", min_speech_s=0.0),
        DetectSpeech("a", min_speech_s=1.0),
    ]
    outputs = answers(runner, tasks, files)
    for task, output in zip(tasks, outputs, strict=True):
        given = sounds_of[task.audio]
        probabilities = direct_probabilities(tmp_path, given)
        expected = expected_speech(probabilities, task, len(given) / RATE)
        assert speech_of(output) == expected, task
    keys = [runner.group_key(runner.read(task, FilesAtHand(files))) for task in tasks]
    assert keys[0] == keys[3] != keys[2]
    counts = [len(speech_of(output)) for output in outputs]
    assert len(set(counts)) > 2, "the options matter"


def test_progress_is_told_and_work_that_nobody_wants_ends(tmp_path: Path) -> None:
    runner = made("voice-activity-detection", tmp_path)
    files = FilesAtHand({"x": wav(tones(300, seconds=5))})
    item = runner.read(DetectSpeech("x"), files)
    watched = Watched(is_wanted=True)
    runner.run([item, item], watched)
    total = math.ceil(5 * RATE / CHUNK)
    assert [report for report in watched.reports if report[0] == 1] == [
        (1, done, total) for done in range(0, total, 64)
    ]

    left = Watched(is_wanted=False)
    [output] = runner.run([item], left)
    assert left.reports == []
    assert isinstance(output, TaskOutput)


def test_a_graph_of_one_row_takes_one_after_the_other(tmp_path: Path) -> None:
    cases = [
        ("image-classification", onnx_models.picture_classifier(rows=1)),
        ("voice-activity-detection", onnx_models.voice_detector(rows=1)),
    ]
    files = {"x": encoded(picture()), "y": encoded(picture(seed=1))}
    sounds_of = {"x": wav(speech_like()), "y": wav(speech_like()[::-1].copy())}
    for task, graph in cases:
        fixed = made(task, tmp_path / task / "fixed", graph)
        free = made(task, tmp_path / task / "free")
        assert fixed.spec.found == f"model.onnx: {task}, one by one"
        ask: Any = DetectSpeech if task == "voice-activity-detection" else ClassifyImage
        given = sounds_of if task == "voice-activity-detection" else files
        for one, other in zip(
            answers(fixed, [ask("x"), ask("y")], given),
            answers(free, [ask("x"), ask("y")], given),
            strict=True,
        ):
            assert_alike(one, other)


def test_no_more_rows_than_a_batch_share_a_call(tmp_path: Path) -> None:
    """A sound of many windows is done in several calls."""
    write_onnx("audio-classification", tmp_path, input={"rate": RATE, "samples": 800})
    whole = make(tmp_path, max_batch=64)
    parts = make(tmp_path, max_batch=3)
    tasks = [ClassifySound(name) for name in sounds()]
    for one, other in zip(
        answers(whole, tasks, sound_files()), answers(parts, tasks, sound_files()), strict=True
    ):
        assert_alike(one, other)


def mixing() -> Made:
    """Return a classifier whose answers depend on the rows beside them."""
    graph = onnx_models.picture_classifier()
    graph.nodes[-1] = node("MatMul", "flat w", "bare")
    graph.nodes.append(node("ReduceMean", "bare", "mean", axes=[0], keepdims=1))
    graph.nodes.append(node("Sub", "bare mean", "logits"))
    return graph


def traced_with_one() -> Made:
    """Return a classifier that says it takes many rows, but answers the first alone."""
    graph = onnx_models.picture_classifier()
    graph.nodes[0] = node("Flatten", "pixels", "all", axis=1)
    graph.nodes.insert(1, node("Shape", "pixels", "count", end=1))
    graph.nodes.insert(2, node("Min", "count one", "last"))
    graph.nodes.insert(3, node("Slice", "all zero last zero", "flat"))
    graph.weights["one"] = np.array([1])
    graph.weights["zero"] = np.array([0])
    return graph


@pytest.mark.parametrize(
    ("graph", "words"), [(mixing, "answers otherwise"), (traced_with_one, "cannot do two inputs")]
)
def test_a_graph_that_cannot_be_batched_is_refused(graph: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match=f"{words}.*one_by_one: true"):
        made("image-classification", tmp_path / "batched", graph())
    runner = made("image-classification", tmp_path / "alone", graph(), one_by_one=True)
    files = {"x": encoded(picture()), "y": encoded(picture(seed=1))}
    answers(runner, [ClassifyImage("x"), ClassifyImage("y")], files)


def test_numbers_that_are_none_are_an_error(tmp_path: Path) -> None:
    """They fail the task that has them, and no other."""
    runner = made("image-classification", tmp_path / "right")
    files = FilesAtHand({"x": encoded(picture())})
    items = [runner.read(ClassifyImage("x"), files) for _ in range(2)]
    items[0].rows["pixels"][0, 0, 0, 0] = float("nan")
    first, second = runner.run(items, Unwatched())
    assert isinstance(first, WorkerFailed)
    assert isinstance(second, TaskOutput)

    graph = onnx_models.picture_classifier()
    graph.weights["w"][0, 0] = float("inf")
    broken = made("image-classification", tmp_path / "broken", graph)
    with pytest.raises(FleetError, match="not finite"):
        warm_up(broken)


_PICTURE_INPUT = declared("image-classification")["input"]
_OBJECTS = declared("object-detection")["output"]
_VOICE = declared("voice-activity-detection")
WRONG: list[tuple[str, dict[str, Any], str, str]] = [
    ("image-classification", {"task": "image-generation"}, "task", "expected .*got 'image-gen"),
    ("image-classification", {"task": None}, "task", "expected"),
    ("image-classification", {"labels": None}, "labels", "expected a list of texts"),
    ("image-classification", {"labels": [True, False]}, "labels", "quote yes, no and numbers"),
    ("image-classification", {"labels": "../names.txt"}, "labels", "in this directory"),
    ("image-classification", {"labels": "names.txt"}, "names.txt", "cannot be read"),
    ("image-classification", {"input": {"size": [16]}}, "input.size.1", "required"),
    ("image-classification", {"input": {"size": [32, 32]}}, "input.size", "as declared"),
    ("image-classification", {"input": {"size": [0, 16]}}, "input.size.0", "greater than"),
    ("image-classification", {"input": {"layout": "NHWC"}}, "input.size", "as declared"),
    ("image-classification", {"input": {"resize": "fit"}}, "input.resize", "'stretch', 'crop'"),
    ("image-classification", {"input": {"mean": [1, 2]}}, "input.mean", "expected one number"),
    ("image-classification", {"input": {"std": [0]}}, "input.std.0", "greater than 0"),
    ("image-classification", {"input": {"scale": "x"}}, "input.scale", "valid number"),
    ("image-classification", {"input": {"dtype": "uint8"}}, "input.dtype", "takes float32"),
    ("image-classification", {"input": {"crop_pct": 0.5}}, "input.crop_pct", "without resize"),
    ("image-classification", {"input": {"name": "x"}}, "input.name", "expected one of pixels"),
    ("image-classification", {"input": {"colors": "RGB"}}, "input.colors", "no field of that"),
    ("image-classification", {"output": {"name": "x"}}, "output.name", "one of logits"),
    ("image-classification", {"output": {"apply": "exp"}}, "output.apply", "'softmax'"),
    ("image-classification", {"constants": {"sr": 5}}, "input", "no input 'sr'"),
    ("image-classification", {"constants": {"pixels": 5}}, "input", "declared twice"),
    ("image-classification", {"constants": {"pixels": "x"}}, "constants.pixels", "a number"),
    ("object-detection", {"output": {}}, "output.boxes", "required"),
    (
        "object-detection",
        {"output": _OBJECTS | {"boxes": {"columns": [0, 4]}}},
        "output.boxes.format",
        "required",
    ),
    (
        "object-detection",
        {"output": _OBJECTS | {"scores": {"columns": [7, 4]}}},
        "output.scores.columns",
        "first column",
    ),
    ("object-detection", {"nms": {"iou": 2}}, "nms.iou", "less than or equal to 1"),
    ("image-segmentation", {"input": {"resize": "crop"}}, "input.resize", "stretch or letterbox"),
    ("classify", {"input": {"mask": "x"}}, "input.mask", "expected one of input_ids"),
    ("classify", {"input": {"length": 2}}, "input.length", "greater than or equal to 8"),
    ("embed", {"output": {"pooling": "max"}}, "output.pooling", "'mean'"),
    ("audio-classification", {"input": {}}, "input.rate", "required"),
    ("audio-classification", {"input": {"rate": 50}}, "input.rate", "1000"),
    (
        "audio-classification",
        {"input": {"rate": RATE, "log_mel": {"bands": 8, "window": 400, "hop": 160, "fft": 256}}},
        "input.log_mel.fft",
        "at least the window",
    ),
    ("automatic-speech-recognition", {"blank": 6}, "blank", "at most 5"),
    (
        "voice-activity-detection",
        {"input": _VOICE["input"] | {"chunk": 500}},
        "input.chunk",
        "as declared",
    ),
    (
        "voice-activity-detection",
        {"input": _VOICE["input"] | {"context": 513}},
        "input.context",
        "at most the chunk",
    ),
    (
        "voice-activity-detection",
        {
            "input": _VOICE["input"]
            | {"states": [{"input": "state", "output": "stateN", "shape": [2, 1, 4]}]}
        },
        "input.states.0.shape",
        "`batch` once",
    ),
    (
        "voice-activity-detection",
        {"input": _VOICE["input"] | {"states": []}},
        "input",
        "takes 'state', too",
    ),
    ("voice-activity-detection", {"constants": {}}, "input", "takes 'sr', too"),
    ("voice-activity-detection", {"constants": {"sr": [1, 2]}}, "constants.sr", "as declared"),
]


@pytest.mark.parametrize(("task", "changes", "field", "words"), WRONG)
def test_wrong_fields_are_named(
    task: str, changes: dict[str, Any], field: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelFormatError) as raised:
        made(task, tmp_path, **changes)
    message = str(raised.value)
    assert re.search(rf"model\.yaml: {re.escape(field)}: |/{re.escape(field)} ", message), message
    assert re.search(words, message), message


@pytest.mark.parametrize(
    ("task", "changes", "words"),
    [
        ("image-classification", {"labels": ["a", "b"]}, "gives 3 scores, but declares 2"),
        ("object-detection", {"labels": ["a", "b"]}, "knows 3 classes, but declares 2"),
        ("image-segmentation", {"labels": ["a", "b"]}, "knows 3 classes, but declares 2"),
        ("image-segmentation", {"output": {"layout": "NHW"}}, "is not NHW"),
        ("embed", {"output": {"pooling": "none"}}, "2 axes are expected"),
        ("automatic-speech-recognition", {"vocabulary": ["a", "b"]}, "vocabulary of 2"),
        (
            "object-detection",
            {"output": _OBJECTS | {"boxes": {"columns": [0, 3], "format": "xyxy"}}},
            "Boxes of 3 columns",
        ),
        (
            "object-detection",
            {"output": _OBJECTS | {"scores": {"columns": [4, 9]}}},
            "has no columns 4 to 9",
        ),
    ],
)
def test_outputs_that_do_not_fit_are_told_at_the_start(
    task: str, changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    runner = made(task, tmp_path, **changes)
    with pytest.raises(FleetError, match=words):
        warm_up(runner)


@pytest.mark.parametrize("content", [b"", b"no graph", b"\x08\x07" * 40])
def test_a_damaged_file_is_named(content: bytes, tmp_path: Path) -> None:
    write_onnx("image-classification", tmp_path).write_bytes(content)
    with pytest.raises(ModelFormatError, match=r"model\.onnx cannot be read as an ONNX model"):
        make(tmp_path)


def test_a_file_that_is_cut_off_is_named(tmp_path: Path) -> None:
    file = write_onnx("image-classification", tmp_path)
    file.write_bytes(file.read_bytes()[:-500])
    with pytest.raises(ModelFormatError, match=r"model\.onnx cannot be read as an ONNX model"):
        make(tmp_path)


@pytest.mark.parametrize("text", ["- a list", "task: [", ""])
def test_a_damaged_yaml_is_named(text: str, tmp_path: Path) -> None:
    write_onnx("image-classification", tmp_path)
    (tmp_path / "model.yaml").write_text(text)
    with pytest.raises(ModelFormatError, match=r"model\.yaml is not"):
        make(tmp_path)


def test_a_fixed_number_of_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match="'pixels' has 4 rows"):
        made("image-classification", tmp_path, onnx_models.picture_classifier(rows=4))


def test_a_directory_needs_one_of_each(tmp_path: Path) -> None:
    file = write_onnx("image-classification", tmp_path)
    assert detect(str(tmp_path)) == detect(str(file)) == "onnx"
    (tmp_path / "config.json").write_text("{}")
    assert detect(str(tmp_path)) == "onnx"

    (tmp_path / "model.safetensors").touch()
    assert detect(str(tmp_path)) == "causal"
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "config.json").unlink()

    (tmp_path / "other.yaml").touch()
    with pytest.raises(ModelFormatError, match="needs one YAML beside it"):
        detect(str(tmp_path))
    with pytest.raises(ModelFormatError, match=r"found model\.yaml, other\.yaml"):
        load_runner("onnx", RunnerOptions(str(tmp_path)))


def test_onnxruntime_may_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_onnx("image-classification", tmp_path)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModelFormatError, match=r"pip install 'aios-hrm-fleet\[onnx\]'"):
        make(tmp_path)


def test_options_are_obeyed(tmp_path: Path) -> None:
    write_onnx("image-classification", tmp_path)
    with pytest.raises(ModelFormatError, match="leave quantize out"):
        make(tmp_path, quantize="int8")
    limited = make(tmp_path, own=MediaOptions(max_pixels=4096))
    with pytest.raises(InvalidRequest, match="at most 4096 pixels"):
        limited.read(ClassifyImage("x"), FilesAtHand({"x": encoded(picture(65, 64))}))
    with pytest.raises(ModelFormatError, match=r"its trial is refused: .* at most 100 pixels"):
        make(tmp_path, own=MediaOptions(max_pixels=100))


def test_labels_lie_in_files(tmp_path: Path) -> None:
    expected = None
    contents = {
        "a.txt": "cat\ncup\nroad\n",
        "a.json": json.dumps(LABELS),
        "b.json": json.dumps({"0": "cat", "1": "cup", "2": "road"}),
        "c.json": json.dumps({"road": 2, "cat": 0, "cup": 1}),
    }
    for name, content in contents.items():
        path = tmp_path / name.replace(".", "-")
        write_onnx("image-classification", path, labels=name)
        (path / name).write_text(content)
        runner = make(path)
        files = FilesAtHand({"x": encoded(picture())})
        [output] = run(runner, runner.read(ClassifyImage("x"), files))
        expected = expected or labels_of(output)
        assert labels_of(output) == expected
        assert set(expected) == set(LABELS)

    for content in ('{"cat": 0, "cup": 2}', "[1, 2]", "5"):
        (path / name).write_text(content)
        with pytest.raises(ModelFormatError, match=r"labels: expected a list of texts"):
            make(path)


def test_a_lack_of_memory_is_told(tmp_path: Path) -> None:
    graph = onnx_models.picture_classifier()
    graph.nodes[-1] = node("MatMul", "flat w", "bare")
    graph.nodes.append(node("Shape", "pixels", "sides"))
    graph.nodes.append(node("Mul", "sides many", "shape"))
    graph.nodes.append(node("ConstantOfShape", "shape", "huge"))
    graph.nodes.append(node("ReduceMax", "huge", "least", keepdims=0))
    graph.nodes.append(node("Add", "bare least", "logits"))
    graph.weights["many"] = np.array([1, 1 << 12, 1 << 12, 1 << 12])
    write_onnx("image-classification", tmp_path, graph)
    with pytest.raises(MemoryError):
        make(tmp_path)
    pixels = np.zeros((1, 3, SIDE, SIDE), dtype=np.float32)
    with pytest.raises(OutOfMemory, match="allocate memory"):
        Graph(tmp_path / "model.onnx", tmp_path / "model.yaml").run({"pixels": pixels}, ["logits"])


def test_a_model_that_is_not_loaded_tells_its_task(tmp_path: Path) -> None:
    write_onnx("embed", tmp_path)
    entry = ModelEntry(id="m", path=str(tmp_path))
    facts = facts_of(entry, Settings(models=(entry,)))
    assert facts.info.tasks == ("embed",)
    assert facts.info.runner == "onnx"


def test_a_graph_computes_with_the_worker_s_threads(tmp_path: Path) -> None:
    file = write_onnx("image-classification", tmp_path)
    before = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            assert Graph(file, tmp_path / "model.yaml").num_threads == count
    finally:
        torch.set_num_threads(before)


def test_its_files_count(tmp_path: Path) -> None:
    """The memory is that of the graph, and a changed YAML makes another model."""
    file = write_onnx("image-classification", tmp_path)
    assert weight_bytes(tmp_path, "float32") == file.stat().st_size
    options = RunnerOptions(str(tmp_path))
    before = fingerprint("onnx", options)
    assert fingerprint("onnx", options) == before
    fields = declared("image-classification") | {"labels": ["dog", "cup", "road"]}
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(fields))
    assert fingerprint("onnx", options) != before


def by_hand(samples: Array, bands: int, window: int, hop: int, size: int) -> Array:
    """Return log mel features [bands, frames], by torch's transform and triangles of our own."""
    spectrum = torch.stft(
        torch.tensor(samples),
        size,
        hop,
        window,
        torch.hann_window(window),
        center=False,
        return_complex=True,
    )
    power = spectrum.abs().square().numpy().astype(np.float64)
    top = 2595 * math.log10(1 + RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, bands + 2) / 2595) - 1)
    hertz = np.linspace(0, RATE / 2, size // 2 + 1)
    features = []
    for low, middle, high in zip(edges, edges[1:], edges[2:], strict=False):
        rise = (hertz - low) / (middle - low)
        fall = (high - hertz) / (high - middle)
        weights = np.maximum(0, np.minimum(rise, fall))
        features.append(np.log(np.maximum(weights @ power, 1e-10)))
    return np.array(features, dtype=np.float32)


@pytest.mark.parametrize("layout", ["BFT", "BTF"])
def test_features_are_those_of_torch(layout: str, tmp_path: Path) -> None:
    bands = 8
    last = layout == "BTF"
    graph = Made(
        [
            node("ReduceMax", "features", "wide", axes=[1 if last else 2], keepdims=0),
            node("MatMul", "wide w", "logits"),
        ],
        {"w": onnx_models.random(bands, len(LABELS), scale=0.3)},
        {"features": (TensorProto.FLOAT, ("n", "t", bands) if last else ("n", bands, "t"))},
        {"logits": (TensorProto.FLOAT, ("n", len(LABELS)))},
    )
    mel = {"bands": bands, "window": 400, "hop": 160, "layout": layout}
    runner = made("audio-classification", tmp_path, graph, input={"rate": RATE, "log_mel": mel})
    outputs = answers(runner, [ClassifySound("a"), ClassifySound("b")], sound_files())
    for name, output in zip("ab", outputs, strict=True):
        features = by_hand(heard(sounds()[name]), bands, window=400, hop=160, size=400)
        given = features.T if last else features
        [logits] = direct(tmp_path, features=given[None])
        scores = dict(zip(LABELS, softmax(logits[0]), strict=True))
        assert labels_of(output) == {
            name: pytest.approx(score, abs=1e-3) for name, score in scores.items()
        }


def test_the_page_has_a_right_example_of_each_task(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "onnx.md").read_text(encoding="utf-8")
    tasks = set()
    for number, example in enumerate(re.findall("```yaml\n(.*?)```", page, re.DOTALL)):
        file = tmp_path / f"{number}.yaml"
        file.write_text(example)
        tasks.add(read_declaration(file).task)
    assert tasks == set(ONNX_TASKS)


def test_outputs_of_no_use_are_let_be(tmp_path: Path) -> None:
    """A graph may return lists beside its tensors."""
    graph = onnx_models.picture_classifier()
    graph.nodes.append(node("SequenceConstruct", "logits", "list"))
    file = write_onnx("image-classification", tmp_path, graph)
    model = onnx.load(file)
    kind = helper.make_tensor_sequence_value_info("list", TensorProto.FLOAT, None)
    model.graph.output.append(kind)
    onnx.save(model, file)
    assert "list" in [one.name for one in onnxruntime.InferenceSession(file).get_outputs()]
    assert warm_up(make(tmp_path)).startswith("labelled its trial")


async def test_a_picture_is_labelled_over_http(redis: Redis, tmp_path: Path) -> None:
    runner = made("image-classification", tmp_path)
    data = encoded(picture())
    [alone] = run(runner, runner.read(ClassifyImage("x"), FilesAtHand({"x": data})))
    async with fleet(redis, runner) as client:
        body = {
            "task": "image-classification",
            "inputs": base64.b64encode(data).decode(),
            "model_id": "t",
        }
        answer = await client.post("/api/inference", json=body)
        broken = await client.post("/api/inference", json=body | {"inputs": "bm90"})
    assert answer.status_code == 200, answer.text
    labels = answer.json()["result"]["labels"]
    assert {one["label"]: one["score"] for one in labels} == labels_of(alone)
    assert broken.status_code == 400, broken.text
    assert "expected a picture" in broken.json()["error"]["message"]


async def test_a_text_is_embedded_over_http(redis: Redis, tmp_path: Path) -> None:
    runner = made("embed", tmp_path)
    [alone] = run(runner, runner.read(Embed(TEXTS[1]), FilesAtHand({})))
    async with fleet(redis, runner) as client:
        answer = await client.post("/v1/embeddings", json={"input": TEXTS[1], "model": "t"})
    assert answer.status_code == 200, answer.text
    [found] = answer.json()["data"]
    assert isinstance(alone.result, Embedded)
    assert found["embedding"] == pytest.approx(unpack(alone.result.vector))


async def test_speech_is_found_over_http(redis: Redis, tmp_path: Path) -> None:
    runner = made("voice-activity-detection", tmp_path)
    data = wav(speech_like())
    task = DetectSpeech("x", min_speech_s=0.3)
    [alone] = run(runner, runner.read(task, FilesAtHand({"x": data})))
    async with fleet(redis, runner) as client:
        body = {
            "task": "voice-activity-detection",
            "inputs": base64.b64encode(data).decode(),
            "model_id": "t",
            "options": {"min_speech_s": 0.3},
        }
        answer = await client.post("/api/inference", json=body)
    assert answer.status_code == 200, answer.text
    result = answer.json()["result"]
    parts = [(one["start"], one["end"], one["score"]) for one in result["parts"]]
    assert parts == speech_of(alone)
    assert len(parts) > 1
    assert result["seconds"] == pytest.approx(len(speech_like()) / RATE)
