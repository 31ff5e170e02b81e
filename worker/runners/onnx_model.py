"""Models that are an ONNX file and a YAML beside it, which declares what the graph takes and gives.

What a task does with its inputs and outputs is a row of a table in `worker/onnx`.
"""

from collections.abc import Hashable, Sequence
from pathlib import Path

from shared.errors import FleetError, InvalidRequest
from shared.messages import Task, TaskName, name_of
from shared.tasks.runner_options import MediaOptions
from worker.engine.runner import OutOfMemory, RunnerOptions
from worker.engine.task_runner import (
    BatchProgress,
    Files,
    FilesAtHand,
    TaskOutput,
    TaskRunnerSpec,
)
from worker.models.errors import ModelFormatError
from worker.models.hf_directory import directory_of
from worker.onnx.batch_check import check_batch
from worker.onnx.declaration import (
    DECLARATIONS,
    GRAPHS,
    Declaration,
    Embedder,
    PageReader,
    TextClassifier,
    Transcriber,
    only_file,
    read_declaration,
    read_names,
    wrong,
)
from worker.onnx.graph import Graph
from worker.onnx.one_call import Axes, Item, Loaded, OnnxTask
from worker.onnx.page import PAGES, line_graph_of
from worker.onnx.pictures import PICTURES
from worker.onnx.sounds import SOUNDS
from worker.onnx.texts import TEXTS, reader_of
from worker.onnx.voice import VOICES

ONNX_TASKS: dict[TaskName, OnnxTask] = {**PICTURES, **PAGES, **TEXTS, **SOUNDS, **VOICES}


class OnnxRunner:
    """An ONNX graph that does the tasks of one name."""

    def __init__(self, loaded: Loaded, onnx_task: OnnxTask, spec: TaskRunnerSpec) -> None:
        self.spec = spec
        self._loaded = loaded
        self._onnx_task = onnx_task

    def read(self, task: Task, files: Files) -> Item:
        if name_of(task) not in self.spec.tasks:
            raise InvalidRequest(f"This model does not serve {name_of(task)!r}.", field="model")
        return self._onnx_task.read(task, files, self._loaded)

    def group_key(self, item: Item) -> Hashable:
        return self._onnx_task.group(item)

    def run(self, items: Sequence[Item], progress: BatchProgress) -> list[TaskOutput | FleetError]:
        outputs: list[TaskOutput | FleetError] = []
        found = self._onnx_task.compute(self._loaded, items, progress)
        for item, one in zip(items, found, strict=True):
            if isinstance(one, FleetError):
                outputs.append(one)
            else:
                outputs.append(self._onnx_task.output(item, one, self._loaded))
        return outputs


def load(options: RunnerOptions) -> OnnxRunner:
    """Load the graph of a directory, and what its YAML declares.

    Raise ModelFormatError for files that are missing or damaged, and for a declaration that does
    not fit the graph; it names the field.
    """
    path = directory_of(Path(options.path))
    declared_in = only_file(path, DECLARATIONS)
    if options.quantize != "none":
        raise ModelFormatError(
            f"{path} is served in the precision that it has: leave quantize out."
        )
    own = options.declared(MediaOptions)
    declaration = read_declaration(declared_in)
    if declaration.main_file is None:
        file = only_file(path, GRAPHS)
    else:
        file = path / declaration.main_file
    task = declaration.task
    onnx_task = ONNX_TASKS[task]

    graph = Graph(file, declared_in)
    inputs = onnx_task.inputs(declaration, graph)
    outputs = onnx_task.outputs(declaration, graph)
    graph.check_inputs((*inputs, *declaration.constants))
    max_rows = options.max_batch
    if declaration.one_by_one or not _takes_any_number(graph, inputs, outputs):
        max_rows = 1
    text = None
    if isinstance(declaration, TextClassifier | Embedder):
        text = reader_of(declaration.input, graph, options)
    lines = None
    if isinstance(declaration, PageReader):
        lines = line_graph_of(declaration, declared_in, one_by_one=declaration.one_by_one)
    loaded = Loaded(
        model=options.name,
        graph=graph,
        declaration=declaration,
        names=_names(declaration, declared_in),
        constants=graph.constants(declaration.constants),
        output_names=tuple(outputs),
        max_rows=max_rows,
        max_pixels=own.max_pixels,
        max_seconds=own.max_seconds,
        text=text,
        lines=lines,
        max_lines=options.max_batch,
    )
    _check_trial(loaded, onnx_task)

    trial, files = onnx_task.trial
    number = "in batches" if max_rows > 1 else "one by one"
    spec = TaskRunnerSpec(
        "onnx",
        options.name,
        found=f"{file.name}: {task}, {number}",
        max_batch=options.max_batch,
        tasks=(task,),
        trial=trial,
        trial_files=files,
        context_window=0 if text is None else text.window,
    )
    return OnnxRunner(loaded, onnx_task, spec)


def _check_trial(loaded: Loaded, onnx_task: OnnxTask) -> None:
    """Do the trial, alone and in a batch.

    Raise ModelFormatError, and MemoryError where there is too little memory for it.
    """
    trial, files = onnx_task.trial
    try:
        item = onnx_task.read(trial, FilesAtHand(files), loaded)
    except FleetError as error:
        problem = f"{loaded.graph.file}: its trial is refused: {error.message}"
        raise ModelFormatError(problem) from error
    try:
        check_batch(loaded, onnx_task, item)
    except OutOfMemory as error:
        # While a model is loaded there is no smaller step to try.
        raise MemoryError(str(error)) from error


def _takes_any_number(graph: Graph, inputs: Axes, outputs: Axes) -> bool:
    """Return whether the axis of the rows is free everywhere.

    Raise ModelFormatError for a graph that takes a fixed number of rows above 1.
    """
    is_free = True
    for tensors, axes in ((graph.inputs, inputs), (graph.outputs, outputs)):
        for name, axis in axes.items():
            shape = tensors[name].shape
            size = shape[axis] if axis < len(shape) else None
            if size is None:
                continue
            is_free = False
            if size != 1:
                problem = f"{name!r} has {size} rows; expected 1, or any number"
                raise wrong(graph.declared_in, "input", problem)
    return is_free


def _names(declaration: Declaration, declared_in: Path) -> tuple[str, ...]:
    """Return the labels or the vocabulary of a declaration, () where it has none."""
    if isinstance(declaration, Transcriber):
        names = read_names(declared_in, "vocabulary", declaration.vocabulary)
        if declaration.blank >= len(names):
            problem = f"expected at most {len(names) - 1}, the last token of the vocabulary"
            raise wrong(declared_in, "blank", problem)
        return names
    labels = getattr(declaration, "labels", None)
    if labels is None:
        return ()
    return read_names(declared_in, "labels", labels)
