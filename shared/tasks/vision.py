"""The tasks that look at pictures, and their results. An `image` is the id of an artifact."""

import msgspec

from shared.tasks.results import OtherResult
from shared.tasks.specs import OtherTask


class ClassifyImage(OtherTask, frozen=True, omit_defaults=True, tag="image-classification"):
    """Return the labels of a picture: the `top_k` likeliest, or all."""

    image: str
    top_k: int | None = None


class ClassifyImageAmong(
    OtherTask, frozen=True, omit_defaults=True, tag="zero-shot-image-classification"
):
    """Return the probability of each of these labels, in words that the template completes."""

    image: str
    labels: tuple[str, ...]
    template: str = "This is a photo of {}."


class ClassifyVideo(OtherTask, frozen=True, omit_defaults=True, tag="video-classification"):
    """Return the labels of a video, an artifact: the `top_k` likeliest, or all.

    A network sees as many frames as it was trained with, evenly spaced over the whole.
    """

    video: str
    top_k: int | None = None


class AnswerAboutImage(OtherTask, frozen=True, omit_defaults=True, tag="visual-question-answering"):
    """Return the `top_k` likeliest answers to a question about a picture."""

    image: str
    question: str
    top_k: int = 5


class ImageAnswer(msgspec.Struct, frozen=True):
    """An answer. A network that writes it gives no `score`."""

    text: str
    score: float | None


class ImageAnswers(OtherResult, frozen=True, tag="visual-question-answering"):
    """The answers to a question about a picture, likeliest first."""

    answers: tuple[ImageAnswer, ...]


class DetectObjects(OtherTask, frozen=True, omit_defaults=True, tag="object-detection"):
    """Return the objects in a picture that are likelier than `threshold`."""

    image: str
    threshold: float = 0.5


class DetectObjectsAmong(
    OtherTask, frozen=True, omit_defaults=True, tag="zero-shot-object-detection"
):
    """Return the objects in a picture that are one of these labels, in words.

    Each label is looked for by itself, and only what is likelier than `threshold` is returned.
    """

    image: str
    labels: tuple[str, ...]
    threshold: float = 0.1


class DetectedObject(msgspec.Struct, frozen=True):
    """An object in its box. Coordinates are in pixels, from the top left corner."""

    label: str
    score: float
    xmin: int
    ymin: int
    xmax: int
    ymax: int


class DetectedObjects(OtherResult, frozen=True, tag="object-detection"):
    """The objects in a picture, likeliest first."""

    objects: tuple[DetectedObject, ...]


class ReadPicture(OtherTask, frozen=True, omit_defaults=True, tag="optical-character-recognition"):
    """Return the text in a picture. Lines that are less likely than `threshold` are left out."""

    image: str
    threshold: float = 0.5


Corner = tuple[int, int]
"""A place (x, y) in pixels, from the top left corner of a picture."""


class TextLine(msgspec.Struct, frozen=True):
    """A line of text, its likelihood, and its corners from the first one on, clockwise.

    They are those of its box as it is read, which may be turned.
    """

    text: str
    score: float
    corners: tuple[Corner, Corner, Corner, Corner]


class PageText(OtherResult, frozen=True, tag="optical-character-recognition"):
    """The lines of a picture from top to bottom. In `text` those beside each other share a row."""

    text: str
    lines: tuple[TextLine, ...]


class SegmentImage(OtherTask, frozen=True, omit_defaults=True, tag="image-segmentation"):
    """Return which pixels belong to which class or object.

    Objects are left out below `threshold`, and pixels below `mask_threshold`.
    """

    image: str
    threshold: float = 0.9
    mask_threshold: float = 0.5


class Segment(msgspec.Struct, frozen=True):
    """A class or an object, and the share of the picture's pixels that belong to it.

    Networks that only tell classes give no `score`.
    """

    label: str
    score: float | None
    area: float


class Segmented(OtherResult, frozen=True, tag="image-segmentation"):
    """The segments of a picture. The answer's artifacts are their masks, PNGs in the same order.

    A mask is 255 where a pixel belongs to the segment, else 0.
    """

    segments: tuple[Segment, ...]


class EstimateDepth(OtherTask, frozen=True, omit_defaults=True, tag="depth-estimation"):
    """Return how far away the parts of a picture are. `with_map` asks for the whole map."""

    image: str
    with_map: bool = False


class DepthEstimated(OtherResult, frozen=True, tag="depth-estimation"):
    """The depth of a picture's pixels, in the network's own unit.

    With a map the answer's artifact is a PNG of 16 bits, from `least` (0) to `most` (65535).
    """

    least: float
    most: float
    mean: float
