"""Bodies of local inference: one door for all tasks; each task has its own options and its own result.

Times are in milliseconds, as the front measures them: from when it took the request, to when it could answer.
"""

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, Field, model_validator

from api.schemas.fields import MaxTokens, NonEmpty, RequestBody, SampledRequest, refuse_unsupported, shown
from api.schemas.usage import UsageBody
from api.timings import Timings
from shared.messages import ModelInfo, WorkerInfo
from shared.presence import Fleet

DEFAULT_MAX_TOKENS = 50
_Streamed = Annotated[bool, Field(strict=True, validation_alias=AliasChoices("stream", "_stream"))]


class Options(RequestBody):
    stream: _Streamed = False


class TextGenerationOptions(SampledRequest):
    max_tokens: MaxTokens | None = Field(
        None, validation_alias=AliasChoices("max_new_tokens", "max_tokens"), description="Default 50."
    )
    stream: _Streamed = False

    @model_validator(mode="before")
    @classmethod
    def _one_text(cls, value: Any) -> Any:
        return refuse_unsupported(value, {"n": (1,)})


class ClassificationOptions(Options):
    top_k: Annotated[int, Field(strict=True, ge=1, description="The likeliest labels only.")] | None = None


class FeatureOptions(Options):
    normalize: Annotated[bool, Field(strict=True, description="Vectors of length 1.")] = True


class InferenceRequest(RequestBody):
    """`task` names what to do; without it `pipeline_tag` does; without both, the inputs come back."""

    inputs: NonEmpty = Field(validation_alias=AliasChoices("inputs", "input", "text", "prompt"))
    model_id: str | None = Field(None, validation_alias=AliasChoices("model_id", "model"))
    task: str | None = None
    pipeline_tag: str | None = Field(None, description="Hugging Face's name of a task.")
    stream: Annotated[bool, Field(strict=True)] = False


class EchoRequest(InferenceRequest):
    model_config = shown({"inputs": "Hello"})

    options: Options = Field(default_factory=lambda: Options.model_validate({}))


class TextGenerationRequest(InferenceRequest):
    model_config = shown(
        {"task": "text-generation", "inputs": "Compute: 347 + 285", "options": {"temperature": 0, "max_tokens": 60}}
    )

    options: TextGenerationOptions = Field(default_factory=lambda: TextGenerationOptions.model_validate({}))


class ClassificationRequest(InferenceRequest):
    model_config = shown(
        {"task": "text-classification", "inputs": "I like it.", "model_id": "classifier", "options": {"top_k": 2}}
    )

    options: ClassificationOptions = Field(default_factory=lambda: ClassificationOptions.model_validate({}))


class FeatureRequest(InferenceRequest):
    model_config = shown({"pipeline_tag": "feature-extraction", "inputs": "Hello", "options": {"normalize": True}})

    options: FeatureOptions = Field(default_factory=lambda: FeatureOptions.model_validate({}))


class EchoResult(BaseModel):
    echo: str


class TextGenerationResult(BaseModel):
    text: str
    finish_reason: str


class LabelBody(BaseModel):
    label: str
    score: float


class ClassificationResult(BaseModel):
    """Likeliest first."""

    labels: list[LabelBody]


class FeatureResult(BaseModel):
    embedding: list[float]
    dimensions: int


Result = EchoResult | TextGenerationResult | ClassificationResult | FeatureResult


class TimesBody(BaseModel):
    """From the request's coming to its end, and to its first token; tokens are counted while it ran. Null for what is
    not known: answers that are no text have no first token."""

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


class InferenceResponse(BaseModel):
    """By `correlation_id` the request can be asked for and cancelled."""

    correlation_id: str
    model_id: str | None
    task: str
    result: Result
    usage: UsageBody
    metrics: TimesBody


class Acceleration(BaseModel):
    """What a model computes with; empty where its worker does not tell."""

    device: str
    dtype: str


class ModelStatus(BaseModel):
    """`unavailable` while no worker serves it; of those that do, `in_flight` jobs of all their models."""

    model_id: str
    status: Literal["ready", "unavailable"]
    runner: str
    description: str
    tasks: list[str]
    context_window: int
    acceleration: Acceleration
    workers: int
    in_flight: int


class ModelStatuses(BaseModel):
    models: list[ModelStatus]


class ApiHealth(BaseModel):
    """Workers by their state; models that are served, of those that are known; the devices they compute with; the
    memory of all worker processes together; jobs in their hands."""

    status: Literal["ok", "unavailable"]
    workers: dict[str, int]
    models: dict[str, int]
    devices: list[str]
    memory_bytes: int
    in_flight: int


def model_status(fleet: Fleet, model: ModelInfo) -> ModelStatus:
    workers = [worker for worker in _ready(fleet) if any(served.id == model.id for served in worker.models)]
    return ModelStatus(
        model_id=model.id,
        status="ready" if workers else "unavailable",
        runner=model.runner,
        description=model.found,
        tasks=list(model.tasks),
        context_window=model.context_window,
        acceleration=Acceleration(device=model.device, dtype=model.dtype),
        workers=len(workers),
        in_flight=sum(worker.in_flight for worker in workers),
    )


def api_health(fleet: Fleet) -> ApiHealth:
    states = [worker.state for worker in fleet.workers]
    return ApiHealth(
        status="ok" if fleet.is_ready else "unavailable",
        workers={state: states.count(state) for state in ("loading", "ready", "draining")},
        models={"known": len(fleet.models), "served": sum(map(fleet.serves, fleet.models))},
        devices=sorted({model.device for worker in _ready(fleet) for model in worker.models if model.device}),
        memory_bytes=sum(worker.memory_bytes for worker in fleet.workers),
        in_flight=sum(worker.in_flight for worker in fleet.workers),
    )


def _ready(fleet: Fleet) -> list[WorkerInfo]:
    return [worker for worker in fleet.workers if worker.state == "ready"]
