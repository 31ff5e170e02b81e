"""Limits of one request: tokens, prompts, time.

This module is pure: it knows neither the fleet nor Redis.
"""

from dataclasses import dataclass
from typing import Literal

from shared.errors import InvalidRequest
from shared.messages import ModelInfo
from shared.queue.submission import QueueLimits


@dataclass(frozen=True)
class Deadlines:
    """Seconds from now until a worker must have taken a request, and until its answer is due."""

    queue_s: float
    deadline_s: float


@dataclass(frozen=True)
class TokenBudget:
    """The most tokens that a completion may have.

    `is_clamped` holds if the caller would have got more without the cap.
    """

    max_tokens: int
    is_clamped: bool


@dataclass(frozen=True)
class Limits:
    """The limits of every request.

    `queue_limits` are the most that may wait at once. Work may wait for a model that no worker has
    served for `absent_grace_s` at most.
    """

    max_new_tokens: int
    cap_policy: Literal["clamp", "reject"]
    max_prompts: int
    queue_limits: QueueLimits
    queue_timeout_s: float
    request_timeout_s: float
    absent_grace_s: float = 0.0

    def budget(self, requested: int | None, default: int, model: ModelInfo) -> TokenBudget:
        """Return the budget for `requested` tokens, or else for `default`, within the cap.

        Raise InvalidRequest where `requested` is above the cap and the policy is to reject it.
        """
        cap = min(self.max_new_tokens, model.max_new_tokens)
        if requested is None:
            return TokenBudget(min(default, cap), is_clamped=default > cap)
        if requested > cap and self.cap_policy == "reject":
            raise InvalidRequest(
                f"max_tokens: expected at most {cap}, got {requested}.", field="max_tokens"
            )
        return TokenBudget(min(requested, cap), is_clamped=requested > cap)

    def check_count(self, field: str, count: int, noun: str = "items") -> None:
        """Raise InvalidRequest for more prompts, grids or completions than one request may have.

        `noun` names them in the message.
        """
        most = self.max_prompts
        if count > most:
            raise InvalidRequest(
                f"{field}: expected at most {most} {noun} in one request, got {count}.", field=field
            )

    def check_places(self, field: str, count: int) -> None:
        """Raise InvalidRequest for more jobs in one request than may wait for a model.

        The queue refuses them as well, but only once all jobs are made.
        """
        most = self.queue_limits.max_jobs
        if 0 < most < count:
            raise InvalidRequest(
                f"{field}: the request takes {count} places in the queue, which has {most}. "
                "Ask for less at once.",
                field=field,
            )

    def times(self, deadline_s: float | None) -> Deadlines:
        """Return how long a request may wait and run.

        It may run until its deadline, but no longer than any request may.
        """
        limit_s = self.request_timeout_s
        if deadline_s is not None:
            limit_s = min(deadline_s, limit_s)
        return Deadlines(self.queue_timeout_s, limit_s)
