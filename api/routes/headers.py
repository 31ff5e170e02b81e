"""Answer headers that tell of what the server changed in a request."""

from api.admission import TokenBudget
from api.run import Outcome


def budget_headers(budget: TokenBudget) -> dict[str, str]:
    """The number of tokens that was allowed, where the cap made it smaller."""
    return {"X-Effective-Max-Tokens": str(budget.max_tokens)} if budget.is_clamped else {}


def truncation_headers(outcomes: list[Outcome]) -> dict[str, str]:
    """How many prompt tokens were cut to fit the context window, over all prompts."""
    total = sum(outcome.num_truncated for outcome in outcomes)
    return {"X-Truncated-Prompt-Tokens": str(total)} if total else {}
