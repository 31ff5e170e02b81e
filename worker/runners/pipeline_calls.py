"""Helpers of the runners of diffusers' pipelines: limits, refusals, and the end of a call."""

import inspect
from collections.abc import Mapping
from typing import Any

from PIL import Image

from shared.errors import InvalidRequest
from shared.tasks.runner_options import DiffusionOptions

SEED_MASK = (1 << 63) - 1
MAX_GIVEN_PIXELS = 50_000_000
"""The most pixels of a picture that is given. It is scaled to the size of what is made."""


class NobodyWaits(Exception):
    """Ends a pipeline between two steps, when all that it makes is unwanted."""


def parameters_of(pipeline: Any) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a pipeline's call."""
    return inspect.signature(type(pipeline).__call__).parameters


def refusal(name: str, expected: str, got: object) -> InvalidRequest:
    return InvalidRequest(f"{name}: expected {expected}, got {got}.", field=name)


def most_steps(pipeline: Any) -> int:
    """Return the number of steps that the schedule of the training can be divided into."""
    config = pipeline.scheduler.config
    return int(config.num_train_timesteps) - int(config.get("steps_offset", 0))


def default_of(name: str, pipeline: Any, own: DiffusionOptions) -> Any:
    """Return the value of an option that a request leaves open: the model's, or the library's."""
    value = getattr(own, name)
    if value is not None:
        return value
    return parameters_of(pipeline)[name].default


def steps_of(asked: int | None, pipeline: Any, own: DiffusionOptions) -> int:
    """Return the number of denoising steps. Raise InvalidRequest for none, and for too many."""
    max_steps = min(own.max_steps, most_steps(pipeline))
    if asked is None:
        usual: int = default_of("num_inference_steps", pipeline, own)
        return min(max_steps, usual)
    if not 1 <= asked <= max_steps:
        raise refusal("num_inference_steps", f"1 to {max_steps}", asked)
    return asked


def rounded_size(image: Image.Image, multiple: int) -> tuple[int, int]:
    """Return the size of a picture, rounded down to sides that can be made."""
    width, height = (max(multiple, side - side % multiple) for side in image.size)
    return width, height
