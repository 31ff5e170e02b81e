"""Answer headers that tell of what the server changed in a request, and by which name it goes."""

from collections.abc import Iterable

from api.request_events import Outcome
from api.request_record import SubmittedWork
from shared.messages import Started

JOB_ID = "X-Job-Id"


def answer_headers(work: SubmittedWork, jobs: Iterable[Outcome | Started]) -> dict[str, str]:
    """The request's id; the fewest tokens that an answer was allowed, where the cap or the context
    window made them fewer; and how many prompt tokens were cut to fit it, over all jobs."""
    told, capped_at = list(jobs), work.record.capped_at
    allowed = [job.max_tokens for job in told if job.max_tokens is not None]
    if capped_at is not None:
        allowed.append(capped_at)
    num_truncated = sum(job.num_truncated for job in told)
    headers = {JOB_ID: work.id} | ({"X-Effective-Max-Tokens": str(min(allowed))} if allowed else {})
    return headers | ({"X-Truncated-Prompt-Tokens": str(num_truncated)} if num_truncated else {})
