"""The end of a front whose Redis ends with it.

What is in flight is finished first, because no other front could go on with it. Admission refuses
new work meanwhile. Jobs that have not ended when the time is over are ended with an error that says
so, and all their followers are told.
"""

import asyncio
import logging
from collections.abc import Callable

from api.deps import Front
from shared.errors import ShutDown
from shared.queue.broker import UNAVAILABLE
from shared.telemetry.logging_setup import fields

_LOOK_S = 0.05
_ADMITTING_S = 2.5  # by then a request that was let in before the signal is in Redis
_TELLING_S = 1.0  # time for followers to be told that their jobs were cut off
REDIS_AWAY_S = 5.0  # longer than a restart of Redis takes
LAST_POLL_S = 2.0  # time for callers that poll to ask once more

log = logging.getLogger("aios.api")


class FinalDrain:
    """Waits until nothing is in flight, and cuts off what lasts too long.

    `has_callers` tells whether any caller waits for an answer of this front, of whatever kind.
    """

    def __init__(self, front: Front, has_callers: Callable[[], bool]) -> None:
        self._front = front
        self._has_callers = has_callers
        self._now_s = asyncio.get_running_loop().time
        self._began_s = self._now_s()
        self._redis_seen_s = self._began_s
        self._has_pollers = False

    async def run(self, time_s: float) -> None:
        """Return when nothing is in flight any more. End what is left after `time_s`."""
        try:
            async with asyncio.timeout(time_s):
                while await self._is_busy():  # noqa: ASYNC110 - what is awaited is in Redis
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError:
            await self._cut_off()
        if self._has_pollers:
            await asyncio.sleep(LAST_POLL_S)

    async def _cut_off(self) -> None:
        """End all jobs, and wait until their followers have been told."""
        error = cut_off_error()
        submissions = self._front.submissions
        try:
            async with asyncio.timeout(_TELLING_S):
                num_ended = await submissions.end_all(
                    await submissions.open_jobs(), error.as_event()
                )
                log.warning("work cut off by shutdown", extra=fields(num_jobs=num_ended))
                while self._front.dispatcher.num_followed:  # noqa: ASYNC110 - a second at most
                    await asyncio.sleep(_LOOK_S)
        except (TimeoutError, *UNAVAILABLE) as trouble:
            log.warning("work cut off by shutdown", extra=fields(error=repr(trouble)))

    async def _is_busy(self) -> bool:
        """Return whether something is open, or may become so, and Redis is there for it."""
        try:
            open_jobs = await self._front.submissions.open_jobs()
        except UNAVAILABLE:
            # The supervisor starts Redis again, with its data, or else stops this front.
            return self._now_s() - self._redis_seen_s < REDIS_AWAY_S
        self._redis_seen_s = self._now_s()
        num_followed = self._front.dispatcher.num_followed
        # A job for which no caller waits belongs to one that will ask again.
        if self._front.dispatcher.num_in_background or (open_jobs and not num_followed):
            self._has_pollers = True
        is_admitting = self._has_callers() and self._now_s() - self._began_s < _ADMITTING_S
        return bool(open_jobs) or num_followed > 0 or is_admitting


def cut_off_error() -> ShutDown:
    """Return the error of work that ends with the fleet."""
    return ShutDown(
        "The server was shut down before this request was done; it is cancelled.", retry_after_s=1
    )
