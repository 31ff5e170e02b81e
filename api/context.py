"""Who asks which front for work, and what the headers say: all that is known before the body is understood."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from api.caller import Caller, CallerDep
from api.deps import Front, FrontDep, TrailDep
from api.dispatch import Receive
from api.patience import redis_answers
from api.record import OnDisconnect
from api.trail import Trail
from api.wishes import Wishes, WishesDep
from shared.submission import Key


@dataclass(frozen=True)
class Context:
    front: Front
    caller: Caller
    wishes: Wishes
    trail: Trail
    receive: Receive

    @property
    def key(self) -> Key | None:
        """What makes this request the same as another one: its key, its path and the bytes of its body."""
        wishes, trail = self.wishes, self.trail
        return Key(wishes.key, trail.path.encode() + b"\n" + trail.body) if wishes.key else None

    @property
    def stays(self) -> bool:
        """Whether the caller waits at all."""
        return self.wishes.wait_s != 0

    @property
    def on_disconnect(self) -> OnDisconnect:
        """What was submitted to be asked for later goes on when nobody listens."""
        return self.wishes.on_disconnect or (self.front.on_disconnect if self.wishes.wait_s is None else "continue")


async def _context(front: FrontDep, caller: CallerDep, wishes: WishesDep, trail: TrailDep, request: Request) -> Context:
    """Raises OverQuota for a caller that comes too often, and ProhibitedContent."""
    async with redis_answers():
        await front.pace.keep(caller.id or caller.tenant, caller.rates_of(request.scope["route"].path))
    front.prohibited.check(trail.body)
    return Context(front, caller, wishes, trail, request.receive)


ContextDep = Annotated[Context, Depends(_context)]
