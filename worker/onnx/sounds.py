"""Sounds as inputs of an ONNX graph, and the tasks that listen to a whole one."""

from dataclasses import dataclass

import numpy as np

from shared.errors import FleetError, InvalidRequest, WorkerFailed
from shared.tasks.sound import ClassifySound, SpokenPart, Transcribe, Transcript
from worker.engine.task_runner import Files, TaskOutput
from worker.media.sound import MAX_SOUND_BYTES, Samples, decode_sound
from worker.onnx.declaration import (
    ChunkInput,
    SoundClassifier,
    SoundInput,
    Transcriber,
    wrong,
)
from worker.onnx.features import log_mel, num_frames
from worker.onnx.graph import Array, Arrays, Graph, TensorInfo
from worker.onnx.one_call import Axes, Item, Loaded, OnnxTask, one_output
from worker.onnx.scores import labelled
from worker.tasks.one_shot import trial_of
from worker.tasks.sound import silence

_LEAST_PARTS = 10
"""A sound is at least this part of a second."""
_LEAST_VARIANCE = 1e-7


@dataclass(frozen=True)
class Span:
    """The length of a sound, and that of the input that it has become, in seconds."""

    seconds: float
    input_seconds: float


def check_dtype(declared: SoundInput | ChunkInput, info: TensorInfo, graph: Graph) -> None:
    """Raise ModelFormatError for an input that takes no floats, or other ones than declared."""
    if not np.issubdtype(info.dtype, np.floating):
        problem = f"expected floats, the graph's {info.name!r} takes {info.dtype}"
        raise wrong(graph.declared_in, "input.name", problem)
    if declared.dtype is not None and info.dtype != np.dtype(declared.dtype):
        problem = f"the graph takes {info.dtype}, got {declared.dtype!r}"
        raise wrong(graph.declared_in, "input.dtype", problem)


def read_samples(audio: str, rate: int, files: Files, loaded: Loaded) -> Samples:
    """Return the samples of a sound, `rate` a second."""
    data = files.read(audio, max_bytes=MAX_SOUND_BYTES)
    return decode_sound(data, rate=rate, max_seconds=loaded.max_seconds)


def _inputs(declaration: SoundClassifier | Transcriber, graph: Graph) -> Axes:
    declared = declaration.input
    info = graph.input(declared.name, "input.name")
    check_dtype(declared, info, graph)
    mel = declared.log_mel
    shape: tuple[int | None, ...] = (None, declared.samples)
    if mel is not None:
        frames = None
        if declared.samples is not None:
            frames = num_frames(declared.samples, mel)
        shape = (None, mel.bands, frames) if mel.layout == "BFT" else (None, frames, mel.bands)
        if mel.high is not None and mel.high > declared.rate / 2:
            problem = f"expected at most half the rate, {declared.rate / 2:g}"
            raise wrong(graph.declared_in, "input.log_mel.high", problem)
    if declared.layout == "BCT":
        shape = (None, 1, *shape[1:])
    graph.check_shape(info, shape, "input.samples")
    if declared.samples is None and _has_fixed_length(declared, info):
        problem = f"the graph takes sounds of one length, {list(info.shape)}: declare it"
        raise wrong(graph.declared_in, "input.samples", problem)
    return {info.name: 0}


def _has_fixed_length(declared: SoundInput, info: TensorInfo) -> bool:
    axis = -1
    if declared.log_mel is not None and declared.log_mel.layout == "BTF":
        axis = -2
    return info.shape[axis] is not None


def _read(task: ClassifySound | Transcribe, files: Files, loaded: Loaded) -> Item:
    declared: SoundInput = loaded.declaration.input
    samples = read_samples(task.audio, declared.rate, files, loaded)
    seconds = len(samples) / declared.rate
    if declared.normalize:
        samples = (samples - samples.mean()) / np.sqrt(samples.var() + _LEAST_VARIANCE)
    windows = _windows(samples, declared)
    rows: Array = windows
    if declared.log_mel is not None:
        rows = np.stack([log_mel(row, declared.log_mel, declared.rate) for row in windows])
    if declared.layout == "BCT":
        rows = rows[:, None]
    info = loaded.graph.input(declared.name, "input.name")
    span = Span(seconds, windows.size / declared.rate)
    return Item(task, {info.name: rows.astype(info.dtype)}, span)


