"""Requests that are in the fleet, as any front finds them again: their jobs and their followers.

A follower is a caller whose leaving may end the request. Followers are noted in Redis, so that all
fronts know which one is the last.
"""

import secrets
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from shared.errors import JobNotFound
from shared.messages import PRIORITIES
from shared.queue import keys
from shared.queue.broker import Broker
from shared.queue.leases import EXPIRED, LATE
from shared.queue.script import Script

_OVERDUE_MS = 5_000


@dataclass(frozen=True)
class Request:
    """A request that is in the fleet.

    `record` was written by the front that took the request. A front needs it to answer later.
    """

    id: str
    tenant: str
    job_ids: tuple[str, ...]
    record: bytes = b""


@dataclass(frozen=True)
class JobTimes:
    """The times at which a job was queued, first taken, had its first token, and ended.

    They are seconds of Redis's clock, None for what has not happened.
    """

    queued_s: float
    taken_s: float | None
    first_s: float | None
    ended_s: float | None


@dataclass(frozen=True)
class JobSnapshot:
    """The state of a job at one moment.

    `last_index` is the newest index of its log. It has `queue_s` seconds left to be taken, and
    `deadline_s` to its deadline. `fingerprint` is that of the worker that took it last, "" for
    none.
    """

    state: str
    last_index: int
    queue_s: float
    deadline_s: float
    fingerprint: str
    times: JobTimes


@dataclass(frozen=True)
class QueuePosition:
    """The place in the queue of a request that waits, as `position.lua` estimates it.

    `num_before` jobs will be taken before it, and it begins in `starts_in_s` seconds. That is None
    where no job has ended lately to estimate it by.
    """

    num_before: int
    starts_in_s: float | None


def new_follower_id() -> str:
    """Return a random id for a follower."""
    return secrets.token_hex(8)


class Requests:
    """Finds requests and their jobs. An ended request can be read for `result_ttl_s`."""

    def __init__(self, broker: Broker, *, result_ttl_s: float = 600.0) -> None:
        self._broker = broker
        self._status = Script(broker, "status")
        self._follow = Script(broker, "follow")
        self._position = Script(broker, "position")
        self._ttl_ms = int(result_ttl_s * 1000)

    async def find(self, request_id: str, tenant: str) -> Request:
        """Return a request. Raise JobNotFound if it is not there, or another tenant's."""
        missing = JobNotFound("No such job: it does not exist, or its result has expired.")
        if not keys.is_id(request_id):
            raise missing
        client = self._broker.client(keys.shard_of(request_id))
        reading = client.hmget(keys.request(request_id), ["tenant", "jobs", "record"])
        owner, job_ids, record = await cast(Awaitable[list[Any]], reading)
        if owner is None or not secrets.compare_digest(owner, tenant.encode()):
            raise missing
        return Request(request_id, tenant, tuple(job_ids.decode().split()), record)

    async def look(self, request: Request) -> list[JobSnapshot]:
        """Return the state of each job of a request. End those that are overdue.

        Raise JobNotFound when one has expired.
        """
        answers = await self._status.call(
            keys.shard_of(request.id),
            jobs=request.job_ids,
            expired=EXPIRED,
            late=LATE,
            grace_ms=_OVERDUE_MS,
            ttl_ms=self._ttl_ms,
        )
        snapshots = []
        for values in answers:
            if len(values) == 1:
                raise JobNotFound("No such job: its result has expired.")
            snapshots.append(_snapshot(values))
        return snapshots

    async def position(self, request: Request) -> QueuePosition | None:
        """Return the position of the first of its waiting jobs; None when none waits."""
        answer = await self._position.call(
            keys.shard_of(request.id), jobs=request.job_ids, classes=PRIORITIES
        )
        if not answer:
            return None
        num_before, wait_ms = answer
        starts_in_s = None
        if wait_ms >= 0:
            starts_in_s = wait_ms / 1000
        return QueuePosition(num_before, starts_in_s)

    async def follow(self, request: Request) -> str:
        """Note one more follower and return its id.

        Raise JobNotFound when the request has expired.
        """
        follower_id = new_follower_id()
        is_there = await self._follow.call(
            keys.shard_of(request.id), request=request.id, follower_id=follower_id
        )
        if not is_there:
            raise JobNotFound("No such job: its result has expired.")
        return follower_id

    async def leave(self, request_id: str, follower_id: str) -> None:
        """Remove a follower. That ends nothing."""
        client = self._broker.client(keys.shard_of(request_id))
        removed = client.hdel(keys.request(request_id), keys.follower_field(follower_id))
        await cast(Awaitable[int], removed)


def state_of(snapshots: Sequence[JobSnapshot]) -> str:
    """Return the state of a request.

    It is queued until a worker has taken one of its jobs, failed or cancelled as soon as one is,
    and done when all are.
    """
    states = {snapshot.state for snapshot in snapshots}
    for state in ("failed", "cancelled"):
        if state in states:
            return state
    if len(states) == 1:
        return states.pop()
    return "running"


def _snapshot(values: Sequence[Any]) -> JobSnapshot:
    """Return a snapshot from the values of `status.lua`, in its order."""
    state, last_index, queue_ms, deadline_ms, fingerprint, queued, taken, first, ended = values
    times = JobTimes(
        queued_s=int(queued) / 1000,
        taken_s=_seconds(taken),
        first_s=_seconds(first),
        ended_s=_seconds(ended),
    )
    return JobSnapshot(
        # For callers a job waits, wherever it does so.
        state="queued" if state == b"parked" else state.decode(),
        last_index=last_index,
        queue_s=queue_ms / 1000,
        deadline_s=deadline_ms / 1000,
        fingerprint=(fingerprint or b"").decode(),
        times=times,
    )


def _seconds(at_ms: bytes | None) -> float | None:
    if at_ms is None:
        return None
    return int(at_ms) / 1000
