"""The sweep over batches: it ends those that nobody advances, and removes what outlives them.

Processes that advance batches end them in time, with the files of the answers. This sweep is for
fleets without such a process.
"""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Any, cast

from redis.asyncio import Redis

from shared.queue import keys
from shared.queue.batches import BatchClaim, BatchEnding, BatchError, Batches
from shared.queue.broker import Broker
from shared.queue.script import Script

UNATTENDED_S = 3600.0
"""The time for which nobody has to have claimed a batch before it is ended without its files.

It begins when a sweep first finds that the batch's window is over, not before: after a pause of the
whole fleet those that advance batches come first.
"""
_BATCH = 200
_NOT_ADVANCED = BatchError(
    "batch_not_advanced",
    "No process of this fleet advanced the batch until its completion window was over.",
)


class BatchSweep:
    """Looks after the records of batches in Redis. All methods raise redis-py's errors.

    With `dry_run` nothing is changed.
    """

    def __init__(self, broker: Broker, *, dry_run: bool = False) -> None:
        self._redis: Redis = broker.client(keys.BATCHES)
        self._batches = Batches(broker)
        self._prune = Script(broker, "batch_prune", needs=("batches",))
        self._drop = Script(broker, "batch_drop", needs=("batches",))
        self._dry_run = dry_run

    async def run(self) -> Counter[str]:
        """Sweep once. Return how many of each kind were found."""
        num_stale = await self._prune_lists("owned", is_sorted=True)
        num_stale += await self._prune_lists("open", is_sorted=False)
        return +Counter(
            {
                "unattended_batches": await self._end_unattended(),
                "stale_batch_entries": num_stale,
                "orphan_batch_keys": await self._drop_orphans(),
            }
        )

    async def _end_unattended(self) -> int:
        """End batches that nobody has claimed for UNATTENDED_S after their windows.

        Return how many. Since when a batch is unattended is noted, with its epoch: a claim raises
        that, so the time begins again.
        """
        seconds, microseconds = await self._redis.time()
        now_ms = int(seconds) * 1000 + int(microseconds) // 1000
        overdue = await self._overdue(now_ms)
        reading = self._redis.hgetall(keys.UNATTENDED_BATCHES)
        notes = await cast(Awaitable[dict[bytes, bytes]], reading)

        fresh: dict[str, str] = {}
        due: list[BatchClaim] = []
        for batch_id, epoch in overdue.items():
            note = notes.get(batch_id.encode(), b"-1 0")
            noted_epoch, since_ms = (int(part) for part in note.split())
            if noted_epoch != epoch:
                fresh[batch_id] = f"{epoch} {now_ms}"
            elif now_ms - since_ms >= UNATTENDED_S * 1000:
                due.append(BatchClaim(batch_id, epoch))
        if self._dry_run:
            return len(due)

        num_ended = 0
        for claim in due:
            num_ended += await self._end(claim)
        # Others are claimed or gone; those that ended now are so at the next sweep.
        stale = {name.decode() for name in notes} - set(overdue)
        await self._keep_notes(fresh, sorted(stale))
        return num_ended

    async def _overdue(self, now_ms: int) -> dict[str, int]:
        """Return the batches whose window is over and that nobody holds, with their epochs."""
        members = await self._redis.zrangebyscore(keys.ACTIVE_BATCHES, "-inf", now_ms)
        ids = [member.decode() for member in members]
        pipe = self._redis.pipeline(transaction=False)
        for batch_id in ids:
            pipe.hmget(keys.batch(batch_id), ["expires_ms", "epoch"])
        epochs: dict[str, int] = {}
        for batch_id, (expires_ms, epoch) in zip(ids, await pipe.execute(), strict=True):
            if expires_ms is not None and int(expires_ms) <= now_ms:
                epochs[batch_id] = int(epoch)
        return epochs

    async def _end(self, claim: BatchClaim) -> bool:
        """End a batch unless somebody has claimed it meanwhile. Return whether it ended."""
        batch = await self._batches.read(claim)
        if batch is None:
            return False
        # A batch that was about to end otherwise does so, but none is complete without its files.
        ending: BatchEnding = "expired"
        if batch.ending in ("cancelled", "failed"):
            ending = batch.ending
        return await self._batches.end(claim, ending, errors=[*batch.errors, _NOT_ADVANCED])

    async def _keep_notes(self, fresh: dict[str, str], stale: Sequence[str]) -> None:
        pipe = self._redis.pipeline(transaction=False)
        if fresh:
            pipe.hset(keys.UNATTENDED_BATCHES, mapping=fresh)
        if stale:
            pipe.hdel(keys.UNATTENDED_BATCHES, *stale)
        await pipe.execute()

    async def _prune_lists(self, kind: str, *, is_sorted: bool) -> int:
        """Take batches whose records have expired off the lists of tenants. Return how many."""
        num_gone = 0
        async for name in self._names(kind):
            scan: Any = self._redis.zscan_iter if is_sorted else self._redis.sscan_iter
            ids: list[str] = []
            async for member in scan(name, count=_BATCH):
                ids.append((member[0] if is_sorted else member).decode())
            for start in range(0, len(ids), _BATCH):
                page = ids[start : start + _BATCH]
                num_gone += await self._prune.call(
                    keys.BATCHES,
                    list=name,
                    is_sorted=is_sorted,
                    batches=page,
                    dry_run=self._dry_run,
                )
        return num_gone

    async def _drop_orphans(self) -> int:
        """Remove answers and lines that were kept for batches that have ended. Return how many."""
        kept: list[tuple[str, str]] = []
        for kind in ("results", "duplicates"):
            async for name in self._names(kind):
                kept.append((name, name.rpartition(":")[2]))
        num_dropped = 0
        for start in range(0, len(kept), _BATCH):
            num_dropped += await self._drop.call(
                keys.BATCHES, kept=kept[start : start + _BATCH], dry_run=self._dry_run
            )
        return num_dropped

    async def _names(self, kind: str) -> AsyncIterator[str]:
        """Yield all keys of a kind under the hash tag of batches."""
        pattern = f"{keys.prefix(keys.BATCHES)}{kind}:*"
        async for name in self._redis.scan_iter(match=pattern, count=_BATCH):
            yield name.decode()
