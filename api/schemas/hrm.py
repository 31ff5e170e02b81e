"""Bodies of the seed dialect, shape A: `/generate` with `prompts`, and `/loglikelihood`."""

from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, Field, model_validator

from api.run import Outcome, total_usage
from api.schemas.fields import AnyText, Condition, MaxTokens, NonEmpty, RequestBody, SampledRequest, Temperature, refuse
from api.schemas.usage import UsageBody, usage_body

DEFAULT_MAX_TOKENS = 128
_SHAPES = ("prompts", "prompt", "inputs")


class GenerateRequest(SampledRequest):
    prompts: list[NonEmpty] = Field(min_length=1)
    max_tokens: MaxTokens | None = Field(
        None, validation_alias=AliasChoices("max_tokens", "max_new_tokens"), description="Default 128."
    )
    temperature: Temperature = 0.7

    @model_validator(mode="before")
    @classmethod
    def _one_shape(cls, value: Any) -> Any:
        given = [name for name in _SHAPES if isinstance(value, dict) and value.get(name) is not None]
        if len(given) > 1:
            raise refuse("prompts", f"expected exactly one of prompts, prompt and inputs, got {' and '.join(given)}")
        if given and given != ["prompts"]:
            raise refuse("prompts", f"expected this field; the shape with {given[0]!r} is not supported yet")
        return value


class GenerateResponse(BaseModel):
    completions: list[str]
    usage: UsageBody


class LoglikelihoodRequest(RequestBody):
    prompts: list[AnyText] = Field(min_length=1)
    continuations: list[NonEmpty] = Field(min_length=1)
    model: str | None = None
    condition: Condition | None = None
    scoring: Literal["strict", "aios_compat"] | None = None

    @model_validator(mode="after")
    def _same_length(self) -> "LoglikelihoodRequest":
        counts = len(self.prompts), len(self.continuations)
        if counts[0] != counts[1]:
            text = f"expected as many as prompts, got {counts[0]} prompts and {counts[1]} continuations"
            raise refuse("continuations", text)
        return self


class LoglikelihoodResponse(BaseModel):
    ll: list[float]


def generate_response(outcomes: list[Outcome]) -> GenerateResponse:
    texts = [outcome.choices[0].text for outcome in outcomes]
    return GenerateResponse(completions=texts, usage=usage_body(total_usage(outcomes)))
