"""The tasks that listen to a sound, done by pipelines."""

import io
import wave
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutomaticSpeechRecognitionPipeline, StoppingCriteriaList
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

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
from worker.tasks.watch import Watch

_WHISPER = "seq2seq_whisper"
"""The pipeline's name of Whisper and its like, which know languages and times."""
_ENGLISH = ("en", "english")
_LETTERS = "ctc"
"""The pipeline's name of networks that write letters, one for each piece of sound."""

_LEAST_PARTS = 10
"""A sound is at least this part of a second."""
_SHORT_S = 1.0
_MOST_TOKENS_OF_SHORT = 32
"""The most tokens of a sound below `_SHORT_S`: in silence Whisper repeats itself to its limit."""

SoundTask = ClassifySound | Transcribe

# The library types its methods for each task in another way.
_Library: Any = AutomaticSpeechRecognitionPipeline


class SpeechPipeline(_Library):  # type: ignore[misc]
    """The library's transcription that also tells the language of each sound of a batch.

    With its own `return_language` the library tells that of the first sound alone.
    """

    watch: Watch | None = None

    def _forward(self, model_inputs: dict[str, Any], **params: Any) -> dict[str, Any]:
        config = self.model.config
        attention = config._attn_implementation
        try:
            if self.watch is None or self.type != _WHISPER:
                return self._with_languages(model_inputs, params)
            return self._watched(self.watch, model_inputs, params)
        finally:
            # For times of words the library changes it, and would leave it so.
            config._attn_implementation = attention

    def _watched(
        self, watch: Watch, model_inputs: dict[str, Any], params: dict[str, Any]
    ) -> dict[str, Any]:
        num_frames = model_inputs["attention_mask"].sum(dim=-1).tolist()
        listening = watch.over_listening(_WhisperSpeech(self), num_frames)
        params["monitor_progress"] = listening.begin_window
        params["stopping_criteria"] = StoppingCriteriaList([listening])
        write = self.model.generate_with_fallback

        def write_window(*args: Any, **kwargs: Any) -> Any:
            written = write(*args, **kwargs)
            sequences, _, is_skipped, *_ = written
            listening.end_window(sequences, is_skipped)
            return written

        # Only here the library tells which beam it has chosen.
        self.model.generate_with_fallback = write_window
        try:
            return self._with_languages(model_inputs, params)
        finally:
            del self.model.generate_with_fallback

    def _with_languages(
        self, model_inputs: dict[str, Any], params: dict[str, Any]
    ) -> dict[str, Any]:
        languages = _languages_of(self)
        if not languages:
            untold: dict[str, Any] = super()._forward(model_inputs, **params)
            return untold
        features = model_inputs["input_features"]
        if "language" in params:
            ids = [languages[params["language"]]] * len(features)
        else:
            ids = self._find_languages(features)
            # Told which they are, `generate` does not find them again.
            names = {number: token for token, number in languages.items()}
            params["language"] = [names[number] for number in ids]
        outputs = super()._forward(model_inputs, **params)
        return {**outputs, "language_id": torch.tensor(ids)}

    def _find_languages(self, features: torch.Tensor) -> list[int]:
        """Return the token of the language of each sound, given `features` [B, bins, frames]."""
        encoder = self.model.get_encoder()
        stride = encoder.conv1.stride[0] * encoder.conv2.stride[0]
        ids: list[int] = self.model.detect_language(
            input_features=features,
            generation_config=self.model.generation_config,
            # Of a longer sound its beginning tells.
            num_segment_frames=stride * self.model.config.max_source_positions,
        ).tolist()
        return ids

    def postprocess(self, model_outputs: list[dict[str, Any]], **params: Any) -> dict[str, Any]:
        number = model_outputs[0].pop("language_id", None)
        found: dict[str, Any] = super().postprocess(model_outputs, **params)
        if number is not None:
            names = {number: token for token, number in _languages_of(self).items()}
            found["language"] = _code_of(names[int(number)])
        return found


class _WhisperSpeech:
    """The texts of Whisper's tokens."""

    def __init__(self, pipe: SpeechPipeline) -> None:
        self._pipe = pipe
        self._specials = set(pipe.tokenizer.all_special_ids)
        self.first_time = pipe.tokenizer.convert_tokens_to_ids("<|notimestamps|>") + 1

    def read(self, tokens: Sequence[int]) -> tuple[str, str]:
        output = {"tokens": torch.tensor([tokens])}
        found = self._pipe.postprocess([output], return_timestamps=True)
        settled = ""
        rest = ""
        # Only the last part may lack an end: what comes is added to it, and may change it.
        for part in found["chunks"]:
            if part["timestamp"][1] is None:
                rest = part["text"]
            else:
                settled += part["text"]
        return settled, rest

    def guess(self, tokens: Sequence[int]) -> str:
        words = []
        for token in tokens:
            if token < self.first_time and token not in self._specials:
                words.append(token)
        text: str = self._pipe.tokenizer.decode(words)
        # The last letter may lack some of its bytes.
        return text.rstrip("\ufffd")

    def is_end(self, token: int) -> bool:
        return token in self._specials


