"""The work queue as a front sees it: submit requests, find them again, end them. States are moved by `lua/` alone.

A request is one job or several, queued all or not at all, on one shard. A tenant with limits lives on one shard, where
one script sees all of its work; one without spreads over all of them.
"""

import asyncio
import hashlib
import math
import secrets
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from shared import keys
from shared.broker import Broker
from shared.cost import cost_of
from shared.errors import FleetError, IdempotencyConflict, JobNotFound, OverQuota, QueueFull, TooSlow
from shared.messages import PRIORITIES, STATE_OF, Cancelled, Failed, Job, Priority, Task, encode
from shared.queue import EXPIRED, LATE, places_of
from shared.script import Script, raw

_OVERDUE_MS = 5_000


@dataclass(frozen=True)
class Quota:
    """What a tenant may do at once, fleet-wide: 0 is no limit. `rate_per_s` counts requests, `burst` after a rest."""

    concurrency: int = 0
    rate_per_s: float = 0.0
    burst: int = 1

    @property
    def is_limited(self) -> bool:
        return self.concurrency > 0 or self.rate_per_s > 0


@dataclass(frozen=True)
class Room:
    """What may wait at once in the whole fleet, for one model: jobs of one class, and bytes (0: any number)."""

    max_jobs: int
    max_bytes: int = 0


@dataclass(frozen=True)
class Request:
    """A request that is in the fleet. `record` is what the front that took it needs to tell of it later.

    `followers` is how often it was followed: who followed last decides when it ends for want of a follower.
    """

    id: str
    tenant: str
    job_ids: tuple[str, ...]
    record: bytes = b""
    followers: int = 0


@dataclass(frozen=True)
class Standing:
    """How one job stands: its state, its log's newest index, and the seconds left to be taken and to its deadline."""

    state: str
    last_index: int
    queue_s: float
    deadline_s: float


@dataclass(frozen=True)
class Order:
    """A request on its way in. Times in seconds from now; one that `is_urgent` is refused when what waits before it
    would take longer than its deadline. An idempotency `key` is the caller's own text; requests of one tenant with the
    same key are one, if their `body` is the same."""

    model: str
    tasks: tuple[Task, ...]
    tenant: str = "public"
    priority: Priority = "default"
    queue_timeout_s: float = 60.0
    deadline_s: float = 300.0
    is_urgent: bool = False
    request_id: str = ""
    is_streamed: bool = False
    key: str = ""
    body: bytes = b""
    record: bytes = b""


@dataclass(frozen=True)
class Depth:
    """Jobs waiting to be taken, by class, and jobs taken and not yet ended."""

    waiting: dict[Priority, int]
    running: int

    @property
    def queued(self) -> int:
        return sum(self.waiting.values())


