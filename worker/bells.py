"""Waiting for work on several shards at once. A wait under way is never cut off; what it rings for is not lost."""

import asyncio
from collections.abc import Sequence

from redis.exceptions import RedisError

from shared.queue import WorkQueue


class Bells:
    """`timeout_s` is the longest wait."""

    def __init__(self, queue: WorkQueue, timeout_s: float) -> None:
        self._queue = queue
        self._timeout_s = timeout_s
        self._waits: dict[str, asyncio.Task[bool]] = {}

    async def wait(self, shards: Sequence[str]) -> None:
        """Return when a bell has rung, or after `timeout_s`."""
        for shard in shards:
            if shard not in self._waits:
                self._waits[shard] = asyncio.create_task(self._queue.await_bell(shard, self._timeout_s))
        await asyncio.wait(self._waits.values(), return_when=asyncio.FIRST_COMPLETED)
        for shard, task in list(self._waits.items()):
            if task.done():
                del self._waits[shard]
                task.result()

    async def pass_on(self) -> None:
        """This worker has no room: what has rung meanwhile rings again for others."""
        for shard, task in list(self._waits.items()):
            if task.done():
                del self._waits[shard]
                if task.result():
                    await self._queue.ring(shard)

    async def close(self) -> None:
        """Let the waits end, and ring again for others."""
        for shard, task in self._waits.items():
            try:
                if await task:
                    await self._queue.ring(shard)
            except RedisError:
                continue
        self._waits.clear()

    def drop(self) -> None:
        """Cut off what still waits. A bell that rings just then is lost: others look by themselves after a while."""
        for task in self._waits.values():
            task.cancel()
        self._waits.clear()
