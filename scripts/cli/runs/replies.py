"""The manners of clients that do not give up: codes that they ask again after, and their waits."""

WAIT_S = 20
"""The time after which the front answers that work is still under way."""
_LEAST_PAUSE_S = 0.2
_MOST_PAUSE_S = 10.0

SPENT = (
    "cancelled",
    "idempotency_conflict",
    "job_not_found",
    "model_failed",
    "queue_timeout",
    "shut_down",
)
"""Codes of work that has ended without an answer, or whose answer has expired."""


def pause_s(retry_after: str, num_before: int) -> float:
    """Return how long to wait: as the front asks in `Retry-After`, or twice as long as before."""
    if retry_after.isdecimal() and int(retry_after) > 0:
        return float(retry_after)
    return min(_LEAST_PAUSE_S * float(2 ** min(num_before, 10)), _MOST_PAUSE_S)
