"""Texts as inputs of an ONNX graph, and the tasks that read them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shared.errors import FleetError, WorkerFailed
from shared.messages import Classify, Embed, Embedded
from shared.tasks.vectors import pack
from worker.engine.runner import RunnerOptions
from worker.engine.task_runner import Files, TaskOutput
from worker.models.weights import load_tokenizer
from worker.onnx.declaration import Embedder, TextClassifier, TextInput, wrong
from worker.onnx.graph import Arrays, Graph
from worker.onnx.one_call import Axes, Item, Loaded, OnnxTask, TextReader, one_output
from worker.onnx.scores import labelled
from worker.text.chat import ChatTemplate
from worker.text.vocabulary import Vocabulary


@dataclass(frozen=True)
class Tokens:
    """The number of a text's tokens, without padding."""

    count: int


def length_of(declared: TextInput, graph: Graph) -> int | None:
    """Return the number of tokens that all texts are padded to, None for their own lengths."""
    fixed = graph.input(declared.ids, "input.ids").shape[1]
    if declared.length is not None:
        return declared.length
    return fixed


def reader_of(declared: TextInput, graph: Graph, options: RunnerOptions) -> TextReader:
    """Load the tokenizer of a graph. Raise ModelFormatError."""
    window = length_of(declared, graph) or declared.max_length
    if options.context_window is not None:
        window = min(window, options.context_window)
    tokenizer = load_tokenizer(Path(options.tokenizer_path or graph.file))
    template = ChatTemplate(tokenizer)
    vocabulary = Vocabulary(tokenizer, len(tokenizer), template, keeps_end_marks=True)
    return TextReader(vocabulary, window, tokenizer.pad_token_id or 0)


def _inputs(declaration: TextClassifier | Embedder, graph: Graph) -> Axes:
    declared = declaration.input
    axes = {}
    for field in ("ids", "mask", "types"):
        name = getattr(declared, field)
        # A name of the default is left out where the graph has none.
        if field != "ids" and field not in declared.model_fields_set and name not in graph.inputs:
            continue
        info = graph.input(name, f"input.{field}")
        if not np.issubdtype(info.dtype, np.integer):
            problem = f"expected whole numbers, the graph's {name!r} takes {info.dtype}"
            raise wrong(graph.declared_in, f"input.{field}", problem)
        graph.check_shape(info, (None, declared.length), "input.length")
        axes[name] = 0
    return axes


def _read(task: Classify | Embed, files: Files, loaded: Loaded) -> Item:
    declared: TextInput = loaded.declaration.input
    reader = loaded.text
    assert reader is not None
    encoded = reader.vocabulary.encode(task, reader.window)
    ids = encoded.prompt_ids
    num_padding = (length_of(declared, loaded.graph) or len(ids)) - len(ids)
    values = {
        declared.ids: [*ids, *[reader.pad_id] * num_padding],
        declared.mask: [1] * len(ids) + [0] * num_padding,
        declared.types: [0] * (len(ids) + num_padding),
    }
    rows = {}
    for name in _inputs(loaded.declaration, loaded.graph):
        rows[name] = np.array([values[name]], dtype=loaded.graph.inputs[name].dtype)
    return Item(task, rows, Tokens(len(ids)))


def _labels(item: Item, outputs: Arrays, loaded: Loaded) -> TaskOutput | FleetError:
    [scores] = outputs.values()
    return labelled(scores, loaded, item.task.top_k)


def _vector(item: Item, outputs: Arrays, loaded: Loaded) -> TaskOutput | FleetError:
    """Return the vector of a text, of length 1 if the task asks for that."""
    declaration: Embedder = loaded.declaration
    tokens: Tokens = item.about
    [states] = outputs.values()
    pooling = declaration.output.pooling
    num_axes = 2 if pooling == "none" else 3
    if states.ndim != num_axes:
        return WorkerFailed(
            f"The output has the shape {list(states.shape)}: with pooling {pooling} {num_axes} "
            "axes are expected."
        )
    vector = states[0].astype(np.float64)
    if pooling == "mean":
        vector = vector[: tokens.count].mean(axis=0)
    elif pooling == "cls":
        vector = vector[0]
    if item.task.normalize:
        # A vector of zeros has no direction, and stays as it is.
        vector = vector / (np.linalg.norm(vector) or 1.0)
    return TaskOutput(Embedded(pack(vector.tolist())))


TEXTS = {
    "classify": OnnxTask(
        inputs=_inputs,
        outputs=one_output,
        read=_read,
        output=_labels,
        trial=(Classify("a"), {}),
    ),
    "embed": OnnxTask(
        inputs=_inputs,
        outputs=one_output,
        read=_read,
        output=_vector,
        trial=(Embed("a"), {}),
    ),
}