def _languages_of(pipe: Any) -> Mapping[str, int]:
    """Return the tokens of a network's languages, such as <|en|>, and their ids.

    They are none of a network that knows one language.
    """
    generation = getattr(pipe.model, "generation_config", None)
    if not getattr(generation, "is_multilingual", False):
        return {}
    languages: Mapping[str, int] = getattr(generation, "lang_to_id", {})
    return languages


def _is_its_own(language: str | None, pipe: Any) -> bool:
    """Return whether a network of one language may be told this one. Whisper's is English."""
    if language is None:
        return True
    return pipe.type == _WHISPER and language.lower() in _ENGLISH


def _code_of(token: str) -> str:
    """Return the code of a language by its token: en for <|en|>."""
    return token.strip("<|>")


def _read(task: SoundTask, files: Files, loaded: Loaded) -> Decoded:
    data = files.read(task.audio, max_bytes=MAX_SOUND_BYTES)
    rate = int(loaded.pipe.feature_extractor.sampling_rate)
    samples = decode_sound(data, rate=rate, max_seconds=loaded.max_seconds)
    # Convolutions need some samples: what is shorter is followed by silence.
    num_missing = max(0, rate // _LEAST_PARTS - len(samples))
    return Decoded(np.pad(samples, (0, num_missing)), len(samples) / rate)


def _transcribe_options(task: Transcribe, decoded: Decoded, loaded: Loaded) -> dict[str, Any]:
    """Return the options of the pipeline.

    Raise InvalidRequest for what the network cannot do, and for a language that it does not know.
    """
    pipe = loaded.pipe
    languages = _languages_of(pipe)
    if not languages and (task.translate or not _is_its_own(task.language, pipe)):
        raise InvalidRequest("This model transcribes one language, and does not translate.")
    options: dict[str, Any] = {}
    if pipe.type != _WHISPER:
        if task.timestamps != "none":
            if pipe.type != _LETTERS:
                raise InvalidRequest("This model tells no times.", field="timestamps")
            options["return_timestamps"] = "word"
        return options

    is_long = len(decoded.value) > pipe.feature_extractor.n_samples
    if task.timestamps == "word":
        if not getattr(pipe.model.generation_config, "alignment_heads", None):
            raise InvalidRequest("This model tells no times of words.", field="timestamps")
        options["return_timestamps"] = "word"
    elif task.timestamps == "segment" or is_long:
        # What is longer than the network's window is transcribed from one time to the next.
        options["return_timestamps"] = True
    generate: dict[str, Any] = {}
    if decoded.seconds < _SHORT_S:
        generate["max_new_tokens"] = _MOST_TOKENS_OF_SHORT
    if task.language is not None and languages:
        generate["language"] = _token_of(task.language, languages)
    if task.translate:
        generate["task"] = "translate"
    if generate:
        options["generate_kwargs"] = generate
    return options


def _is_alone(task: Transcribe, loaded: Loaded) -> bool:
    """Return whether the times that are asked for would depend on other sounds of a call.

    Whisper's times of words do: the library aligns all its tokens, also those that fill a row up.
    """
    return loaded.pipe.type == _WHISPER and task.timestamps == "word"


def _token_of(language: str, languages: Mapping[str, int]) -> str:
    """Return the token of a language, which is given by its code or its English name.

    Raise InvalidRequest for one that is not among `languages`.
    """
    name = language.lower()
    token = f"<|{TO_LANGUAGE_CODE.get(name, name)}|>"
    if token not in languages:
        known = ", ".join(sorted(_code_of(one) for one in languages))
        raise InvalidRequest(
            f"language: expected one of {known}, got {language!r}.", field="language"
        )
    return token


def _transcript(task: Transcribe, found: dict[str, Any], seconds: float) -> TaskOutput:
    parts: list[SpokenPart] = []
    if task.timestamps != "none":
        last = 0.0
        for one in found.get("chunks", ()):
            start, end = one["timestamp"]
            # A network may leave a time out: then a part begins where the one before it ends.
            start = last if start is None else float(start)
            # Times of numpy cannot be sent.
            end = None if end is None else float(end)
            parts.append(SpokenPart(one["text"].strip(), start, end))
            last = start if end is None else end
    transcript = Transcript(found["text"].strip(), seconds, found.get("language"), tuple(parts))
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
        alone=lambda task, loaded: True,
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
        pipeline=SpeechPipeline,
        alone=_is_alone,
        trial=trial_of(Transcribe, silence()),
    ),
}
