"""The tasks that look at pictures. An `image` is the id of an artifact."""

from shared.tasks.specs import OtherTask


class ClassifyImage(OtherTask, frozen=True, omit_defaults=True, tag="image-classification"):
    """Return the labels of a picture: the `top_k` likeliest, or all."""

    image: str
    top_k: int | None = None
