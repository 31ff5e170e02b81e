"""Bodies of tasks that are done in one call of a network: inputs, options and results."""

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, Field, StrictBool

from api.schemas.audio import SILENCE
from api.schemas.fields import ByteInput, NonEmpty, RequestBody, Seed, shown
from api.schemas.files import FRAMES, PIXEL, MadeFile
from api.schemas.inference import (
    ClassificationOptions,
    InferenceRequest,
    Options,
    TaskRequest,
    options_field,
)
from shared.tasks.sound import SoundFormat
from shared.tasks.words import Aggregation

_IMAGE = f"data:image/gif;base64,{PIXEL}"

_VIDEO = f"data:video/mp4;base64,{FRAMES}"

Threshold = Annotated[float, Field(ge=0, le=1)]
Labels = Annotated[list[NonEmpty], Field(min_length=1, max_length=100)]
Template = Annotated[
    str, Field(max_length=1000, description="A sentence with {} where each label goes.")
]


class ImageRequest(InferenceRequest):
    """A request for a task that looks at one picture."""

    inputs: ByteInput = Field(validation_alias=AliasChoices("inputs", "input", "image"))


class ImageClassificationRequest(ImageRequest):
    model_config = shown(
        {
            "task": "image-classification",
            "inputs": _IMAGE,
            "model_id": "pictures",
            "options": {"top_k": 2},
        }
    )

    options: ClassificationOptions = options_field(ClassificationOptions)


class VideoClassificationRequest(TaskRequest):
    model_config = shown({"task": "video-classification", "inputs": _VIDEO, "model_id": "viewer"})

    inputs: ByteInput = Field(validation_alias=AliasChoices("inputs", "input", "video"))
    options: ClassificationOptions = options_field(ClassificationOptions)


class ZeroShotImageOptions(Options):
    candidate_labels: Labels
    hypothesis_template: Template = "This is a photo of {}."


class ZeroShotImageRequest(ImageRequest):
    model_config = shown(
        {
            "task": "zero-shot-image-classification",
            "inputs": _IMAGE,
            "model_id": "clip",
            "options": {"candidate_labels": ["a cat", "a cup"]},
        }
    )

    options: ZeroShotImageOptions = options_field()


class DetectionOptions(Options):
    threshold: Threshold = 0.5


class DetectionRequest(ImageRequest):
    model_config = shown(
        {
            "task": "object-detection",
            "inputs": _IMAGE,
            "model_id": "detector",
            "options": {"threshold": 0.4},
        }
    )

    options: DetectionOptions = options_field(DetectionOptions)


class ZeroShotDetectionOptions(Options):
    candidate_labels: Labels
    threshold: Threshold = 0.1


class ZeroShotDetectionRequest(ImageRequest):
    model_config = shown(
        {
            "task": "zero-shot-object-detection",
            "inputs": _IMAGE,
            "model_id": "finder",
            "options": {"candidate_labels": ["a cat", "a cup"]},
        }
    )

    options: ZeroShotDetectionOptions = options_field()


class ReadingOptions(Options):
    threshold: Annotated[Threshold, Field(description="Less likely lines are left out.")] = 0.5


class ReadingRequest(ImageRequest):
    model_config = shown(
        {"task": "optical-character-recognition", "inputs": _IMAGE, "model_id": "page"},
    )

    options: ReadingOptions = options_field(ReadingOptions)


class SegmentationOptions(Options):
    threshold: Threshold = 0.9
    mask_threshold: Threshold = 0.5


class SegmentationRequest(ImageRequest):
    model_config = shown({"task": "image-segmentation", "inputs": _IMAGE, "model_id": "segmenter"})

    options: SegmentationOptions = options_field(SegmentationOptions)


class DepthOptions(Options):
    with_map: Annotated[
        bool, Field(strict=True, description="A PNG of 16 bits with the depth of each pixel.")
    ] = False


