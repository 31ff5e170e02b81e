"""The tasks that make videos, and their result. An `image` is the id of an artifact."""

from shared.tasks.results import OtherResult
from shared.tasks.specs import OtherTask


class MakeVideo(OtherTask, frozen=True, omit_defaults=True, tag="text-to-video"):
    """Make a video of a prompt, of `num_frames` pictures of `width` x `height` pixels.

    `fps` of them are shown a second. What is None is the model's own.
    """

    prompt: str
    seed: int
    negative_prompt: str = ""
    width: int | None = None
    height: int | None = None
    num_frames: int | None = None
    fps: int | None = None
    guidance_scale: float | None = None
    num_inference_steps: int | None = None


class AnimatePicture(OtherTask, frozen=True, omit_defaults=True, tag="image-to-video"):
    """Make a video of a prompt that begins with a picture. Sizes of None are the picture's."""

    image: str
    prompt: str
    seed: int
    negative_prompt: str = ""
    width: int | None = None
    height: int | None = None
    num_frames: int | None = None
    fps: int | None = None
    guidance_scale: float | None = None
    num_inference_steps: int | None = None


class Video(OtherResult, frozen=True, tag="text-to-video"):
    """The video that was made. The same task with this seed makes it again.

    The answer's artifact is an MP4.
    """

    seed: int
    width: int
    height: int
    num_frames: int
    fps: int
