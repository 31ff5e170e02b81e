"""Waiting for work on several shards at once.

A wait under way is never cut off, so that no bell is lost. The shards of one server need one wait,
and one connection, for all of them.
"""

import asyncio
from collections.abc import Sequence

from redis.exceptions import RedisError

from shared.queue.leases import WorkQueue


class Doorbells:
    """The waits for a queue's bells. `timeout_s` is the longest of them."""

    def __init__(self, queue: WorkQueue, timeout_s: float) -> None:
        self._queue = queue
        self._timeout_s = timeout_s
        self._waits: dict[tuple[str, ...], asyncio.Task[str | None]] = {}

    async def wait(self, shards: Sequence[str]) -> list[str]:
        """Return the shards whose bell has rung, as soon as one has; none after `timeout_s`."""
        for part in self._queue.together(sorted(shards)):
            key = tuple(part)
            if key not in self._waits:
                waiting = self._queue.await_bell(part, self._timeout_s)
                self._waits[key] = asyncio.create_task(waiting)
        await asyncio.wait(self._waits.values(), return_when=asyncio.FIRST_COMPLETED)
        return self._rung()

    async def pass_on(self) -> None:
        """Ring again for others, because this worker has no room for what has rung meanwhile."""
        for shard in self._rung():
            await self._queue.ring(shard)

    async def close(self) -> None:
        """Let the waits end, and ring again for others."""
        for task in self._waits.values():
            try:
                shard = await task
                if shard:
                    await self._queue.ring(shard)
            except RedisError:
                continue
        self._waits.clear()

    def drop(self) -> None:
        """Cut off what still waits."""
        # A bell that rings just then is lost, but others look by themselves after a while.
        for task in self._waits.values():
            task.cancel()
        self._waits.clear()

    def _rung(self) -> list[str]:
        """Return the shards whose bell has ended a wait. Raise what a wait has raised."""
        done: list[asyncio.Task[str | None]] = []
        for key, task in list(self._waits.items()):
            if task.done():
                done.append(task)
                del self._waits[key]

        shards: list[str] = []
        for task in done:
            shard = task.result()
            if shard is not None:
                shards.append(shard)
        return shards
