"""The search for speech in a sound, chunk by chunk, by a graph that may carry states."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from shared.errors import WorkerFailed
from shared.tasks.sound import DetectedSpeech, DetectSpeech, SpeechPart
from worker.engine.task_runner import BatchProgress, Files, TaskOutput
from worker.onnx.declaration import ChunkInput, State, VoiceDetector, wrong
from worker.onnx.graph import Array, Arrays, Graph
from worker.onnx.one_call import (
    Axes,
    Found,
    Item,
    Loaded,
    OnnxTask,
    check_rows,
    checked,
)
from worker.onnx.sounds import check_dtype, read_samples
from worker.tasks.one_shot import trial_of
from worker.tasks.sound import silence

_HYSTERESIS = 0.15
"""Speech goes on until its probability falls so much below the threshold that began it."""
_LEAST_THRESHOLD = 0.01
_REPORT_EVERY = 64
"""Chunks between two reports of progress, some milliseconds each."""

_PROBABILITIES = "probabilities"


def _inputs(declaration: VoiceDetector, graph: Graph) -> Axes:
    declared = declaration.input
    info = graph.input(declared.name, "input.name")
    check_dtype(declared, info, graph)
    length = declared.context + declared.chunk
    shape = (None, length) if declared.layout == "BT" else (None, 1, length)
    graph.check_shape(info, shape, "input.chunk")
    axes = {info.name: 0}
    for index, state in enumerate(declared.states):
        field = f"input.states.{index}"
        given = graph.input(state.input, f"{field}.input")
        sizes = tuple(size if isinstance(size, int) else None for size in state.shape)
        graph.check_shape(given, sizes, f"{field}.shape")
        returned = graph.output(state.output, f"{field}.output")
        if returned.dtype != given.dtype:
            problem = f"the graph takes {given.dtype} and returns {returned.dtype}"
            raise wrong(graph.declared_in, f"{field}.output", problem)
        axes[state.input] = state.shape.index("batch")
    return axes


def _outputs(declaration: VoiceDetector, graph: Graph) -> Axes:
    axes = {graph.output(declaration.output.name, "output.name").name: 0}
    for state in declaration.input.states:
        axes[state.output] = state.shape.index("batch")
    return axes


def _read(task: DetectSpeech, files: Files, loaded: Loaded) -> Item:
    """Return the chunks [1, K, samples] of a sound, the last one filled up with silence."""
    declared = loaded.declaration.input
    samples = read_samples(task.audio, declared.rate, files, loaded)
    num_chunks = -(-len(samples) // declared.chunk)
    padded = np.zeros(num_chunks * declared.chunk, dtype=np.float32)
    padded[: len(samples)] = samples
    info = loaded.graph.input(declared.name, "input.name")
    chunks = padded.reshape(1, num_chunks, declared.chunk).astype(info.dtype)
    return Item(task, {info.name: chunks}, len(samples) / declared.rate)


def _num_chunks(item: Item) -> int:
    [chunks] = item.rows.values()
    return int(chunks.shape[1])


def _length(item: Item) -> Hashable:
    """Return the group of a sound, in which the longest is less than twice as long as any."""
    return _num_chunks(item).bit_length()


def _compute(loaded: Loaded, items: Sequence[Item], progress: BatchProgress) -> list[Found]:
    """Return the probabilities [1, K] of each item, whose chunks share calls where that is right."""
    found: list[Found] = []
    for start in range(0, len(items), loaded.max_rows):
        indices = range(start, min(start + loaded.max_rows, len(items)))
        probabilities = _probabilities(loaded, items, indices, progress)
        for row, index in zip(probabilities, indices, strict=True):
            heard = row[None, : _num_chunks(items[index])]
            found.append(checked({_PROBABILITIES: heard}, loaded.model))
    return found


def _probabilities(
    loaded: Loaded, items: Sequence[Item], indices: Sequence[int], progress: BatchProgress
) -> Array:
    """Return the probability [B, K] of speech in each chunk of the items at `indices`.

    Silence follows the shorter ones, which changes nothing before it. The search ends early if
    nobody waits for them.
    """
    declared = loaded.declaration.input
    info = loaded.graph.input(declared.name, "input.name")
    num_rows = len(indices)
    num_chunks = max(_num_chunks(items[index]) for index in indices)
    chunks = np.zeros((num_rows, num_chunks, declared.chunk), dtype=info.dtype)
    for row, index in enumerate(indices):
        chunks[row, : _num_chunks(items[index])] = items[index].rows[info.name][0]
    context = np.zeros((num_rows, declared.context), dtype=info.dtype)
    states: dict[str, Array] = {}
    for state in declared.states:
        states[state.input] = _silent(state, num_rows, loaded.graph)

    probabilities = np.zeros((num_rows, num_chunks), dtype=np.float32)
    for number in range(num_chunks):
        if number % _REPORT_EVERY == 0:
            if not any([progress.is_wanted(index) for index in indices]):
                break
            for index in indices:
                total = _num_chunks(items[index])
                progress.report(index, min(number, total), total)
        heard = np.concatenate([context, chunks[:, number]], axis=1)
        # From the end, where a context of no samples would begin at the first.
        context = heard[:, heard.shape[1] - declared.context :]
        given = heard if declared.layout == "BT" else heard[:, None]
        feeds = {info.name: given, **states, **loaded.constants}
        outputs = loaded.graph.run(feeds, loaded.output_names)
        probabilities[:, number] = _one_each(outputs, loaded.output_names[0], num_rows)
        for state in declared.states:
            states[state.input] = outputs[state.output].astype(states[state.input].dtype)
    return probabilities


def _silent(state: State, num_rows: int, graph: Graph) -> Array:
    """Return the state before the first chunk, which is 0."""
    shape = [num_rows if size == "batch" else size for size in state.shape]
    return np.zeros(shape, dtype=graph.inputs[state.input].dtype)


def _one_each(outputs: Arrays, name: str, num_rows: int) -> Array:
    """Return the only number of each row. Raise WorkerFailed where there are more."""
    array = outputs[name]
    check_rows({name: array}, num_rows)
    if array.size != num_rows:
        raise WorkerFailed(
            f"The output {name!r} has the shape {list(array.shape)}: one probability a chunk is "
            "expected."
        )
    return array.reshape(num_rows)


@dataclass
class _Part:
    """Chunks with speech, from `first` to `end`, left out."""

    first: int
    end: int


def _speech(item: Item, outputs: Arrays, loaded: Loaded) -> TaskOutput:
    task: DetectSpeech = item.task
    seconds: float = item.about
    declared: ChunkInput = loaded.declaration.input
    probabilities = outputs[_PROBABILITIES][0]

    def time_s(num_chunks: int) -> float:
        return num_chunks * declared.chunk / declared.rate

    parts: list[_Part] = []
    for part in _parts(probabilities.tolist(), task.threshold):
        if parts and time_s(part.first - parts[-1].end) < task.min_silence_s:
            parts[-1].end = part.end
        else:
            parts.append(part)
    found: list[SpeechPart] = []
    for part in parts:
        start_s = time_s(part.first)
        end_s = min(time_s(part.end), seconds)
        if end_s - start_s >= task.min_speech_s:
            score = float(probabilities[part.first : part.end].mean())
            found.append(SpeechPart(start_s, end_s, score))
    return TaskOutput(DetectedSpeech(tuple(found), seconds))


def _parts(probabilities: Sequence[float], threshold: float) -> list[_Part]:
    """Return the parts that begin at the threshold, and end where speech is much less likely."""
    least = max(threshold - _HYSTERESIS, min(threshold, _LEAST_THRESHOLD))
    parts: list[_Part] = []
    is_speech = False
    for number, probability in enumerate(probabilities):
        if is_speech and probability >= least:
            parts[-1].end = number + 1
        elif probability >= threshold:
            parts.append(_Part(number, number + 1))
            is_speech = True
        else:
            is_speech = False
    return parts


VOICES = {
    "voice-activity-detection": OnnxTask(
        inputs=_inputs,
        outputs=_outputs,
        read=_read,
        output=_speech,
        trial=trial_of(DetectSpeech, silence()),
        compute=_compute,
        group=_length,
    ),
}
