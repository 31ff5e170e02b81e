"""Ends what is under way for callers that may not call any more.

Their key was revoked, has expired or been narrowed, or the first key of the fleet has been made and
they have none.
"""

import asyncio
from contextlib import suppress

from api.access.auth import Auth
from api.access.caller import FRESH_S, Caller
from shared.errors import BrokerUnavailable, FleetError, Forbidden


class Revocations:
    """Asks again every `FRESH_S`, for all who are being answered together, as long as there are
    any.

    While Redis is away nobody is cut off: there is no news of any job then, either.
    """

    def __init__(self, auth: Auth) -> None:
        self._auth = auth
        self._waiting: dict[asyncio.Future[FleetError], tuple[Caller, str]] = {}
        self._asking: asyncio.Task[None] | None = None

    def concerns(self, caller: Caller) -> bool:
        """Return whether the caller can lose its rights."""
        return self._auth.can_change(caller)

    async def told(self, caller: Caller, model: str) -> FleetError:
        """Return why the caller may not be told of this model's answer any more; wait until that is
        so."""
        news: asyncio.Future[FleetError] = asyncio.get_running_loop().create_future()
        self._waiting[news] = (caller, model)
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask(), name="revocations")
            self._asking.add_done_callback(self._pass_on)
        try:
            return await news
        finally:
            del self._waiting[news]

    async def _ask(self) -> None:
        while self._waiting:
            await asyncio.sleep(FRESH_S)
            with suppress(BrokerUnavailable):
                await self._ask_once()

    def _pass_on(self, asking: "asyncio.Task[None]") -> None:
        """Fail all who wait when asking ended unexpectedly: nobody would look after them any
        more."""
        error = None if asking.cancelled() else asking.exception()
        if error is None:
            return
        for news in self._waiting:
            if not news.done():
                news.set_exception(error)

    async def _ask_once(self) -> None:
        waiting = list(self._waiting.items())
        found = await self._auth.again_all([caller for _, (caller, _) in waiting])
        for (news, (caller, model)), now in zip(waiting, found, strict=True):
            error = now if isinstance(now, FleetError) else _narrowed(caller, now, model)
            if error is not None and not news.done():
                news.set_result(error)


def _narrowed(before: Caller, now: Caller, model: str) -> FleetError | None:
    if now.tenant != before.tenant:
        return Forbidden("The API key is for another tenant now.")
    if before.may_use(model) and not now.may_use(model):
        return Forbidden(f"model: this key may not use {model!r} any more.", field="model")
    return None
