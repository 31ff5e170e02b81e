"""The `usage` object: the counts that all dialects share, and the details of OpenAI's."""

from pydantic import BaseModel

from api.http.request_state import Usage

USAGE = {
    "prompt_tokens": 21,
    "completion_tokens": 26,
    "total_tokens": 47,
    "prompt_tokens_details": {"cached_tokens": 0},
}
"""The usage in the examples of whole answers."""


class UsageBody(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class PromptTokensDetails(BaseModel):
    cached_tokens: int


class DetailedUsageBody(UsageBody):
    prompt_tokens_details: PromptTokensDetails


def usage_body(usage: Usage) -> UsageBody:
    return UsageBody(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
    )


def detailed_usage_body(usage: Usage) -> DetailedUsageBody:
    return DetailedUsageBody(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=usage.cached_prompt_tokens),
    )
