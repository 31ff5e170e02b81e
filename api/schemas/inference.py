"""Bodies of local inference: one route for all tasks, with options and a result for each.

Those of tasks that are done in one call of a network are in `api/schemas/one_shots.py`.

Times are in milliseconds by the clock of Redis, from when the request was queued to when its job
ended.
"""

from typing import Annotated, Any, ClassVar

from pydantic import AliasChoices, BaseModel, Field, model_validator

from api.schemas.fields import (
    ByteInput,
    MaxTokens,
    NonEmpty,
    Refused,
    RequestBody,
    SampledRequest,
    refuse_unsupported,
    shown,
)
from api.schemas.files import PIXEL
from api.stream.timings import Timings

DEFAULT_MAX_TOKENS = 50
_Streamed = Annotated[bool, Field(strict=True, validation_alias=AliasChoices("stream", "_stream"))]


class Options(RequestBody):
    stream: _Streamed = False


def options_field(kind: type[RequestBody] | None = None) -> Any:
    """Return the field of a task's options, which Hugging Face's clients call `parameters`.

    Without a type they must be given.
    """
    names = AliasChoices("options", "parameters")
    if kind is None:
        return Field(validation_alias=names)
    return Field(default_factory=lambda: kind.model_validate({}), validation_alias=names)


class TextGenerationOptions(SampledRequest):
    refused: ClassVar[Refused] = {"n": (1,)}
    max_tokens: MaxTokens | None = Field(
        None,
        validation_alias=AliasChoices("max_new_tokens", "max_tokens"),
        description="Default 50.",
    )
    stream: _Streamed = False

    @model_validator(mode="before")
    @classmethod
    def _one_text(cls, value: Any) -> Any:
        return refuse_unsupported(value, cls.refused)


class ClassificationOptions(Options):
    top_k: (
        Annotated[int, Field(strict=True, ge=1, description="The likeliest labels only.")] | None
    ) = None


class FeatureOptions(Options):
    normalize: Annotated[bool, Field(strict=True, description="Vectors of length 1.")] = True


class TaskRequest(RequestBody):
    """A request for a task.

    `task` names it, or else `pipeline_tag`. Without both, the inputs come back.
    """

    model_id: str | None = Field(None, validation_alias=AliasChoices("model_id", "model"))
    task: str | None = None
    pipeline_tag: str | None = Field(None, description="Hugging Face's name of a task.")
    stream: Annotated[bool, Field(strict=True)] = False


class InferenceRequest(TaskRequest):
    """A request for a task that takes a text."""

    inputs: NonEmpty = Field(validation_alias=AliasChoices("inputs", "input", "text", "prompt"))


class EchoRequest(InferenceRequest):
    model_config = shown({"inputs": "Hello"})

    options: Options = options_field(Options)


class TextGenerationRequest(InferenceRequest):
    model_config = shown(
        {
            "task": "text-generation",
            "inputs": "Compute: 347 + 285",
            "options": {"temperature": 0, "max_tokens": 60},
        }
    )

    options: TextGenerationOptions = options_field(TextGenerationOptions)


class ImageText(RequestBody):
    """A picture, and what is asked about it."""

    image: ByteInput
    text: NonEmpty


class ImageTextRequest(TaskRequest):
    model_config = shown(
        {
            "task": "image-text-to-text",
            "inputs": {"image": f"data:image/gif;base64,{PIXEL}", "text": "a film"},
            "model_id": "vision",
            "options": {"temperature": 0, "max_tokens": 4},
        }
    )

    inputs: ImageText = Field(validation_alias=AliasChoices("inputs", "input"))
    options: TextGenerationOptions = options_field(TextGenerationOptions)


class ClassificationRequest(InferenceRequest):
    model_config = shown(
        {
            "task": "text-classification",
            "inputs": "I like it.",
            "model_id": "classifier",
            "options": {"top_k": 2},
        }
    )

    options: ClassificationOptions = options_field(ClassificationOptions)


class FeatureRequest(InferenceRequest):
    model_config = shown(
        {"pipeline_tag": "feature-extraction", "inputs": "Hello", "options": {"normalize": True}}
    )

    options: FeatureOptions = options_field(FeatureOptions)


class EchoResult(BaseModel):
    echo: str


class TextGenerationResult(BaseModel):
    text: str
    finish_reason: str


class LabelBody(BaseModel):
    label: str
    score: float


class ClassificationResult(BaseModel):
    """The labels, the likeliest first."""

    labels: list[LabelBody]


class FeatureResult(BaseModel):
    embedding: list[float]
    dimensions: int


class TimesBody(BaseModel):
    """The times from the request's coming to its end and to its first token, and its speed.

    What is not known is null. Answers that are no text have no first token.
    """

    runtime_ms: float | None
    first_token_latency_ms: float | None
    tokens_per_second: float | None


def times_body(timings: Timings | None) -> TimesBody:
    if timings is None:
        return TimesBody(runtime_ms=None, first_token_latency_ms=None, tokens_per_second=None)
    return TimesBody(
        runtime_ms=_ms(timings.total_s),
        first_token_latency_ms=_ms(timings.first_token_s),
        tokens_per_second=timings.tokens_per_s,
    )


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000 * seconds, 1)
