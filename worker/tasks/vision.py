"""The tasks that look at pictures, done by pipelines."""

from typing import Any

import numpy as np
from PIL import Image

from shared.errors import InvalidRequest
from shared.tasks.pictures import ChangePicture, Picture, Pictures
from shared.tasks.vision import (
    AnswerAboutImage,
    ClassifyImage,
    ClassifyImageAmong,
    ClassifyVideo,
    DepthEstimated,
    DetectedObject,
    DetectedObjects,
    DetectObjects,
    DetectObjectsAmong,
    EstimateDepth,
    ImageAnswer,
    ImageAnswers,
    Segment,
    Segmented,
    SegmentImage,
)
from worker.engine.task_runner import Files, NewFile, TaskOutput
from worker.media.images import MAX_IMAGE_BYTES, PNG, decode_image, png_of
from worker.media.video import MAX_VIDEO_BYTES, decode_video, encode_video
from worker.tasks.labels import ALL_LABELS, check_template, labels_output
from worker.tasks.one_shot import Decoded, Loaded, OneShot, trial_of
from worker.tasks.own_pipelines import (
    ImageQuestionAnswerer,
    ObjectFinder,
    Upscaler,
    VideoClassifier,
)

ImageTask = (
    AnswerAboutImage
    | ClassifyImage
    | ClassifyImageAmong
    | ChangePicture
    | DetectObjects
    | DetectObjectsAmong
    | SegmentImage
    | EstimateDepth
)


def _read(task: ImageTask, files: Files, loaded: Loaded) -> Decoded:
    data = files.read(task.image, max_bytes=MAX_IMAGE_BYTES)
    return Decoded(decode_image(data, max_pixels=loaded.max_pixels))


def _read_area(task: EstimateDepth, files: Files, loaded: Loaded) -> Decoded:
    """Return a picture of two pixels or more each way: the pipeline fails on a single line."""
    image = _read(task, files, loaded).value
    width, height = image.size
    if 1 in (width, height):
        image = image.resize((max(2, width), max(2, height)))
    return Decoded(image)


def _top_k(task: ClassifyImage, decoded: Decoded, loaded: Loaded) -> dict[str, Any]:
    return {"top_k": task.top_k or ALL_LABELS}


def _among(task: ClassifyImageAmong, decoded: Decoded, loaded: Loaded) -> dict[str, Any]:
    return {"candidate_labels": list(task.labels), "hypothesis_template": task.template}


def _read_among(task: ClassifyImageAmong, files: Files, loaded: Loaded) -> Decoded:
    check_template(task.template)
    return _read(task, files, loaded)


def _read_video(task: ClassifyVideo, files: Files, loaded: Loaded) -> Decoded:
    data = files.read(task.video, max_bytes=MAX_VIDEO_BYTES)
    frames = decode_video(
        data,
        num_frames=int(loaded.pipe.model.config.num_frames),
        max_frames=loaded.max_frames,
        max_pixels=loaded.max_pixels,
    )
    return Decoded(frames)


def _read_question(task: AnswerAboutImage, files: Files, loaded: Loaded) -> Decoded:
    return Decoded({"image": _read(task, files, loaded).value, "question": task.question})


def _image_answers(
    task: AnswerAboutImage, found: list[tuple[str, float | None]], seconds: float
) -> TaskOutput:
    return TaskOutput(ImageAnswers(tuple(ImageAnswer(text, score) for text, score in found)))


