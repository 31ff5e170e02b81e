"""The tasks that listen to a sound, done by pipelines."""

import io
import wave
from typing import Any

import numpy as np

from shared.errors import InvalidRequest
from shared.tasks.sound import (
    ClassifySound,
    Speak,
    Spoken,
    SpokenPart,
    Transcribe,
    Transcript,
)
from worker.engine.task_runner import Files, NewFile, TaskOutput
from worker.media.sound import (
    MAX_SOUND_BYTES,
    MEDIA_TYPES,
    Samples,
    decode_sound,
    encode_sound,
)
from worker.tasks.labels import ALL_LABELS, labels_output
from worker.tasks.one_shot import Decoded, Loaded, OneShot, trial_of
from worker.tasks.own_pipelines import Speaker

_WHISPER = "seq2seq_whisper"
"""The pipeline's name of Whisper and its like, which know languages and times."""

_LEAST_PARTS = 10
"""A sound is at least this part of a second."""

SoundTask = ClassifySound | Transcribe


def _read(task: SoundTask, files: Files, loaded: Loaded) -> Decoded:
    data = files.read(task.audio, max_bytes=MAX_SOUND_BYTES)
    rate = int(loaded.pipe.feature_extractor.sampling_rate)
    samples = decode_sound(data, rate=rate, max_seconds=loaded.max_seconds)
    # Convolutions need some samples: what is shorter is followed by silence.
    num_missing = max(0, rate // _LEAST_PARTS - len(samples))
    return Decoded(np.pad(samples, (0, num_missing)), len(samples) / rate)


def _transcribe_options(task: Transcribe, decoded: Decoded, loaded: Loaded) -> dict[str, Any]:
    """Return the options of the pipeline.

    Raise InvalidRequest for what only Whisper can do, of another network.
    """
    options: dict[str, Any] = {}
    if loaded.pipe.type != _WHISPER:
        if task.language is not None or task.translate:
            raise InvalidRequest("This model transcribes one language, and does not translate.")
        if task.timestamps != "none":
            options["return_timestamps"] = "word"
        return options

    is_long = len(decoded.value) > loaded.pipe.feature_extractor.n_samples
    if task.timestamps == "word":
        options["return_timestamps"] = "word"
    elif task.timestamps == "segment" or is_long:
        # What is longer than the network's window is transcribed from one time to the next.
        options["return_timestamps"] = True
    generate: dict[str, Any] = {}
    if task.language is not None:
        generate["language"] = task.language
    if task.translate:
        generate["task"] = "translate"
    if generate:
        options["generate_kwargs"] = generate
    return options


def _transcript(task: Transcribe, found: dict[str, Any], seconds: float) -> TaskOutput:
    parts: list[SpokenPart] = []
    if task.timestamps != "none":
        for one in found.get("chunks", ()):
            start, end = one["timestamp"]
            # Times of numpy cannot be sent.
            end = None if end is None else float(end)
            parts.append(SpokenPart(one["text"].strip(), float(start or 0.0), end))
    transcript = Transcript(found["text"].strip(), seconds, task.language, tuple(parts))
    return TaskOutput(transcript)


def silence() -> bytes:
    """Return a WAV file of half a second."""
    data = io.BytesIO()
    with wave.open(data, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(bytes(16_000))
    return data.getvalue()


def _read_text(task: Speak, files: Files, loaded: Loaded) -> Decoded:
    num_speakers = loaded.pipe.model.config.num_speakers
    if task.speaker is not None and task.speaker >= num_speakers:
        raise InvalidRequest(
            f"voice: this model has {num_speakers} voices, from 0 on.", field="voice"
        )
    return Decoded(task.text)


def _speak_options(task: Speak, decoded: Decoded, loaded: Loaded) -> dict[str, Any]:
    speaker = None
    if loaded.pipe.model.config.num_speakers > 1:
        speaker = task.speaker or 0
    return {"seed": task.seed, "speed": task.speed, "speaker": speaker}


def _spoken(task: Speak, found: tuple[Samples, int], seconds: float) -> TaskOutput:
    samples, rate = found
    data = encode_sound(samples, rate, task.format)
    file = NewFile(data, MEDIA_TYPES[task.format], f"speech.{task.format}")
    return TaskOutput(Spoken(len(samples) / rate, rate), (file,))


SOUND = {
    "text-to-speech": OneShot(
        parts=("tokenizer",),
        read=_read_text,
        options=_speak_options,
        output=_spoken,
        trial=(Speak("a", seed=0), {}),
        pipeline=Speaker,
    ),
    "audio-classification": OneShot(
        parts=("feature_extractor",),
        read=_read,
        options=lambda task, decoded, loaded: {"top_k": task.top_k or ALL_LABELS},
        output=labels_output,
        trial=trial_of(ClassifySound, silence()),
    ),
    "automatic-speech-recognition": OneShot(
        parts=("feature_extractor", "tokenizer"),
        read=_read,
        options=_transcribe_options,
        output=_transcript,
        trial=trial_of(Transcribe, silence()),
    ),
}
