"""The caller of a request: its tenant, its quota, its best class, and the models that it may
use."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from shared.access import Rate
from shared.errors import Forbidden
from shared.messages import PRIORITIES, Priority
from shared.queue.submission import Quota

FRESH_S = 1.0
"""The time for which a front trusts what it knows of a key that can change."""
_UNLIMITED = Quota()


@dataclass(frozen=True)
class Caller:
    """Jobs are read, followed and cancelled by callers of their own tenant alone.

    `id` is that of the key ("": none), by which rates are counted; without `models` all may be
    used. `rates` are by endpoint, and under "" that of all endpoints together. `digest` is that of
    a key which Redis holds, and which can be revoked; "" for all others.
    """

    tenant: str = "public"
    quota: Quota = _UNLIMITED
    best_priority: Priority = "interactive"
    id: str = ""
    models: frozenset[str] = frozenset()
    rates: Mapping[str, Rate] = field(default_factory=dict)
    is_admin: bool = False
    digest: str = ""

    def clamped(self, asked: Priority) -> Priority:
        """`asked`, or the best class this caller may have if that is worse."""
        return max(asked, self.best_priority, key=PRIORITIES.index)

    def may_use(self, model: str) -> bool:
        return not self.models or model in self.models

    def check_model(self, model: str) -> None:
        """Raises Forbidden."""
        if not self.may_use(model):
            raise Forbidden(f"model: this key may not use {model!r}.", field="model")

    def rates_of(self, endpoint: str) -> dict[str, Rate]:
        """Return the rates that hold for this caller at an endpoint."""
        return {name: rate for name, rate in self.rates.items() if name in ("", endpoint)}


async def caller_of(request: Request) -> Caller:
    """The caller behind a request, as `AuthMiddleware` has found it.

    A body may take its time, and the key be revoked meanwhile: then the caller is looked for again.
    """
    caller: Caller = request.state.caller
    age_s = asyncio.get_running_loop().time() - request.state.caller_found_s
    if age_s <= FRESH_S:
        return caller
    fresh: Caller = await request.app.state.front.auth.again(caller)
    return fresh


CallerDep = Annotated[Caller, Depends(caller_of)]