class DepthRequest(ImageRequest):
    model_config = shown({"task": "depth-estimation", "inputs": _IMAGE, "model_id": "depth"})

    options: DepthOptions = options_field(DepthOptions)


class SoundRequest(InferenceRequest):
    """A request for a task that listens to one sound."""

    inputs: ByteInput = Field(validation_alias=AliasChoices("inputs", "input", "audio"))


class SoundClassificationRequest(SoundRequest):
    model_config = shown(
        {
            "task": "audio-classification",
            "inputs": SILENCE,
            "model_id": "sounds",
            "options": {"top_k": 2},
        }
    )

    options: ClassificationOptions = options_field(ClassificationOptions)


class SpeechOptions(Options):
    format: SoundFormat = "wav"
    speed: Annotated[float, Field(ge=0.25, le=4)] = 1.0
    speaker: Annotated[int, Field(strict=True, ge=0)] | None = None
    seed: Seed | None = None


class SpeechRequest(InferenceRequest):
    model_config = shown(
        {
            "task": "text-to-speech",
            "inputs": "good film",
            "model_id": "speaker",
            "options": {"format": "mp3", "seed": 1},
        }
    )

    options: SpeechOptions = options_field(SpeechOptions)


class TranscriptionOptions(Options):
    return_timestamps: Annotated[
        StrictBool | Literal["segment", "word"],
        Field(description="Times of segments (true), or of words."),
    ] = False
    language: NonEmpty | None = None
    translate: Annotated[bool, Field(strict=True, description="Into English.")] = False


class TranscriptionRequest(SoundRequest):
    model_config = shown(
        {
            "task": "automatic-speech-recognition",
            "inputs": SILENCE,
            "model_id": "whisper",
            "options": {"return_timestamps": True},
        }
    )

    options: TranscriptionOptions = options_field(TranscriptionOptions)


class WritingOptions(Options):
    max_new_tokens: Annotated[int, Field(strict=True, ge=1, le=4096)] | None = Field(
        None,
        validation_alias=AliasChoices("max_new_tokens", "max_length", "max_tokens"),
        description="Default: the network's own.",
    )


class SummarizationRequest(InferenceRequest):
    model_config = shown(
        {
            "task": "summarization",
            "inputs": "The engine is loud. It shakes. It is too loud.",
            "model_id": "summarizer",
            "options": {"max_new_tokens": 8},
        }
    )

    options: WritingOptions = options_field(WritingOptions)


_Language = Annotated[NonEmpty, Field(description="A code that the model knows.")]


class TranslationOptions(WritingOptions):
    src_lang: _Language | None = None
    tgt_lang: _Language | None = None


class TranslationRequest(InferenceRequest):
    model_config = shown(
        {
            "task": "translation",
            "inputs": "The engine is loud.",
            "model_id": "translator",
            "options": {"src_lang": "en", "tgt_lang": "de", "max_new_tokens": 8},
        }
    )

    options: TranslationOptions = options_field(TranslationOptions)


class Question(RequestBody):
    """A question, and the text that may answer it."""

    question: NonEmpty
    context: NonEmpty


class QuestionOptions(Options):
    top_k: Annotated[int, Field(strict=True, ge=1, le=100)] = 1
    max_answer_len: Annotated[int, Field(strict=True, ge=1, le=1000, description="In tokens.")] = 15


class QuestionRequest(TaskRequest):
    model_config = shown(
        {
            "task": "question-answering",
            "inputs": {"question": "Who sings?", "context": "Ada sings."},
            "model_id": "reader",
        }
    )

    inputs: Question = Field(validation_alias=AliasChoices("inputs", "input"))
    options: QuestionOptions = options_field(QuestionOptions)


class CaptionOptions(WritingOptions):
    prompt: Annotated[NonEmpty, Field(description="The beginning of the text.")] | None = None


class CaptionRequest(ImageRequest):
    model_config = shown({"task": "image-to-text", "inputs": _IMAGE, "model_id": "captioner"})

    options: CaptionOptions = options_field(CaptionOptions)