class Submissions:
    """`key_ttl_s`: how long an idempotency key is remembered; `result_ttl_s`: how long an ended request can be read."""

    def __init__(self, broker: Broker, *, result_ttl_s: float = 600.0, key_ttl_s: float = 86_400.0) -> None:
        self._broker = broker
        self._submit, self._end, self._look = (Script(broker, name) for name in ("submit", "end", "look"))
        self._ttl_ms, self._key_ttl_ms = int(result_ttl_s * 1000), int(key_ttl_s * 1000)

    def jobs_of(self, order: Order, quota: Quota) -> tuple[str, list[Job]]:
        """The id of the request that `order` becomes, and its jobs."""
        shard = self._shard(order, quota)
        jobs = [
            Job(
                keys.new_id(shard), order.model, task, order.tenant, order.priority, order.request_id, order.is_streamed
            )
            for task in order.tasks
        ]
        return keys.new_id(shard), jobs

    async def submit(self, order: Order, request_id: str, jobs: Sequence[Job], quota: Quota, room: Room) -> Request:
        """Queue all `jobs`, or find the request that came before with the same idempotency key.

        Raises QueueFull, OverQuota, TooSlow (each with a Retry-After where there is one), IdempotencyConflict.
        """
        shard, num_shards = keys.shard_of(request_id), len(self._broker.shards)
        answer = await self._submit.call(
            shard,
            model=order.model,
            tenant=order.tenant,
            classes=PRIORITIES,
            request={
                "id": request_id,
                "key": _hashed(order.key.encode()) if order.key else "",
                "body": _hashed(order.body),
                "key_ttl_ms": self._key_ttl_ms,
                "record": raw(order.record),
            },
            jobs=[
                {"id": job.id, "places": places_of(job), "cost": cost_of(job.task), "spec": raw(encode(job))}
                for job in jobs
            ],
            queue_ms=int(order.queue_timeout_s * 1000),
            deadline_ms=int(order.deadline_s * 1000),
            is_urgent=order.is_urgent,
            ttl_ms=self._ttl_ms,
            max_jobs=_share(room.max_jobs, num_shards),
            max_bytes=_share(room.max_bytes, num_shards),
            concurrency=quota.concurrency,
            rate=quota.rate_per_s,
            burst=quota.burst,
            **{"class": order.priority},
        )
        match answer[0]:
            case b"queued":
                return Request(request_id, order.tenant, tuple(job.id for job in jobs), order.record)
            case b"known":
                return await self._known(answer[1].decode(), order.tenant)
            case b"conflict":
                raise IdempotencyConflict("This key came before with another body.", field="Idempotency-Key")
            case _:
                raise _refusal(*answer[1:])

    async def find(self, request_id: str, tenant: str) -> Request:
        """Raises JobNotFound for a request that is not there, or another tenant's."""
        missing = JobNotFound("No such job: it does not exist, or its result has expired.")
        if not keys.is_id(request_id):
            raise missing
        client = self._broker.client(keys.shard_of(request_id))
        asked = client.hmget(keys.request(request_id), ["tenant", "jobs", "record", "followers"])
        fields = await cast(Awaitable[list[Any]], asked)
        if fields[0] is None or not secrets.compare_digest(fields[0], tenant.encode()):
            raise missing
        return Request(request_id, tenant, tuple(fields[1].decode().split()), fields[2], int(fields[3]))

    async def look(self, request: Request) -> list[Standing]:
        """How its jobs stand; what is overdue ends by that. Raises JobNotFound when one has expired."""
        found = await self._look.call(
            keys.shard_of(request.id),
            jobs=request.job_ids,
            expired=EXPIRED,
            late=LATE,
            grace_ms=_OVERDUE_MS,
            ttl_ms=self._ttl_ms,
        )
        if any(len(item) == 1 for item in found):
            raise JobNotFound("No such job: its result has expired.")
        return [Standing(state.decode(), last, queue / 1000, left / 1000) for state, last, queue, left in found]

    async def _known(self, request_id: str, tenant: str) -> Request:
        """The request that came before with the same key."""
        try:
            return await self.find(request_id, tenant)
        except JobNotFound:
            words = "The request with this key has ended, and its result has expired."
            raise IdempotencyConflict(words, field="Idempotency-Key") from None

    async def follow(self, request: Request) -> int:
        """Count one more follower; returns how many there have been."""
        client = self._broker.client(keys.shard_of(request.id))
        return await cast(Awaitable[int], client.hincrby(keys.request(request.id), "followers", 1))

    async def end(
        self,
        jobs: Sequence[Job] | Sequence[str],
        event: Failed | Cancelled,
        *,
        if_waiting: bool = False,
        unless_followed: tuple[str, int] | None = None,
    ) -> int:
        """End jobs of one request from outside, whatever their phase; returns how many had not ended before.

        `if_waiting` spares those that run. `unless_followed` (request id, followers) spares all if others followed the
        request since then.
        """
        ids = [job if isinstance(job, str) else job.id for job in jobs]
        if not ids:
            return 0
        request, followers = unless_followed or ("", 0)
        ended = await self._end.call(
            keys.shard_of(ids[0]),
            jobs=ids,
            state=STATE_OF[type(event)],
            event=raw(encode(event)),
            ttl_ms=self._ttl_ms,
            if_waiting=if_waiting,
            request=request,
            followers=followers,
        )
        return sum(ended)

    async def depth(self, model: str) -> Depth:
        """How many jobs of a model wait, by class, and how many are in workers' hands."""

        async def read(shards: Sequence[str]) -> list[Any]:
            pipe = self._broker.client(shards[0]).pipeline(transaction=False)
            for shard in shards:
                pipe.hmget(keys.depth(shard, model), [f"jobs:{name}" for name in PRIORITIES])
                pipe.zcard(keys.leases(shard, model))
            return await pipe.execute()

        parts = self._broker.together(self._broker.shards)
        answers = [answer for part in await asyncio.gather(*map(read, parts)) for answer in part]
        counts = [[int(number or 0) for number in some] for some in answers[::2]]
        waiting = dict(zip(PRIORITIES, map(sum, zip(*counts, strict=True)), strict=True))
        return Depth(waiting, sum(answers[1::2]))

    def _shard(self, order: Order, quota: Quota) -> str:
        count = len(self._broker.shards)
        if quota.is_limited:
            return keys.shard_for(order.tenant, count)
        if order.key:
            return keys.shard_for(f"{order.tenant}/{order.key}", count)
        return secrets.choice(self._broker.shards)


def state_of(standings: Sequence[Standing]) -> str:
    """A request's state: queued until a worker has taken one of its jobs, failed or cancelled as soon as one is, done
    when all are."""
    states = {standing.state for standing in standings}
    for state in ("failed", "cancelled"):
        if state in states:
            return state
    return states.pop() if len(states) == 1 else "running"


def _hashed(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _share(limit: int, shards: int) -> int:
    """What one of `shards` may hold so that all together stay below `limit`."""
    return limit if limit == 0 else max(1, limit // shards)


def _refusal(reason: bytes, retry_ms: int, number: int, limit: int) -> FleetError:
    retry_after_s = min(60, max(1, math.ceil(retry_ms / 1000))) if retry_ms else 5
    match reason:
        case b"depth":
            return QueueFull(f"The queue is full: {number} of {limit} places are taken.", retry_after_s=retry_after_s)
        case b"bytes":
            return QueueFull(f"The queue is full: {number} of {limit} bytes wait.", retry_after_s=retry_after_s)
        case b"concurrency":
            words = f"{number} of the {limit} requests that may be open at once are."
            return OverQuota(words, retry_after_s=retry_after_s)
        case b"rate":
            return OverQuota(f"More than {number} requests a second.", retry_after_s=retry_after_s)
        case _:
            words = f"The wait is about {number / 1000:.1f} s, and the deadline {limit / 1000:.1f} s."
            return TooSlow(words, retry_after_s=retry_after_s)
