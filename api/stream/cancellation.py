"""Cancel jobs that nobody waits for any more.

While Redis is away, try again.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from shared.messages import Cancelled, Failed
from shared.queue.broker import UNAVAILABLE
from shared.queue.requests import Requests
from shared.queue.submission import Submissions

_REDIS_AWAY_S = 0.5
_TRIES = 20


class CancellationQueue:
    def __init__(self, submissions: Submissions, requests: Requests) -> None:
        self._submissions = submissions
        self._requests = requests
        self._under_way: set[asyncio.Task[None]] = set()
        self._waiting: set[asyncio.TimerHandle] = set()

    def leave(self, request_id: str, follower_id: str) -> None:
        """Note that a follower has left whose leaving ends nothing."""
        self._start(lambda: self._requests.leave(request_id, follower_id))

    def cancel(
        self,
        job_ids: Sequence[str],
        ending: Failed | Cancelled,
        *,
        after_s: float = 0.0,
        left: tuple[str, str] | None = None,
    ) -> None:
        """End the jobs of one request that have not ended.

        `left` is as in `Submissions.end`. With `after_s` they are ended so much later, and not at
        all if this front closes before.
        """

        def start() -> None:
            self._start(lambda: self._submissions.end(job_ids, ending, left=left))

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

    async def expire(self, job_ids: Sequence[str], ending: Failed) -> None:
        """End those of the jobs that no worker has taken."""
        await _insist(lambda: self._submissions.end(job_ids, ending, if_waiting=True))

    async def close(self) -> None:
        """Wait until nothing is under way any more.

        A caller that stops waiting drops what is still under way.
        """
        for timer in self._waiting:
            timer.cancel()
        await asyncio.gather(*self._under_way)

    def _start(self, action: Callable[[], Awaitable[object]]) -> None:
        task = asyncio.create_task(_insist(action), name="end-jobs")
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)


async def _insist(action: Callable[[], Awaitable[object]]) -> None:
    """Try again while Redis is away, for about ten seconds, then give up."""
    for _ in range(_TRIES):
        try:
            await action()
            return
        except UNAVAILABLE:
            await asyncio.sleep(_REDIS_AWAY_S)
