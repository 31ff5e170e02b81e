"""The check that an ONNX graph's answers do not depend on the rows beside them."""

import numpy as np

from shared.errors import FleetError
from worker.engine.task_runner import Unwatched
from worker.models.errors import ModelFormatError
from worker.onnx.graph import Array, Arrays
from worker.onnx.one_call import Item, Loaded, OnnxTask

_TOLERANCE = 1e-3
"""The largest difference between an answer in a batch and alone, in parts of the largest number."""


def check_batch(loaded: Loaded, onnx_task: OnnxTask, trial: Item) -> None:
    """Compare two different inputs in one call with the same alone.

    Raise ModelFormatError for a graph that fails, or whose answers differ. Exporters often mark an
    axis as free although the graph was traced with one row.
    """
    items = [trial, Item(trial.task, {name: _other(row) for name, row in trial.rows.items()})]
    alone = [_computed(loaded, onnx_task, [item])[0] for item in items]
    if loaded.max_rows == 1:
        return
    file = loaded.graph.file
    remedy = f"declare `one_by_one: true` in {loaded.graph.declared_in.name}"
    try:
        together = onnx_task.compute(loaded, items, Unwatched())
    except FleetError as error:
        raise ModelFormatError(f"{file} cannot do two inputs: {error.message} {remedy}.") from error
    for one, other in zip(alone, together, strict=True):
        # Numbers that are not finite are told by the trial.
        if isinstance(one, FleetError) or isinstance(other, FleetError):
            continue
        if not _are_close(one, other):
            raise ModelFormatError(
                f"{file} answers otherwise when two inputs share a call; {remedy}."
            )


def _computed(loaded: Loaded, onnx_task: OnnxTask, items: list[Item]) -> list[Arrays | FleetError]:
    try:
        return onnx_task.compute(loaded, items, Unwatched())
    except FleetError as error:
        raise ModelFormatError(f"{loaded.graph.file} does not work: {error.message}") from error


def _other(rows: Array) -> Array:
    """Return rows of the same shape with random numbers, those of whole numbers in their range."""
    generator = np.random.default_rng(0)
    if np.issubdtype(rows.dtype, np.floating):
        return generator.uniform(-1, 1, rows.shape).astype(rows.dtype)
    return generator.integers(rows.min(), rows.max(), rows.shape, rows.dtype, endpoint=True)


def _are_close(one: Arrays, other: Arrays) -> bool:
    for name, array in one.items():
        if array.shape != other[name].shape:
            return False
        largest = float(np.abs(array).max(initial=1.0))
        if not np.allclose(array, other[name], rtol=0, atol=_TOLERANCE * largest):
            return False
    return True
