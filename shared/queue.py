"""The work queue: submit, take, renew, release, end jobs. Only this file (with queue.lua) says XADD, XREADGROUP, XACK.

A job is leased to a worker by its pending entry and owned by its epoch: every take raises the epoch, and only the
newest epoch may write to the job's log. Knows nothing of HTTP, models or engines.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

from msgspec import DecodeError
from redis.asyncio import Redis
from redis.exceptions import ResponseError
from redis.typing import EncodableT

from shared import keys
from shared.errors import QueueFull, QueueTimeout, WorkerFailed
from shared.messages import STATE_OF, Cancelled, Failed, Generate, Job, decode_job, encode
from shared.script import Call, QueueScript

logger = logging.getLogger("aios.queue")

_GIVEN_UP_IDLE_MS = 86_400_000
_MOST_EPOCHS = 8
_MOST_SCANS = 16

Entry = tuple[bytes, dict[bytes, bytes]]


@dataclass(frozen=True)
class Claim:
    """A job in the hands of one worker. `last_index` is the newest event in its log at the time of the take."""

    job: Job
    epoch: int
    last_index: int

    @property
    def key(self) -> str:
        """Tells this take of the job from every other, by this worker too."""
        return f"{self.job.id}:{self.epoch}"

    @property
    def places(self) -> int:
        """How many of a worker's places the job takes."""
        return places_of(self.job)


@dataclass(frozen=True)
class Depth:
    """Jobs waiting to be taken, and jobs taken and not yet ended."""

    queued: int
    running: int


def job_keys(job: Job) -> list[str]:
    """The keys every script command on one job works with."""
    return [queue_key(job), keys.job(job.id), keys.log(job.id)]


def queue_key(job: Job) -> str:
    return keys.queue(job.model, job.priority, int(job.id[:2], 16))


def places_of(job: Job) -> int:
    """One place for each choice of a prompt, one for anything else."""
    return job.task.sampling.n if isinstance(job.task, Generate) else 1


