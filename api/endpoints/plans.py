"""Plans that several dialects share."""

from collections.abc import Mapping, Sequence
from typing import Any

from api.endpoints.endpoint import TaskPlan
from api.schemas.fields import SampledRequest
from api.submit.limits import Limits
from shared.messages import ModelInfo, Prompt


def text_plan(
    body: SampledRequest,
    prompts: Sequence[Prompt],
    default_max_tokens: int,
    model: ModelInfo,
    limits: Limits,
    *,
    notes: Mapping[str, Any] | None = None,
) -> TaskPlan:
    """Plan `body.n` completions of each prompt.

    Raise InvalidRequest for more completions, or more tokens, than one request may ask for.
    """
    limits.check_count("n", len(prompts) * body.n, "completions")
    budget = limits.budget(body.max_tokens, default_max_tokens, model)
    suited = body.suited(model.prompting)
    tasks = [suited.task(prompt, budget.max_tokens) for prompt in prompts]
    return TaskPlan(tasks, budget, body.n, notes or {})
