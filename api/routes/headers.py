"""Answer headers that tell of what the server changed in a request."""

from collections.abc import Iterable

from api.admission import TokenBudget
from api.run import Outcome
from shared.messages import Started


def limit_headers(budget: TokenBudget | None, jobs: Iterable[Outcome | Started]) -> dict[str, str]:
    """The fewest tokens that an answer was allowed, where the cap or the context window made them fewer, and how many
    prompt tokens were cut to fit it, over all jobs. `budget` None: there are no tokens to allow."""
    told = list(jobs)
    allowed = [job.max_tokens for job in told if job.max_tokens is not None]
    if budget is not None and budget.is_clamped:
        allowed.append(budget.max_tokens)
    num_truncated = sum(job.num_truncated for job in told)
    headers = {"X-Effective-Max-Tokens": str(min(allowed))} if allowed else {}
    return headers | ({"X-Truncated-Prompt-Tokens": str(num_truncated)} if num_truncated else {})
