"""The depth at which a request runs a recurrent model: its cycles, or its ACT segments."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from shared.errors import InvalidRequest
from shared.messages import Depth, Effort, Generate, Read, Score, Solve, Task
from worker.engine.sequence import Encoded, Slice

DepthsByEffort = Mapping[Effort, Depth]


def depth_of(task: Task) -> Depth | None:
    """Return the depth that a task asks for, None for the model's own."""
    if isinstance(task, Generate | Score | Read):
        return task.depth
    if not isinstance(task, Solve):
        return None
    asked = Depth(max_steps=task.max_steps, effort=task.effort)
    return None if asked == Depth() else asked


def named(efforts: DepthsByEffort, depth: Depth) -> Depth:
    """Return the depth that an effort stands for. Any other depth stays as it is."""
    if depth.effort is None:
        return depth
    return efforts[depth.effort]


def spread(count: int, depth: Callable[[int], Depth]) -> dict[Effort, Depth]:
    """Return the depths of the efforts of a model that names none: with 1, half of and all `count`.

    `depth` returns the depth of a number.
    """
    return {"low": depth(1), "medium": depth((count + 1) // 2), "high": depth(count)}


def at_depth(
    encoded: Encoded, *, asked: Depth, depth: Depth | None, num_layers: int | None = None
) -> Encoded:
    """Return a task, with all its windows, that runs at `depth` because it has `asked` for it.

    `num_layers` is the number of layers there, for a model that computes prompts layer by layer.
    """
    windows = tuple(
        at_depth(window, asked=asked, depth=depth, num_layers=num_layers)
        for window in encoded.windows
    )
    return replace(encoded, asked_depth=asked, depth=depth, num_layers=num_layers, windows=windows)


def checked_steps(depth: Depth, most: int) -> int:
    """Return the number of ACT segments of a depth. Raise InvalidRequest unless it is 1 to `most`."""
    steps = depth.max_steps
    if steps is None:
        raise InvalidRequest(
            "cycles: this model has ACT segments; expected `max_steps`.", field="cycles"
        )
    if not 1 <= steps <= most:
        raise InvalidRequest(f"max_steps: expected 1 to {most}, got {steps}.", field="max_steps")
    return steps


def check_depth(task: Task, encoded: Encoded) -> None:
    """Raise InvalidRequest for a task that asks for a depth of a model that has only one."""
    asked = depth_of(task)
    if asked is not None and encoded.asked_depth is None:
        raise InvalidRequest(
            f"{field_of(asked)}: this model has one depth; leave it out.", field=field_of(asked)
        )


def field_of(depth: Depth) -> str:
    """Return the name of the request's field that asks for the depth."""
    if depth.cycles is not None:
        return "cycles"
    return "effort" if depth.max_steps is None else "max_steps"


def indices_by_depth(slices: Sequence[Slice]) -> dict[Depth | None, list[int]]:
    """Return the indices of the slices that run at each depth."""
    indices: dict[Depth | None, list[int]] = {}
    for index, part in enumerate(slices):
        indices.setdefault(part.sequence.encoded.depth, []).append(index)
    return indices