class ImageQuestion(RequestBody):
    image: ByteInput
    question: NonEmpty


class ImageQuestionOptions(Options):
    top_k: Annotated[int, Field(strict=True, ge=1, le=100)] = 5


class ImageQuestionRequest(TaskRequest):
    model_config = shown(
        {
            "task": "visual-question-answering",
            "inputs": {"image": _IMAGE, "question": "What is it?"},
            "model_id": "observer",
        }
    )

    inputs: ImageQuestion = Field(validation_alias=AliasChoices("inputs", "input"))
    options: ImageQuestionOptions = options_field(ImageQuestionOptions)


Duration = Annotated[float, Field(ge=0, le=60, allow_inf_nan=False)]


class VoiceActivityOptions(Options):
    threshold: Threshold = 0.5
    min_speech_s: Annotated[Duration, Field(description="Shorter parts are left out.")] = 0.25
    min_silence_s: Annotated[Duration, Field(description="Shorter pauses are ignored.")] = 0.1


class VoiceActivityRequest(SoundRequest):
    model_config = shown(
        {
            "task": "voice-activity-detection",
            "inputs": SILENCE,
            "model_id": "voice",
            "options": {"threshold": 0.6},
        }
    )

    options: VoiceActivityOptions = options_field(VoiceActivityOptions)


class ForecastOptions(Options):
    horizon: Annotated[
        int,
        Field(
            strict=True,
            ge=1,
            le=10_000,
            validation_alias=AliasChoices("horizon", "prediction_length"),
        ),
    ] = 24


def _as_numbers(value: Any) -> Any:
    """Return the numbers of a series. A text is CSV: its last column, below a head if it has one."""
    if not isinstance(value, str):
        return value
    cells = [row.rpartition(",")[2].strip().strip('"') for row in value.splitlines() if row.strip()]
    numbers: list[float] = []
    for place, cell in enumerate(cells):
        try:
            numbers.append(float(cell))
        except ValueError:
            if place > 0:
                raise ValueError(f"expected a number in line {place + 1} of the CSV") from None
    return numbers


class ForecastRequest(TaskRequest):
    model_config = shown(
        {
            "task": "time-series-forecasting",
            "inputs": [1, 2, 3, 4, 1, 2, 3, 4, 1, 2],
            "model_id": "oracle",
            "options": {"horizon": 4},
        },
        {
            "task": "time-series-forecasting",
            "inputs": "day,price\n1,10.5\n2,11\n3,12.5\n",
            "model_id": "oracle",
            "options": {"horizon": 2},
        },
    )

    inputs: Annotated[
        list[Annotated[float, Field(allow_inf_nan=False)]],
        BeforeValidator(_as_numbers, json_schema_input_type=list[float] | str),
        Field(min_length=1, max_length=100_000, description="Numbers, or CSV: its last column."),
    ] = Field(validation_alias=AliasChoices("inputs", "input"))
    options: ForecastOptions = options_field(ForecastOptions)


class TokenClassificationOptions(Options):
    aggregation_strategy: Aggregation = "simple"


class TokenClassificationRequest(InferenceRequest):
    model_config = shown(
        {
            "task": "token-classification",
            "inputs": "Ada lives in London.",
            "model_id": "names",
        }
    )

    options: TokenClassificationOptions = options_field(TokenClassificationOptions)


class ZeroShotOptions(Options):
    candidate_labels: Labels
    hypothesis_template: Template = "This example is {}."
    multi_label: Annotated[bool, Field(strict=True)] = False


class ZeroShotRequest(InferenceRequest):
    model_config = shown(
        {
            "task": "zero-shot-classification",
            "inputs": "The engine is too loud.",
            "model_id": "judge",
            "options": {"candidate_labels": ["praise", "complaint"]},
        }
    )

    options: ZeroShotOptions = options_field()


