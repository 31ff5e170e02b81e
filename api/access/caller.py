"""The caller of a request, with its tenant, its quota, its best class and its models."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from shared.access import Budget, Rate
from shared.errors import Forbidden
from shared.messages import PRIORITIES, Priority
from shared.queue.submission import Quota

FRESH_S = 1.0
"""Seconds for which a front trusts what it knows of a key that can change."""
_UNLIMITED = Quota()


@dataclass(frozen=True)
class Caller:
    """The caller of a request, and its rights.

    Only callers of a job's own tenant may read, follow and cancel it. `id` is that of the key, ""
    without one. An empty `models` allows all models. `rates` are by the path of an endpoint; the
    one under "" is for all endpoints together. `budget` is the most tokens that the key may use.
    `digest` is that of a key which Redis holds and which can be revoked, "" for any other.
    """

    tenant: str = "public"
    quota: Quota = _UNLIMITED
    best_priority: Priority = "interactive"
    id: str = ""
    models: frozenset[str] = frozenset()
    rates: Mapping[str, Rate] = field(default_factory=dict)
    is_admin: bool = False
    digest: str = ""
    budget: Budget | None = None

    def clamped(self, requested: Priority) -> Priority:
        """Return the requested class, or the best that this caller may have if that is worse."""
        # PRIORITIES begin with the best.
        return max(requested, self.best_priority, key=PRIORITIES.index)

    def may_use(self, model: str) -> bool:
        return not self.models or model in self.models

    def check_model(self, model: str) -> None:
        """Raise Forbidden for a model that the caller may not use."""
        if not self.may_use(model):
            raise Forbidden(f"model: this key may not use {model!r}.", field="model")

    def rates_of(self, endpoint: str) -> dict[str, Rate]:
        """Return the rates that hold for this caller at an endpoint."""
        return {name: rate for name, rate in self.rates.items() if name in ("", endpoint)}


async def caller_of(request: Request) -> Caller:
    """Return the caller that `AuthMiddleware` has found for a request.

    A body may take long to come, and the key may be revoked meanwhile. After `FRESH_S` the rights
    are therefore read again. Raise as `Auth.refresh` does.
    """
    caller: Caller = request.state.caller
    age_s = asyncio.get_running_loop().time() - request.state.caller_found_s
    if age_s <= FRESH_S:
        return caller
    fresh: Caller = await request.app.state.front.auth.refresh(caller)
    return fresh


CallerDep = Annotated[Caller, Depends(caller_of)]