def _windows(samples: Samples, declared: SoundInput) -> Samples:
    """Return the windows [R, samples] of a sound, which ends in silence."""
    length = declared.samples
    if length is None:
        # Convolutions need some samples, and features a frame.
        length = max(len(samples), declared.rate // _LEAST_PARTS)
        if declared.log_mel is not None:
            length = max(length, declared.log_mel.window)
    num_rows = -(-len(samples) // length)
    padded = np.zeros(num_rows * length, dtype=np.float32)
    padded[: len(samples)] = samples
    return padded.reshape(num_rows, length)


def _labels(item: Item, outputs: Arrays, loaded: Loaded) -> TaskOutput | FleetError:
    [scores] = outputs.values()
    return labelled(scores, loaded, item.task.top_k)


def _read_speech(task: Transcribe, files: Files, loaded: Loaded) -> Item:
    if task.language is not None or task.translate:
        raise InvalidRequest("This model transcribes one language, and does not translate.")
    return _read(task, files, loaded)


def _transcript(item: Item, outputs: Arrays, loaded: Loaded) -> TaskOutput | FleetError:
    """Return what is written by the likeliest token of each time: repeats count once, blanks not.

    Graves et al., "Connectionist Temporal Classification" (2006), best path decoding.
    """
    declaration: Transcriber = loaded.declaration
    [scores] = outputs.values()
    if scores.ndim != 3:
        return WorkerFailed(f"The output has the shape {list(scores.shape)}: 3 axes are expected.")
    if declaration.output.layout == "BCT":
        scores = scores.transpose(0, 2, 1)
    if scores.shape[2] != len(loaded.names):
        return WorkerFailed(
            f"{loaded.model!r} writes {scores.shape[2]} tokens, but declares a vocabulary of "
            f"{len(loaded.names)}."
        )
    span: Span = item.about
    path = scores.argmax(axis=2).reshape(-1)
    words = _words_of(path, declaration, loaded.names)
    parts: list[SpokenPart] = []
    if item.task.timestamps != "none":
        # A sound may be too short for a single time.
        time_s = span.input_seconds / max(1, len(path))
        for text, first, end in words:
            start_s = min(first * time_s, span.seconds)
            parts.append(SpokenPart(text, start_s, min(end * time_s, span.seconds)))
    text = " ".join(word for word, _, _ in words)
    return TaskOutput(Transcript(text, span.seconds, None, tuple(parts)))


def _words_of(
    path: Array, declaration: Transcriber, names: tuple[str, ...]
) -> list[tuple[str, int, int]]:
    """Return the words of a path [T] of tokens, each with its first time and the one behind it."""
    words: list[tuple[str, int, int]] = []
    word = ""
    first = 0
    end = 0
    before = declaration.blank
    for time, token in enumerate(path.tolist()):
        is_new = token not in (before, declaration.blank)
        before = token
        if token == declaration.blank:
            continue
        if not is_new:
            end = time + 1
            continue
        # A token may hold spaces: "|" is one, "▁word" begins with one.
        for number, piece in enumerate(names[token].replace(declaration.space, " ").split(" ")):
            if number and word:
                words.append((word, first, end))
                word = ""
            if piece:
                if not word:
                    first = time
                word += piece
                end = time + 1
    if word:
        words.append((word, first, end))
    return words


SOUNDS = {
    "audio-classification": OnnxTask(
        inputs=_inputs,
        outputs=one_output,
        read=_read,
        output=_labels,
        trial=trial_of(ClassifySound, silence()),
    ),
    "automatic-speech-recognition": OnnxTask(
        inputs=_inputs,
        outputs=one_output,
        read=_read_speech,
        output=_transcript,
        trial=trial_of(Transcribe, silence()),
    ),
}
