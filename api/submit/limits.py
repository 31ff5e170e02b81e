"""Limits of one request: tokens, prompts, time. Pure: knows neither the fleet nor Redis."""

from dataclasses import dataclass
from typing import Literal

from shared.errors import InvalidRequest
from shared.messages import ModelInfo
from shared.queue.submission import QueueLimits


@dataclass(frozen=True)
class Deadlines:
    """Seconds from now until a worker must have taken a request, and until its answer must be
    there."""

    queue_s: float
    deadline_s: float


@dataclass(frozen=True)
class TokenBudget:
    """The number of tokens a completion may have; `is_clamped` when the caller would have got more
    without the cap."""

    max_tokens: int
    is_clamped: bool


@dataclass(frozen=True)
class Limits:
    """`queue_limits` is how much may wait at once. Work waits for a model that was served
    `absent_grace_s` ago at most."""

    max_new_tokens: int
    cap_policy: Literal["clamp", "reject"]
    max_prompts: int
    queue_limits: QueueLimits
    queue_timeout_s: float
    request_timeout_s: float
    absent_grace_s: float = 0.0

    def budget(self, asked: int | None, default: int, model: ModelInfo) -> TokenBudget:
        """Return `asked`, or else `default`, within the cap. Raise InvalidRequest above it if the
        policy is reject."""
        cap = min(self.max_new_tokens, model.max_new_tokens)
        if asked is not None and asked > cap and self.cap_policy == "reject":
            raise InvalidRequest(
                f"max_tokens: expected at most {cap}, got {asked}.", field="max_tokens"
            )
        wanted = default if asked is None else asked
        return TokenBudget(min(wanted, cap), is_clamped=wanted > cap)

    def check_count(self, field: str, count: int, what: str = "items") -> None:
        """Raise InvalidRequest for more prompts, grids or completions than one request may have."""
        most = self.max_prompts
        if count > most:
            raise InvalidRequest(
                f"{field}: expected at most {most} {what} in one request, got {count}.", field=field
            )

    def times(self, deadline_s: float | None) -> Deadlines:
        """Return how long a request may wait and run: until its deadline, but no longer than any
        request may."""
        most_s = self.request_timeout_s
        return Deadlines(
            self.queue_timeout_s, most_s if deadline_s is None else min(deadline_s, most_s)
        )
