"""The form of a task that one call of a network does."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from shared.errors import FleetError
from worker.engine.task_runner import TaskOutput


@dataclass(frozen=True)
class Loaded:
    """A network of transformers, and the processor of its inputs."""

    name: str
    model: PreTrainedModel
    processor: Any
    max_pixels: int


@dataclass(frozen=True)
class Item:
    """A task that has been read: what it asks for, and the network's inputs, without a batch."""

    task: Any
    inputs: dict[str, Tensor]


@dataclass(frozen=True)
class OneShot:
    """A task that one call of a network does, as a row of a table.

    `auto` is the class of transformers that loads the network. `read` makes the network's inputs of
    a task. `results` makes the outputs of items from what the network returns for all of them.
    `trial` returns a cheap task with its files.
    """

    auto: str
    read: Callable[[Any, Any, Loaded], Item]
    results: Callable[[Sequence[Item], Any, Loaded], list[TaskOutput | FleetError]]
    trial: Callable[[], tuple[Any, dict[str, bytes]]]
