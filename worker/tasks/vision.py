"""What tasks that look at pictures do with a network."""

import io
from collections.abc import Sequence
from typing import Any

from PIL import Image

from shared.errors import FleetError
from shared.messages import Labelled
from shared.tasks.vision import ClassifyImage
from worker.engine.task_runner import Files, TaskOutput
from worker.media.images import MAX_IMAGE_BYTES, decode_image
from worker.tasks.labels import labels_of, scores_of
from worker.tasks.one_shot import Item, Loaded, OneShot

_TRIAL_ID = "trial"


def _read_image(task: ClassifyImage, files: Files, loaded: Loaded) -> Item:
    data = files.read(task.image, max_bytes=MAX_IMAGE_BYTES)
    image = decode_image(data, max_pixels=loaded.max_pixels)
    inputs = loaded.processor(images=image, return_tensors="pt")
    return Item(task, {name: value[0] for name, value in inputs.items()})


def _labels(items: Sequence[Item], outputs: Any, loaded: Loaded) -> list[TaskOutput | FleetError]:
    config = loaded.model.config
    results: list[TaskOutput | FleetError] = []
    for item, scores in zip(items, scores_of(outputs.logits.float(), config), strict=True):
        labels = labels_of(scores, config, loaded.name)
        if isinstance(labels, FleetError):
            results.append(labels)
        else:
            results.append(TaskOutput(Labelled(labels[: item.task.top_k])))
    return results


def _grey_image() -> tuple[ClassifyImage, dict[str, bytes]]:
    image = io.BytesIO()
    Image.new("RGB", (64, 64), (128, 128, 128)).save(image, "PNG")
    return ClassifyImage(_TRIAL_ID), {_TRIAL_ID: image.getvalue()}


VISION = {
    "image-classification": OneShot(
        auto="AutoModelForImageClassification",
        read=_read_image,
        results=_labels,
        trial=_grey_image,
    ),
}
