"""The form of a task that an ONNX graph does, as a row of a table."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shared.errors import FleetError, WorkerFailed
from worker.engine.sampler import broken
from worker.engine.task_runner import BatchProgress, Files, TaskOutput
from worker.onnx.graph import Array, Arrays, Graph, TensorInfo
from worker.tasks.one_shot import Trial
from worker.text.vocabulary import Vocabulary


@dataclass(frozen=True)
class Loaded:
    """A graph and its declaration, with what the declaration names, checked against the graph.

    `names` are labels or tokens by number. `max_rows` is the most rows of one call, 1 for a graph
    that takes no more, and `max_lines` that of a second graph, which reads the `lines` that the
    first one finds. A graph that takes no texts has no `text`.
    """

    model: str
    graph: Graph
    declaration: Any
    names: tuple[str, ...]
    constants: Arrays
    output_names: tuple[str, ...]
    max_rows: int
    max_pixels: int
    max_seconds: float
    text: "TextReader | None" = None
    lines: "LineGraph | None" = None
    max_lines: int = 1


@dataclass(frozen=True)
class TextReader:
    """A tokenizer, for texts of at most `window` tokens, padded with `pad_id`."""

    vocabulary: Vocabulary
    window: int
    pad_id: int


@dataclass(frozen=True)
class LineGraph:
    """A graph that reads lines of text, one or many in a call. `names` are its tokens by number."""

    graph: Graph
    input: TensorInfo
    output_name: str
    names: tuple[str, ...]
    takes_many: bool


@dataclass(frozen=True)
class Item:
    """A task that has been read: rows [R, ...] of each input, and what its output is made with."""

    task: Any
    rows: Mapping[str, Array]
    about: Any = None

    @property
    def num_rows(self) -> int:
        return len(next(iter(self.rows.values())))


Found = Arrays | FleetError
"""The outputs [R, ...] of the rows of an item, or its failure."""
Axes = Mapping[str, int]
"""The axis of the rows in each of some inputs or outputs."""
Compute = Callable[[Loaded, Sequence[Item], BatchProgress], list[Found]]


def compute_together(loaded: Loaded, items: Sequence[Item], progress: BatchProgress) -> list[Found]:
    """Return the outputs of each item, whose rows share calls."""
    rows: dict[str, Array] = {}
    for name in items[0].rows:
        rows[name] = np.concatenate([item.rows[name] for item in items])
    num_rows = sum(item.num_rows for item in items)

    pieces: list[Arrays] = []
    for start in range(0, num_rows, loaded.max_rows):
        progress.heartbeat()
        end = min(start + loaded.max_rows, num_rows)
        part = {name: array[start:end] for name, array in rows.items()}
        outputs = loaded.graph.run({**part, **loaded.constants}, loaded.output_names)
        check_rows(outputs, end - start)
        pieces.append(outputs)

    found: list[Found] = []
    start = 0
    for item in items:
        end = start + item.num_rows
        found.append(_rows_of(pieces, start, end, loaded))
        start = end
    return found


def check_rows(outputs: Arrays, num_rows: int) -> None:
    """Raise WorkerFailed unless each output has a row for each row that went in."""
    for name, array in outputs.items():
        if array.ndim == 0 or len(array) != num_rows:
            raise WorkerFailed(
                f"The output {name!r} has the shape {list(array.shape)} for {num_rows} inputs: "
                "it needs a row for each."
            )


def _rows_of(pieces: Sequence[Arrays], start: int, end: int, loaded: Loaded) -> Found:
    """Return the rows from `start` to `end` of the outputs of calls of `max_rows` rows each."""
    size = loaded.max_rows
    first = start // size
    last = (end - 1) // size
    joined: dict[str, Array] = {}
    for name in loaded.output_names:
        parts = []
        for number in range(first, last + 1):
            begin = max(0, start - number * size)
            parts.append(pieces[number][name][begin : end - number * size])
        joined[name] = np.concatenate(parts)
    return checked(joined, loaded.model)


def checked(outputs: Arrays, model: str) -> Found:
    """Return the outputs, or the failure of an item whose outputs are not finite."""
    for array in outputs.values():
        if not np.isfinite(array).all():
            return broken(model)
    return outputs


def _shapes(item: Item) -> Hashable:
    """Return the shapes of a row, which items that share a call have in common."""
    return tuple((name, array.shape[1:]) for name, array in item.rows.items())


@dataclass(frozen=True)
class OnnxTask:
    """A task, as a row of a table.

    `inputs` returns the inputs that `read` feeds, and `outputs` the outputs that `output` needs,
    each with the axis of the rows. Both raise ModelFormatError for a graph that does not have them
    as declared. `read` returns an item, `compute` the outputs of items, and `output` the result of
    one. `trial` shows that a model works. Items of one `group` can be computed together.
    """

    inputs: Callable[[Any, Graph], Axes]
    outputs: Callable[[Any, Graph], Axes]
    read: Callable[[Any, Files, Loaded], Item]
    output: Callable[[Item, Arrays, Loaded], TaskOutput | FleetError]
    trial: Trial
    compute: Compute = compute_together
    group: Callable[[Item], Hashable] = _shapes


def one_output(declaration: Any, graph: Graph) -> Axes:
    """Return the only output of a declaration."""
    return {graph.output(declaration.output.name, "output.name").name: 0}
