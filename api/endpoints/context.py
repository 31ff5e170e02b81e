"""The context of a request for work: all that is known before its body is parsed."""

import asyncio
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request

from api.access.caller import Caller, CallerDep
from api.deps import Front, front_of
from api.http.request_state import RequestState, request_state_of
from api.redis_timeout import redis_answers
from api.stream.dispatch import Receive
from api.submit.request_options import RequestOptions, RequestOptionsDep
from api.submit.request_record import OnDisconnect
from shared.queue.submission import Key


@dataclass(frozen=True)
class RequestContext:
    """The parts of this front, the caller, and what the headers of its request say."""

    front: Front
    caller: Caller
    options: RequestOptions
    request_state: RequestState
    receive: Receive

    @property
    def key(self) -> Key | None:
        """The idempotency key, None without one.

        Two requests are one if the key, the path and the bytes of the body are equal.
        """
        if not self.options.key:
            return None
        state = self.request_state
        return Key(self.options.key, state.path.encode() + b"\n" + state.body)

    @property
    def stays(self) -> bool:
        """True if the caller waits for an answer, false if it wants a 202 at once."""
        return self.options.wait_s != 0

    @property
    def may_have_webhook(self) -> bool:
        """True if the caller comes back for the answer, and so may be told when it is there."""
        return self.options.wait_s is not None and not self.options.is_part

    @property
    def on_disconnect(self) -> OnDisconnect:
        """The fate of the jobs when the caller leaves."""
        if self.options.on_disconnect is not None:
            return self.options.on_disconnect
        # A job that is polled goes on when nobody listens.
        if self.options.wait_s is not None:
            return "continue"
        return self.front.on_disconnect


async def _context(
    request: Request, caller: CallerDep, options: RequestOptionsDep
) -> RequestContext:
    """Return the context of a request that its caller may make now.

    Raise OverQuota for a caller that asks too often, and ProhibitedContent.
    """
    # Not dependencies of their own: each costs a request tens of microseconds.
    front = front_of(request.app)
    request_state = request_state_of(request.scope)
    if not request_state.is_admitted:
        async with redis_answers():
            await front.rate_limiter.keep(
                caller.id or caller.tenant, caller.rates_of(request.scope["route"].path)
            )
    front.prohibited.check(request_state.body)
    return RequestContext(front, caller, options, request_state, request.receive)


RequestContextDep = Annotated[RequestContext, Depends(_context)]


async def receive_nothing() -> MutableMapping[str, Any]:
    """Wait for ever, as the `receive` of a request that nobody made who could leave."""
    await asyncio.Event().wait()
    raise AssertionError
