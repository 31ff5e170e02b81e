"""What the plans of several dialects share."""

from collections.abc import Mapping, Sequence
from typing import Any

from api.endpoint import Plan
from api.limits import Limits
from api.schemas.fields import SampledRequest
from shared.messages import ModelInfo, Text


def text_plan(
    body: SampledRequest,
    prompts: Sequence[Text],
    default_max_tokens: int,
    model: ModelInfo,
    limits: Limits,
    notes: Mapping[str, Any] | None = None,
) -> Plan:
    """`body.n` completions of each prompt. Raises InvalidRequest for more of them than one request may ask for."""
    limits.check_count("n", len(prompts) * body.n, "completions")
    budget = limits.budget(body.max_tokens, default_max_tokens, model)
    asked = body.suited(model.prompting)
    return Plan([asked.task(prompt, budget.max_tokens) for prompt in prompts], budget, body.n, notes or {})
