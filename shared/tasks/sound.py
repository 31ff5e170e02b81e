"""The tasks that listen to a sound, and their results. An `audio` is the id of an artifact."""

from typing import Literal

import msgspec

from shared.tasks.results import OtherResult
from shared.tasks.specs import OtherTask

SoundFormat = Literal["wav", "mp3", "flac", "opus", "aac", "pcm"]
"""The formats of sounds that are made. `opus` is in OGG; `pcm` are bare 16-bit samples."""

Timestamps = Literal["none", "segment", "word"]
"""The parts of a transcript whose times are told."""


class ClassifySound(OtherTask, frozen=True, omit_defaults=True, tag="audio-classification"):
    """Return the labels of a sound: the `top_k` likeliest, or all."""

    audio: str
    top_k: int | None = None


class Transcribe(OtherTask, frozen=True, omit_defaults=True, tag="automatic-speech-recognition"):
    """Return the words that are spoken, in their `language` (None: the network finds it).

    With `translate` they are returned in English.
    """

    audio: str
    timestamps: Timestamps = "none"
    language: str | None = None
    translate: bool = False


class Speak(OtherTask, frozen=True, omit_defaults=True, tag="text-to-speech"):
    """Return a text as it is spoken. Equal seeds, equal sounds.

    `speaker` is the number of one of the network's voices; None is its first. At a `speed` of 2 it
    takes half as long.
    """

    text: str
    seed: int
    format: SoundFormat = "wav"
    speed: float = 1.0
    speaker: int | None = None


class Spoken(OtherResult, frozen=True, tag="text-to-speech"):
    """The length of what was spoken. The answer's artifact is the sound, of one channel."""

    seconds: float
    rate: int


class SpokenPart(msgspec.Struct, frozen=True):
    """A part of what is spoken, and when it begins and ends, in seconds.

    `end` is None where the sound ends before the part does.
    """

    text: str
    start: float
    end: float | None


class Transcript(OtherResult, frozen=True, omit_defaults=True, tag="automatic-speech-recognition"):
    """The words spoken in a sound of so many seconds, and the parts whose times were asked for."""

    text: str
    seconds: float
    language: str | None = None
    parts: tuple[SpokenPart, ...] = ()


class DetectSpeech(OtherTask, frozen=True, omit_defaults=True, tag="voice-activity-detection"):
    """Return the parts of a sound in which somebody speaks, likelier than `threshold`.

    Parts that a pause below `min_silence_s` divides are one part, and parts below `min_speech_s`
    are left out; both in seconds.
    """

    audio: str
    threshold: float = 0.5
    min_speech_s: float = 0.25
    min_silence_s: float = 0.1


class SpeechPart(msgspec.Struct, frozen=True):
    """A part of a sound with speech, in seconds. `score` is the mean probability of speech."""

    start: float
    end: float
    score: float


class DetectedSpeech(OtherResult, frozen=True, tag="voice-activity-detection"):
    """The parts with speech of a sound of so many seconds, in the order of time."""

    parts: tuple[SpeechPart, ...]
    seconds: float
