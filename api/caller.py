"""Who asks: whose work it is, how much of it may be open at once, and how urgent it may call itself."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from shared.messages import PRIORITIES, Priority
from shared.submission import Quota

_UNLIMITED = Quota()


@dataclass(frozen=True)
class Caller:
    """Jobs are read, followed and cancelled by callers of their own tenant alone."""

    tenant: str = "public"
    quota: Quota = _UNLIMITED
    best_priority: Priority = "interactive"

    def clamped(self, asked: Priority) -> Priority:
        """`asked`, or the best class this caller may have if that is worse."""
        return max(asked, self.best_priority, key=PRIORITIES.index)


async def caller_of(request: Request) -> Caller:
    """The caller behind a request. There are no keys: everybody is the tenant `public`."""
    quota: Quota = request.app.state.front.quota
    return Caller(quota=quota)


CallerDep = Annotated[Caller, Depends(caller_of)]
