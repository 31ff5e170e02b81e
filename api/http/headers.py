"""Headers of an answer: the id of its request, and what the server changed in it."""

from collections.abc import Iterable

from api.stream.request_events import Outcome
from api.submit.request_record import SubmittedWork
from shared.messages import Started

JOB_ID = "X-Job-Id"


def answer_headers(work: SubmittedWork, jobs: Iterable[Outcome | Started]) -> dict[str, str]:
    """Return the id of the request, and headers for what the cap or the context window changed.

    These are the fewest tokens that an answer was allowed, where that is less than was asked for,
    and the number of prompt tokens that were cut, over all jobs.
    """
    allowed = []
    num_truncated = 0
    for job in jobs:
        if job.max_tokens is not None:
            allowed.append(job.max_tokens)
        num_truncated += job.num_truncated
    if work.record.capped_at is not None:
        allowed.append(work.record.capped_at)

    headers = {JOB_ID: work.id}
    if allowed:
        headers["X-Effective-Max-Tokens"] = str(min(allowed))
    if num_truncated:
        headers["X-Truncated-Prompt-Tokens"] = str(num_truncated)
    return headers
