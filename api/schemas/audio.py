"""Bodies of `/v1/audio` as OpenAI documents them."""

import re
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from api.schemas.fields import (
    ByteInput,
    NonEmpty,
    Refused,
    RequestBody,
    Seed,
    SpokenText,
    refuse,
    refuse_unsupported,
    seed_of,
    shown,
)
from api.schemas.plain_text import PlainText
from shared.tasks.sound import (
    SoundFormat,
    Speak,
    SpokenPart,
    Timestamps,
    Transcribe,
    Transcript,
)

Format = Literal["json", "text", "srt", "verbose_json", "vtt"]
Granularity = Literal["word", "segment"]

SILENCE = (
    "data:audio/wav;base64,UklGRnMAAABXQVZFZm10IBAAAAABAAEAQB8AAEAfAAABAAgAZGF0YU8AAACAgICAgICAgICA"
    "gICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICA"
)
"""A hundredth of a second of silence."""
_REFUSED: Refused = {
    "prompt": [""],
    "include": [[]],
    "keywords": [[]],
    "languages": [[]],
    "known_speaker_names": [[]],
    "known_speaker_references": [[]],
    "chunking_strategy": ["auto"],
}
"""Fields for what only OpenAI's models can do, with the values that ask for nothing."""


class SpokenRequest(RequestBody):
    """A sound with speech, in a form or in JSON. Words are chosen greedily."""

    refused: ClassVar[Refused] = _REFUSED
    file: ByteInput
    model: str | None = None
    response_format: Format = "json"
    temperature: float = 0.0

    @model_validator(mode="before")
    @classmethod
    def _only_what_is_served(cls, value: Any) -> Any:
        return refuse_unsupported(value, cls.refused)

    @model_validator(mode="after")
    def _is_greedy(self) -> Self:
        if self.temperature != 0:
            raise refuse("temperature", "words are not drawn by chance; it must be absent or 0")
        return self

    @property
    def timestamps(self) -> Timestamps:
        """The parts whose times the answer's format tells."""
        return "none" if self.response_format in ("json", "text") else "segment"

    def task(self) -> Transcribe:
        return Transcribe(self.file, self.timestamps, translate=True)


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class AudioTranscriptionRequest(SpokenRequest):
    model_config = shown(
        {"file": SILENCE, "model": "whisper"},
        {"file": SILENCE, "model": "whisper", "response_format": "verbose_json"},
    )

    language: NonEmpty | None = None
    timestamp_granularities: Annotated[
        list[Granularity], BeforeValidator(_as_list), Field(min_length=1, max_length=1)
    ] = Field(["segment"], description="Only for verbose_json.")
    stream: bool = False

    @model_validator(mode="after")
    def _one_granularity(self) -> Self:
        is_given = "timestamp_granularities" in self.model_fields_set
        if is_given and self.response_format != "verbose_json":
            raise refuse("timestamp_granularities", "response_format must be verbose_json")
        return self

    @property
    def timestamps(self) -> Timestamps:
        if self.timestamp_granularities == ["word"]:
            return "word"
        return super().timestamps

    def task(self) -> Transcribe:
        return Transcribe(self.file, self.timestamps, self.language)


class AudioTranslationRequest(SpokenRequest):
    """A sound to be told in English, whatever its language."""

    model_config = shown({"file": SILENCE, "model": "polyglot"})


class SpeakRequest(RequestBody):
    """A text to be spoken. The answer is the sound itself."""

    model_config = shown(
        {"input": "good film", "model": "speaker", "voice": "0", "response_format": "wav"}
    )

    refused: ClassVar[Refused] = {"instructions": [""], "stream_format": ["audio"]}
    input: SpokenText
    model: str | None = None
    voice: Annotated[
        str, Field(description="The number of one of the model's voices; a name stands for 0.")
    ] = "0"
    response_format: SoundFormat = "mp3"
    speed: Annotated[float, Field(ge=0.25, le=4)] = 1.0
    seed: Seed | None = None

    @model_validator(mode="before")
    @classmethod
    def _only_what_is_served(cls, value: Any) -> Any:
        return refuse_unsupported(value, cls.refused)

    def task(self) -> Speak:
        # Clients must name a voice, so they send those of OpenAI.
        speaker = int(self.voice) if re.fullmatch(r"[0-9]{1,6}", self.voice) else None
        return Speak(self.input, seed_of(self.seed), self.response_format, self.speed, speaker)


class DurationUsage(BaseModel):
    type: Literal["duration"] = "duration"
    seconds: float


class Transcription(BaseModel):
    text: str
    usage: DurationUsage


class SpokenSegment(BaseModel):
    """A part of what is spoken. Times are in seconds; `end` is null where the sound ends before."""

    id: int
    start: float
    end: float | None
    text: str


class SpokenWord(BaseModel):
    word: str
    start: float
    end: float | None


class VerboseTranscription(BaseModel):
    """A transcript with the times of its segments or words. OpenAI's measures are left out."""

    task: Literal["transcribe", "translate"]
    language: str | None
    duration: float
    text: str
    segments: list[SpokenSegment] | None = None
    words: list[SpokenWord] | None = None
    usage: DurationUsage


Answer = Transcription | VerboseTranscription | PlainText


def transcription(found: Transcript, notes: dict[str, Any]) -> Answer:
    """Return a transcript in the format of its request, whose `notes` name it."""
    usage = DurationUsage(seconds=found.seconds)
    match notes["format"]:
        case "text":
            return PlainText(found.text + "\n")
        case "srt":
            return PlainText(_subtitles(found, mark=","))
        case "vtt":
            return PlainText("WEBVTT\n\n" + _subtitles(found, mark="."))
        case "verbose_json":
            segments = None
            words = None
            if notes["timestamps"] == "word":
                words = [
                    SpokenWord(word=part.text, start=part.start, end=part.end)
                    for part in found.parts
                ]
            else:
                segments = [
                    SpokenSegment(id=number, start=part.start, end=part.end, text=part.text)
                    for number, part in enumerate(found.parts)
                ]
            return VerboseTranscription(
                task=notes["task"],
                language=found.language,
                duration=found.seconds,
                text=found.text,
                segments=segments,
                words=words,
                usage=usage,
            )
        case _:
            return Transcription(text=found.text, usage=usage)


def _subtitles(found: Transcript, *, mark: str) -> str:
    """Return the parts of a transcript as subtitles. `mark` stands before milliseconds."""
    blocks = []
    for number, part in enumerate(found.parts):
        times = f"{_time(part.start, mark)} --> {_time(_end_of(part, found), mark)}"
        head = f"{number + 1}\n{times}" if mark == "," else times
        blocks.append(f"{head}\n{part.text}\n\n")
    return "".join(blocks)


def _end_of(part: SpokenPart, found: Transcript) -> float:
    return found.seconds if part.end is None else part.end


def _time(seconds: float, mark: str) -> str:
    """Return a time as 00:01:02,345."""
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{rest // 1000:02}{mark}{rest % 1000:03}"
