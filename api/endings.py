"""Ends jobs behind their caller's back, and tries again while Redis is away."""

import asyncio
from collections.abc import Sequence

from shared.broker import UNAVAILABLE
from shared.messages import Cancelled, Failed
from shared.submission import Submissions

_REDIS_AWAY_S = 0.5
_TRIES = 20


class Endings:
    def __init__(self, submissions: Submissions) -> None:
        self._submissions = submissions
        self._under_way: set[asyncio.Task[None]] = set()
        self._waiting: set[asyncio.TimerHandle] = set()

    def call_off(
        self,
        job_ids: Sequence[str],
        ending: Failed | Cancelled,
        *,
        after_s: float = 0.0,
        unless_followed: tuple[str, int] | None = None,
    ) -> None:
        """End what has not ended of the jobs of one request; `unless_followed` as in `Submissions.end`. What is to come
        after a while does not come if this front closes before."""

        def start() -> None:
            task = asyncio.create_task(self.end(job_ids, ending, unless_followed=unless_followed), name="end-jobs")
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

        def start_late() -> None:
            self._waiting.discard(timer)
            start()

        if not job_ids:
            return
        if after_s == 0:
            start()
            return
        timer = asyncio.get_running_loop().call_later(after_s, start_late)
        self._waiting.add(timer)

    async def end(
        self,
        job_ids: Sequence[str],
        ending: Failed | Cancelled,
        *,
        if_waiting: bool = False,
        unless_followed: tuple[str, int] | None = None,
    ) -> None:
        for _ in range(_TRIES):
            try:
                await self._submissions.end(job_ids, ending, if_waiting=if_waiting, unless_followed=unless_followed)
                return
            except UNAVAILABLE:
                await asyncio.sleep(_REDIS_AWAY_S)

    async def close(self) -> None:
        """Returns when nothing is under way any more; what is when the caller stops waiting is dropped."""
        for timer in self._waiting:
            timer.cancel()
        await asyncio.gather(*self._under_way)
