"""The form of a task that one call of a network does.

transformers' pipelines know how inputs become tensors, and tensors results. They get decoded
inputs alone: given a text where they expect a picture, they would fetch a URL or open a path.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from worker.engine.task_runner import Files, TaskOutput

Part = Literal["tokenizer", "image_processor", "feature_extractor"]


Trial = tuple[Any, Mapping[str, bytes]]
"""A cheap task, and its files by the ids of their artifacts."""

_TRIAL_ID = "trial"


def trial_of(task: Callable[[str], Any], data: bytes) -> Trial:
    """Return the trial of a task that takes one file with these bytes."""
    return task(_TRIAL_ID), {_TRIAL_ID: data}


@dataclass(frozen=True)
class Loaded:
    """A pipeline of transformers around a loaded network, and the largest inputs it may get.

    `pipe` is a `transformers.Pipeline`, whose methods are typed for one task after the other.
    """

    pipe: Any
    max_pixels: int
    max_seconds: float
    max_frames: int


@dataclass(frozen=True)
class Decoded:
    """The input of a pipeline, and of sounds their length."""

    value: Any
    seconds: float = 0.0


def _never(task: Any, loaded: Loaded) -> bool:
    return False


@dataclass(frozen=True)
class OneShot:
    """A task that one call of a network does, as a row of a table.

    `parts` are loaded beside the network. `read` returns the input of the pipeline, which is
    decoded, and `options` the parameters of its call. `output` makes the result of what the
    pipeline returns for one input, and the seconds of that. `trial` shows that a network works; it
    may depend on the network. `pipeline` is the class of a pipeline of ours, None for transformers'
    own. What is `alone` shares its call with none.
    """

    parts: tuple[Part, ...]
    read: Callable[[Any, Files, Loaded], Decoded]
    options: Callable[[Any, Decoded, Loaded], dict[str, Any]]
    output: Callable[[Any, Any, float], TaskOutput]
    trial: Trial | Callable[[Loaded], Trial]
    pipeline: Callable[..., Any] | None = None
    alone: Callable[[Any, Loaded], bool] = _never
