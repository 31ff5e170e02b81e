"""Bodies of the HRM contract: `/generate` with `prompts`, and the routes for log-likelihoods."""

from collections.abc import Sequence
from typing import Literal

from pydantic import AliasChoices, BaseModel, Field, model_validator

from api.schemas.fields import (
    AnyText,
    Condition,
    DepthRequest,
    MaxTokens,
    NonEmpty,
    SampledRequest,
    Temperature,
    refuse,
    shown,
)
from api.schemas.q_values import QValues, is_absent, q_values_body
from api.schemas.usage import UsageBody, usage_body
from api.stream.request_events import Choice, Outcome, total_usage
from shared.messages import ContinuationScore

DEFAULT_MAX_TOKENS = 128


class GenerateRequest(SampledRequest):
    model_config = shown(
        {"prompts": ["Solve for x: 2x + 3 = 9", "Compute: 347 + 285"], "temperature": 0},
        {
            "prompts": ["Once upon a time"],
            "max_tokens": 8,
            "top_p": 0.9,
            "seed": 7,
            "n": 2,
            "stop": ["."],
        },
    )

    prompts: list[NonEmpty] = Field(min_length=1)
    max_tokens: MaxTokens | None = Field(
        None,
        validation_alias=AliasChoices("max_tokens", "max_new_tokens"),
        description="Default 128.",
    )
    temperature: Temperature = 0.7


class GenerateResponse(BaseModel):
    """The completions in the order of the prompts. The `n` of each prompt stand together."""

    model_config = shown(
        {
            "completions": [
                (
                    "Subtract 3 from both sides: 2x = 9 - 3\n2x = 6\n"
                    "Divide both sides by 2: x = 6 / 2\nx = 3\n\\boxed{3}"
                ),
                (
                    "ones: 7 + 5 = 12, write 2, carry 1\ntens: 4 + 8 + 1 = 13, write 3, carry 1\n"
                    "hundreds: 3 + 2 + 1 = 6\n347 + 285 = 632\n\\boxed{632}"
                ),
            ],
            "usage": {"prompt_tokens": 30, "completion_tokens": 128, "total_tokens": 158},
        }
    )

    completions: list[str]
    usage: UsageBody
    q_values: list[QValues | None] | None = Field(None, exclude_if=is_absent)


class ScoringRequest(DepthRequest):
    """The fields of every request for log-likelihoods."""

    model: str | None = None
    condition: Condition | None = None
    scoring: Literal["strict", "aios_compat"] | None = None


class LoglikelihoodRequest(ScoringRequest):
    model_config = shown({"prompts": ["Hello"], "continuations": [" world"]})

    prompts: list[AnyText] = Field(min_length=1)
    continuations: list[NonEmpty] = Field(min_length=1)

    @model_validator(mode="after")
    def _same_length(self) -> "LoglikelihoodRequest":
        num_prompts = len(self.prompts)
        num_continuations = len(self.continuations)
        if num_prompts != num_continuations:
            expected = "expected as many as prompts"
            given = f"{num_prompts} prompts and {num_continuations} continuations"
            raise refuse("continuations", f"{expected}, got {given}")
        return self


class LoglikelihoodResponse(BaseModel):
    """The scores of the continuations, in their order.

    `ll` are log-likelihoods in nats, `is_greedy` tells whether greedy decoding would yield the
    continuation, `num_tokens` are lengths in tokens.
    """

    model_config = shown({"ll": [-44.41], "is_greedy": [False], "num_tokens": [2]})

    ll: list[float]
    is_greedy: list[bool]
    num_tokens: list[int]


class RollingRequest(ScoringRequest):
    model_config = shown({"prompts": ["Hello world"]})

    prompts: list[NonEmpty] = Field(min_length=1)


class RollingResponse(BaseModel):
    """The log-likelihood of each text in nats, over all its tokens, and their number."""

    model_config = shown({"ll": [-87.05], "num_tokens": [5]})

    ll: list[float]
    num_tokens: list[int]


def loglikelihood_response(scores: list[ContinuationScore]) -> LoglikelihoodResponse:
    return LoglikelihoodResponse(
        ll=[score.log_likelihood for score in scores],
        is_greedy=[score.is_greedy for score in scores],
        num_tokens=[score.num_tokens for score in scores],
    )


def rolling_response(scores: list[ContinuationScore]) -> RollingResponse:
    return RollingResponse(
        ll=[score.log_likelihood for score in scores],
        num_tokens=[score.num_tokens for score in scores],
    )


def generate_response(outcomes: Sequence[Outcome]) -> GenerateResponse:
    choices: list[Choice] = []
    for outcome in outcomes:
        choices += outcome.choices
    values = [q_values_body(choice.q_values) for choice in choices]
    return GenerateResponse(
        completions=[choice.text for choice in choices],
        usage=usage_body(total_usage(outcomes)),
        q_values=values if any(values) else None,
    )
