"""Waiting for work on several shards at once. A wait under way is never cut off; what it rings for
is not lost.

The shards of one server need one wait, and one connection, for all of them.
"""

import asyncio
from collections.abc import Sequence

from redis.exceptions import RedisError

from shared.queue import WorkQueue


class Doorbells:
    """`timeout_s` is the longest wait."""

    def __init__(self, queue: WorkQueue, timeout_s: float) -> None:
        self._queue = queue
        self._timeout_s = timeout_s
        self._waits: dict[tuple[str, ...], asyncio.Task[str | None]] = {}

    async def wait(self, shards: Sequence[str]) -> list[str]:
        """Where a bell has rung, as soon as one has; none after `timeout_s`."""
        for part in self._queue.together(sorted(shards)):
            if tuple(part) not in self._waits:
                waiting = self._queue.await_bell(part, self._timeout_s)
                self._waits[tuple(part)] = asyncio.create_task(waiting)
        await asyncio.wait(self._waits.values(), return_when=asyncio.FIRST_COMPLETED)
        return self._rung()

    async def pass_on(self) -> None:
        """This worker has no room: what has rung meanwhile rings again for others."""
        for shard in self._rung():
            await self._queue.ring(shard)

    async def close(self) -> None:
        """Let the waits end, and ring again for others."""
        for task in self._waits.values():
            try:
                if shard := await task:
                    await self._queue.ring(shard)
            except RedisError:
                continue
        self._waits.clear()

    def drop(self) -> None:
        """Cut off what still waits. A bell that rings just then is lost: others look by themselves
        after a while."""
        for task in self._waits.values():
            task.cancel()
        self._waits.clear()

    def _rung(self) -> list[str]:
        """The shards that waits have ended for. Raises what a wait raised."""
        done = {part: task for part, task in self._waits.items() if task.done()}
        for part in done:
            del self._waits[part]
        return [shard for task in done.values() if (shard := task.result()) is not None]