class FillMaskOptions(Options):
    top_k: Annotated[int, Field(strict=True, ge=1, le=1000)] = 5
    targets: Annotated[list[NonEmpty], Field(max_length=1000)] = Field(default_factory=list)


class FillMaskRequest(InferenceRequest):
    model_config = shown(
        {"task": "fill-mask", "inputs": "Paris is the [MASK] of France.", "model_id": "bert"}
    )

    options: FillMaskOptions = options_field(FillMaskOptions)


class WrittenResult(BaseModel):
    text: str


class AnswerBody(BaseModel):
    """An answer: the characters of the context from `start` to `end`, left out."""

    answer: str
    score: float
    start: int
    end: int


class QuestionResult(BaseModel):
    """The answers, the likeliest first."""

    answers: list[AnswerBody]


class ImageAnswerBody(BaseModel):
    """An answer. `score` is null where the network writes it."""

    answer: str
    score: float | None


class ImageQuestionResult(BaseModel):
    """The answers, the likeliest first."""

    answers: list[ImageAnswerBody]


class QuantileBody(BaseModel):
    """Numbers below which the future stays with the probability `level`."""

    level: float
    values: list[float]


class ForecastResult(BaseModel):
    """The numbers that are expected, and quantiles of each."""

    forecast: list[float]
    quantiles: list[QuantileBody]


class Box(BaseModel):
    """A box in pixels, from the top left corner."""

    xmin: int
    ymin: int
    xmax: int
    ymax: int


class ObjectBody(BaseModel):
    label: str
    score: float
    box: Box


class DetectionResult(BaseModel):
    """The objects, the likeliest first."""

    objects: list[ObjectBody]


Point = Annotated[list[int], Field(min_length=2, max_length=2, description="x and y, in pixels.")]


class LineBody(BaseModel):
    """A line of text. Its corners follow each other clockwise, the first letter's top first."""

    text: str
    score: float
    corners: Annotated[list[Point], Field(min_length=4, max_length=4)]


class ReadingResult(BaseModel):
    """The text of a picture. Lines beside each other share a row of `text`."""

    text: str
    lines: list[LineBody]


class SegmentBody(BaseModel):
    """A class or an object: the share of the picture that it covers, and its mask as a PNG."""

    label: str
    score: float | None
    area: float
    mask: MadeFile


class SegmentationResult(BaseModel):
    segments: list[SegmentBody]


class DepthResult(BaseModel):
    """The depth in the network's own unit. In the map it goes from `least` (0) to `most` (65535)."""

    least: float
    most: float
    mean: float
    map: MadeFile | None


class EntityBody(BaseModel):
    """A part of the text: its characters from `start` to `end`, left out."""

    label: str
    score: float
    text: str
    start: int
    end: int


class TokenClassificationResult(BaseModel):
    entities: list[EntityBody]


class FillBody(BaseModel):
    """A token for a mask, and the whole text with it."""

    token: int
    token_str: str
    score: float
    sequence: str


class FillMaskResult(BaseModel):
    """For each mask its tokens, the likeliest first."""

    masks: list[list[FillBody]]


class SpokenPartBody(BaseModel):
    """A part of what is spoken, in seconds. `end` is null where the sound ends before."""

    text: str
    start: float
    end: float | None


class SpeechResult(BaseModel):
    """A sound of so many seconds and samples a second."""

    audio: MadeFile
    seconds: float
    sampling_rate: int


class TranscriptionResult(BaseModel):
    """The words that are spoken in a sound of so many seconds, and their language if it is known."""

    text: str
    seconds: float
    language: str | None
    parts: list[SpokenPartBody]


class SpeechPartBody(BaseModel):
    """A part with speech, in seconds, and its mean probability."""

    start: float
    end: float
    score: float


class VoiceActivityResult(BaseModel):
    """The parts in which somebody speaks, of a sound of so many seconds."""

    parts: list[SpeechPartBody]
    seconds: float
