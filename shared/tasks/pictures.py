"""The tasks that make pictures, and their result. An `image` is the id of an artifact."""

import msgspec

from shared.tasks.results import OtherResult
from shared.tasks.specs import OtherTask


class MakePictures(OtherTask, frozen=True, omit_defaults=True, tag="text-to-image"):
    """Make `num_images` pictures of a prompt, which `seed` and those after it tell apart.

    `width` and `height` are in pixels. What is None is the model's own. Each `preview_every` steps
    the first picture is shown as it is then; 0 shows none.
    """

    prompt: str
    seed: int
    negative_prompt: str = ""
    width: int | None = None
    height: int | None = None
    guidance_scale: float | None = None
    num_inference_steps: int | None = None
    num_images: int = 1
    preview_every: int = 0


class ChangePicture(OtherTask, frozen=True, omit_defaults=True, tag="image-to-image"):
    """Make `num_images` pictures of a prompt that begin with another picture.

    `strength` is the share of the steps that are done, and so of what may change. A `width` or
    `height` of None is that of the picture. Networks for super-resolution take no prompt, and none
    of the options.
    """

    image: str
    prompt: str
    seed: int
    strength: float = 0.8
    negative_prompt: str = ""
    width: int | None = None
    height: int | None = None
    guidance_scale: float | None = None
    num_inference_steps: int | None = None
    num_images: int = 1
    preview_every: int = 0


class Picture(msgspec.Struct, frozen=True, omit_defaults=True):
    """A picture of so many pixels. The same task with this seed makes it again, alone.

    The model's own checker of contents has made it black if `is_blocked`.
    """

    seed: int
    width: int
    height: int
    is_blocked: bool = False


class Pictures(OtherResult, frozen=True, tag="text-to-image"):
    """The pictures that were made. The answer's artifacts are their PNGs, in the same order."""

    pictures: tuple[Picture, ...]