def _read_low_resolution(task: ChangePicture, files: Files, loaded: Loaded) -> Decoded:
    """Return a picture to be upscaled. Raise InvalidRequest for options, and if it is too large."""
    if task != ChangePicture(task.image, "", task.seed):
        raise InvalidRequest(
            "This model changes the resolution of a picture: it takes no prompt and no options.",
            field="options",
        )
    factor: int = loaded.pipe.model.config.upscale
    data = files.read(task.image, max_bytes=MAX_IMAGE_BYTES)
    # What is made must not have more pixels than what may be given.
    return Decoded(decode_image(data, max_pixels=loaded.max_pixels // factor**2))


def _high_resolution(task: ChangePicture, made: Image.Image, seconds: float) -> TaskOutput:
    picture = Picture(task.seed, made.width, made.height)
    return TaskOutput(Pictures((picture,)), (NewFile(png_of(made), PNG, "picture-0.png"),))


def _objects(
    task: DetectObjects | DetectObjectsAmong, found: list[dict[str, Any]], seconds: float
) -> TaskOutput:
    objects = [DetectedObject(one["label"], one["score"], **one["box"]) for one in found]
    objects.sort(key=lambda one: -one.score)
    return TaskOutput(DetectedObjects(tuple(objects)))


def _segments(task: SegmentImage, found: list[dict[str, Any]], seconds: float) -> TaskOutput:
    segments: list[Segment] = []
    masks: list[NewFile] = []
    for one in found:
        mask: Image.Image = one["mask"]
        area = float(np.asarray(mask, dtype=bool).mean())
        segments.append(Segment(one["label"], one["score"], area))
        masks.append(NewFile(png_of(mask), PNG, f"mask-{len(masks)}.png"))
    return TaskOutput(Segmented(tuple(segments)), tuple(masks))


def _depths(task: EstimateDepth, found: dict[str, Any], seconds: float) -> TaskOutput:
    depth = found["predicted_depth"].float().numpy()
    least, most = float(depth.min()), float(depth.max())
    result = DepthEstimated(least, most, float(depth.mean()))
    if not task.with_map:
        return TaskOutput(result)
    span = most - least or 1.0
    levels = ((depth - least) * (65_535 / span)).round().astype(np.uint16)
    return TaskOutput(result, (NewFile(png_of(Image.fromarray(levels)), PNG, "depth.png"),))


GREY = png_of(Image.new("RGB", (64, 64), (128, 128, 128)))

_GREY_VIDEO = encode_video([Image.new("RGB", (64, 64), (128, 128, 128))] * 2)

VISION = {
    "image-classification": OneShot(
        parts=("image_processor",),
        read=_read,
        options=_top_k,
        output=labels_output,
        trial=trial_of(ClassifyImage, GREY),
    ),
    "zero-shot-image-classification": OneShot(
        parts=("image_processor", "tokenizer"),
        read=_read_among,
        options=_among,
        output=labels_output,
        trial=trial_of(lambda image: ClassifyImageAmong(image, ("a cat", "a cup")), GREY),
    ),
    "video-classification": OneShot(
        parts=("image_processor",),
        read=_read_video,
        options=lambda task, decoded, loaded: {"top_k": task.top_k},
        output=labels_output,
        trial=trial_of(ClassifyVideo, _GREY_VIDEO),
        pipeline=VideoClassifier,
    ),
    "visual-question-answering": OneShot(
        parts=("image_processor", "tokenizer"),
        read=_read_question,
        options=lambda task, decoded, loaded: {"top_k": task.top_k},
        output=_image_answers,
        trial=trial_of(lambda image: AnswerAboutImage(image, "a"), GREY),
        pipeline=ImageQuestionAnswerer,
    ),
    "object-detection": OneShot(
        parts=("image_processor",),
        read=_read,
        options=lambda task, decoded, loaded: {"threshold": task.threshold},
        output=_objects,
        trial=trial_of(DetectObjects, GREY),
    ),
    "zero-shot-object-detection": OneShot(
        parts=("image_processor", "tokenizer"),
        read=_read,
        options=lambda task, decoded, loaded: {
            "labels": task.labels,
            "threshold": task.threshold,
        },
        output=_objects,
        trial=trial_of(lambda image: DetectObjectsAmong(image, ("a cat", "a cup")), GREY),
        pipeline=ObjectFinder,
    ),
    "image-to-image": OneShot(
        parts=("image_processor",),
        read=_read_low_resolution,
        options=lambda task, decoded, loaded: {},
        output=_high_resolution,
        trial=trial_of(lambda image: ChangePicture(image, "", 0), GREY),
        pipeline=Upscaler,
    ),
    "image-segmentation": OneShot(
        parts=("image_processor",),
        read=_read,
        options=lambda task, decoded, loaded: {
            "threshold": task.threshold,
            "mask_threshold": task.mask_threshold,
        },
        output=_segments,
        trial=trial_of(SegmentImage, GREY),
    ),
    "depth-estimation": OneShot(
        parts=("image_processor",),
        read=_read_area,
        options=lambda task, decoded, loaded: {},
        output=_depths,
        trial=trial_of(EstimateDepth, GREY),
    ),
}
