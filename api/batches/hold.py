"""Hold a claim on a batch or an evaluation, and notice when it is lost or the work is to stop."""

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Protocol, Self

from shared.queue.batches import BatchClaim, Renewal
from shared.queue.broker import UNAVAILABLE

_RENEWALS = 5
"""The number of renewals of a claim in the time of its lease."""


class Claims(Protocol):
    """The records on which claims are held, for `lease_s` each."""

    lease_s: float

    async def renew(self, claim: BatchClaim) -> Renewal | None: ...

    async def give_back(self, claim: BatchClaim) -> None: ...


class ClaimLost(Exception):
    """Somebody else has the claim now, or what it was on is gone."""


class Hold:
    """A claim that is renewed for as long as the context lasts, and given back at its end.

    `stopped` is set when the batch was cancelled, its time is over (`is_late`), or the claim is
    lost.
    """

    def __init__(self, claims: Claims, claim: BatchClaim) -> None:
        self.claim = claim
        self.stopped = asyncio.Event()
        self.is_late = False
        self._is_lost = False
        self._claims = claims
        self._renewing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._renew()
        self._renewing = asyncio.create_task(self._keep_renewing(), name="renew-batch")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._renewing is not None
        self._renewing.cancel()
        await asyncio.gather(self._renewing, return_exceptions=True)
        if not self._is_lost:
            # If this fails, the lease ends by itself.
            with suppress(*UNAVAILABLE):
                await self._claims.give_back(self.claim)

    def check(self) -> None:
        """Raise ClaimLost where the claim does not hold any more."""
        if self._is_lost:
            raise ClaimLost

    def lose(self) -> None:
        """Note that the claim does not hold any more."""
        self._is_lost = True
        self.stopped.set()

    async def _keep_renewing(self) -> None:
        loop = asyncio.get_running_loop()
        lease_s = self._claims.lease_s
        until_s = loop.time() + lease_s
        while not self._is_lost:
            await asyncio.sleep(lease_s / _RENEWALS)
            asked_s = loop.time()
            try:
                await self._renew()
                until_s = asked_s + lease_s
            except UNAVAILABLE:
                # Redis, with whose clock the lease ends, may be back before that.
                if loop.time() > until_s:
                    self.lose()

    async def _renew(self) -> None:
        renewal = await self._claims.renew(self.claim)
        if renewal is None:
            self.lose()
            return
        if renewal.left_s <= 0:
            self.is_late = True
        if self.is_late or renewal.status == "cancelling":
            self.stopped.set()
