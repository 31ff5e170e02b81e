"""The answer of local inference, whatever the task."""

from pydantic import BaseModel

from api.schemas.inference import (
    ClassificationResult,
    EchoResult,
    FeatureResult,
    TextGenerationResult,
    TimesBody,
)
from api.schemas.meshes import MeshResult
from api.schemas.one_shots import (
    DepthResult,
    DetectionResult,
    FillMaskResult,
    ForecastResult,
    ImageQuestionResult,
    QuestionResult,
    ReadingResult,
    SegmentationResult,
    SpeechResult,
    TokenClassificationResult,
    TranscriptionResult,
    VoiceActivityResult,
    WrittenResult,
)
from api.schemas.pictures import PicturesResult
from api.schemas.usage import UsageBody
from api.schemas.videos import VideoResult

Result = (
    EchoResult
    | TextGenerationResult
    | ClassificationResult
    | FeatureResult
    | WrittenResult
    | ReadingResult
    | QuestionResult
    | ImageQuestionResult
    | SpeechResult
    | ForecastResult
    | DetectionResult
    | SegmentationResult
    | DepthResult
    | TokenClassificationResult
    | FillMaskResult
    | TranscriptionResult
    | VoiceActivityResult
    | PicturesResult
    | VideoResult
    | MeshResult
)


class InferenceResponse(BaseModel):
    """The answer. By its `correlation_id` the request can be looked up and cancelled."""

    correlation_id: str
    model_id: str | None
    task: str
    result: Result
    usage: UsageBody
    metrics: TimesBody
