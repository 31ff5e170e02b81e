"""End the answers that are under way for callers that may not call any more.

Their key was revoked, has expired or was narrowed, or they have none and the first key of the fleet
has been made.
"""

import asyncio
from contextlib import suppress

from api.access.auth import Auth
from api.access.caller import FRESH_S, Caller
from shared.errors import BrokerUnavailable, FleetError, Forbidden


class Revocations:
    """Watches the rights of callers while they are being answered.

    The rights of all of them are read together, every `FRESH_S` for as long as there are any. While
    Redis is away nobody is cut off: there is no news of any job then, either.
    """

    def __init__(self, auth: Auth) -> None:
        self._auth = auth
        # The caller and the model of each answer, by the future of the error that will end it.
        self._waiting: dict[asyncio.Future[FleetError], tuple[Caller, str]] = {}
        self._checking: asyncio.Task[None] | None = None

    def concerns(self, caller: Caller) -> bool:
        """Return whether the caller can lose its rights."""
        return self._auth.can_change(caller)

    async def wait(self, caller: Caller, model: str) -> FleetError:
        """Wait until the caller may not have this model's answer any more. Return the reason."""
        reason: asyncio.Future[FleetError] = asyncio.get_running_loop().create_future()
        self._waiting[reason] = (caller, model)
        if self._checking is None or self._checking.done():
            self._checking = asyncio.create_task(self._check(), name="revocations")
            self._checking.add_done_callback(self._fail_all)
        try:
            return await reason
        finally:
            del self._waiting[reason]

    async def _check(self) -> None:
        while self._waiting:
            await asyncio.sleep(FRESH_S)
            with suppress(BrokerUnavailable):
                await self._check_once()

    def _fail_all(self, checking: "asyncio.Task[None]") -> None:
        """Fail all that wait if the check ended by a bug: nothing else would ever wake them."""
        if checking.cancelled():
            return
        error = checking.exception()
        if error is None:
            return
        for reason in self._waiting:
            if not reason.done():
                reason.set_exception(error)

    async def _check_once(self) -> None:
        # A copy: answers come and end while Redis is asked.
        waiting = dict(self._waiting)
        callers = [caller for caller, _ in waiting.values()]
        present = await self._auth.refresh_all(callers)
        for reason, now in zip(waiting, present, strict=True):
            caller, model = waiting[reason]
            error: FleetError | None
            if isinstance(now, FleetError):
                error = now
            else:
                error = _lost_right(caller, now, model)
            if error is not None and not reason.done():
                reason.set_result(error)


def _lost_right(before: Caller, now: Caller, model: str) -> FleetError | None:
    """Return why the present rights forbid this model's answer; None if they do not."""
    if now.tenant != before.tenant:
        return Forbidden("The API key is for another tenant now.")
    if before.may_use(model) and not now.may_use(model):
        return Forbidden(f"model: this key may not use {model!r} any more.", field="model")
    return None
