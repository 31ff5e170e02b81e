"""The `usage` object: the counts that all dialects share, and the details of OpenAI's."""

from pydantic import BaseModel, Field

from api.http.request_state import Usage
from api.schemas.q_values import is_absent
from shared.messages import Depth

USAGE = {
    "prompt_tokens": 14,
    "completion_tokens": 79,
    "total_tokens": 93,
    "prompt_tokens_details": {"cached_tokens": 0},
}
"""The usage in the examples of whole answers."""


class UsageBody(BaseModel):
    """Numbers of tokens.

    A request that asks for a depth is told the one at which it was computed.
    """

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cycles: str | None = Field(None, exclude_if=is_absent)
    max_steps: int | None = Field(None, exclude_if=is_absent)


class PromptTokensDetails(BaseModel):
    cached_tokens: int


class DetailedUsageBody(UsageBody):
    prompt_tokens_details: PromptTokensDetails


def usage_body(usage: Usage) -> UsageBody:
    depth = usage.depth or Depth()
    return UsageBody(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
        cycles=depth.cycles,
        max_steps=depth.max_steps,
    )


def detailed_usage_body(usage: Usage) -> DetailedUsageBody:
    details = PromptTokensDetails(cached_tokens=usage.cached_prompt_tokens)
    counts = usage_body(usage).model_dump()
    return DetailedUsageBody(**counts, prompt_tokens_details=details)