class JobQueue:
    """A view on the queues of one Redis. `result_ttl_s` is how long an ended job and its log can still be read."""

    def __init__(self, redis: Redis, *, result_ttl_s: float = 600.0) -> None:
        self._redis = redis
        self._script = QueueScript(redis)
        self._ttl_ms = int(result_ttl_s * 1000)

    async def submit(self, jobs: Sequence[Job], *, max_depth: int, queue_timeout_s: float) -> None:
        """Queue `jobs`, which share model and priority: all of them, or none and QueueFull with a Retry-After."""
        parts = [part for job in jobs for part in (job.id, places_of(job), encode(job))]
        reply = await self._script.call(
            [queue_key(jobs[0]), *(keys.job(job.id) for job in jobs)],
            ["submit", max_depth, int(queue_timeout_s * 1000), *parts],
        )
        if reply[0] == 0:
            raise _queue_full(*reply[1:], max_depth=max_depth, wanted=len(jobs))

    async def take(self, model: str, priority: str, worker: str, places: int, block_ms: int) -> list[Claim]:
        """Undelivered jobs until they fill `places`, of which the last one may take more than are left.

        Waits at most `block_ms` for the first. For a dedicated connection.
        """
        stream = keys.queue(model, priority)
        try:
            reply = await self._redis.xreadgroup(keys.GROUP, worker, {stream: ">"}, count=1, block=block_ms)
        except ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            await self._create_group(stream)
            return []
        entries: list[Entry] = reply[0][1] if reply else []
        left = places - sum(map(_places_of_entry, entries))
        if entries and left > 0:
            entries += [_entry(item) for item in await self._script.call([stream], ["fill", worker, left])]
        return await self._claim(stream, worker, entries)

    async def take_lapsed(self, model: str, priority: str, worker: str, places: int, lease_s: float) -> list[Claim]:
        """Jobs whose owner has let the lease run out, wherever they stand among those in hand.

        Until they fill `places`, of which the last one may take more than are left.
        """
        stream, start = keys.queue(model, priority), b"0-0"
        entries: list[Entry] = []
        for _ in range(_MOST_SCANS):
            room = places - len(entries)
            try:
                reply = await self._redis.xautoclaim(stream, keys.GROUP, worker, int(lease_s * 1000), start, room)
            except ResponseError as error:
                if "NOGROUP" not in str(error):
                    raise
                await self._create_group(stream)
                return []
            start = reply[0]
            entries += [entry for entry in reply[1] if entry[1]]
            if start == b"0-0" or len(entries) >= places:
                break
        fitting = _fitting(entries, places)
        await self._leave_lapsed(stream, worker, entries[len(fitting) :])
        return await self._claim(stream, worker, fitting)

    async def renew(self, claims: Sequence[Claim], worker: str) -> list[bool]:
        """Restart the lease of each claim; False for one that is no longer this worker's."""
        return await self._set_idle(claims, worker, 0)

    async def release(self, claims: Sequence[Claim], worker: str) -> None:
        """Give claims up at once: the next worker that looks for lapsed jobs takes them."""
        await self._set_idle(claims, worker, _GIVEN_UP_IDLE_MS)

    async def end(self, job: Job, event: Failed | Cancelled, *, only_if_queued: bool = False) -> bool:
        """End a job from outside, whatever its phase; False when it had ended before (or runs and is to be spared)."""
        state, spare = STATE_OF[type(event)], int(only_if_queued)
        args: list[EncodableT] = ["end_job", keys.channel(job.id), state, self._ttl_ms, encode(event), spare]
        return bool(await self._script.call(job_keys(job), args))

    async def depth(self, model: str, priority: str) -> Depth:
        """How many jobs wait and how many are in workers' hands."""
        stream = keys.queue(model, priority)
        try:
            running = (await self._redis.xpending(stream, keys.GROUP))["pending"]
        except ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            running = 0
        return Depth(await self._redis.xlen(stream) - running, running)

    async def forget_worker(self, model: str, priority: str, worker: str) -> None:
        """Remove a worker from the group, unless something is still in its hands."""
        await self._script.call([keys.queue(model, priority)], ["forget", worker])

    async def _claim(self, stream: str, worker: str, entries: Sequence[Entry]) -> list[Claim]:
        expired = encode(QueueTimeout("No worker took the request in time.").as_event())
        hopeless = encode(WorkerFailed(f"The request was given up after {_MOST_EPOCHS} workers.").as_event())
        calls: list[Call] = []
        for entry, fields in entries:
            job_id = fields[b"job"].decode()
            args: list[EncodableT] = ["claim", entry, worker, keys.channel(job_id), self._ttl_ms]
            calls.append(([stream, keys.job(job_id), keys.log(job_id)], [*args, expired, _MOST_EPOCHS, hopeless]))
        replies = await self._script.batch(calls)
        return [claim for claim in map(_claim_of, replies) if claim is not None]

    async def _leave_lapsed(self, stream: str, worker: str, entries: Sequence[Entry]) -> None:
        """Let others find what was found lapsed and is not wanted."""
        ids: list[bytes | str | int | memoryview[int]] = [entry for entry, _ in entries]
        if ids:
            await self._redis.xclaim(stream, keys.GROUP, worker, 0, ids, idle=_GIVEN_UP_IDLE_MS, justid=True)

    async def _set_idle(self, claims: Sequence[Claim], worker: str, idle_ms: int) -> list[bool]:
        calls: list[Call] = [(job_keys(item.job)[:2], ["renew", item.epoch, worker, idle_ms]) for item in claims]
        return [bool(reply) for reply in await self._script.batch(calls)]

    async def _create_group(self, stream: str) -> None:
        try:
            await self._redis.xgroup_create(stream, keys.GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise


def _claim_of(reply: tuple[bytes, int, int] | None) -> Claim | None:
    """The claim behind a reply; None for no job, and for one that only a newer version can read: it is left to that."""
    if reply is None:
        return None
    spec, epoch, last_index = reply
    try:
        return Claim(decode_job(spec), epoch, last_index)
    except DecodeError as error:
        logger.error("a job of another version is left alone: %s", error)
        return None


def _entry(reply: tuple[bytes, list[bytes]]) -> Entry:
    """A stream entry as a script returns it: names and values in one list."""
    entry, flat = reply
    return entry, dict(zip(flat[::2], flat[1::2], strict=True))


def _places_of_entry(entry: Entry) -> int:
    return int(entry[1].get(b"places", 1))


def _fitting(entries: Sequence[Entry], places: int) -> list[Entry]:
    """The first entries, until they fill `places`."""
    fitting: list[Entry] = []
    for entry in entries:
        if places <= 0:
            break
        fitting.append(entry)
        places -= _places_of_entry(entry)
    return fitting


def _queue_full(depth: int, ended: int, span_ms: int, *, max_depth: int, wanted: int) -> QueueFull:
    """Retry-After: the time in which the jobs ahead will have ended at the rate measured last, 1 to 60 s."""
    rate_per_s = ended / span_ms * 1000
    excess = depth + wanted - max_depth
    retry_after_s = min(60, max(1, math.ceil(excess / rate_per_s))) if rate_per_s else 5
    return QueueFull(f"The queue is full: {depth} of {max_depth} places are taken.", retry_after_s=retry_after_s)
