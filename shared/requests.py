"""Requests that are in the fleet, as any front finds them again: how their jobs stand, and who
follows them.

A follower is one whose leaving may end the request: it is noted in Redis, so that the last one is
known to all fronts.
"""

import secrets
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from shared import keys
from shared.broker import Broker
from shared.errors import JobNotFound
from shared.messages import PRIORITIES
from shared.queue import EXPIRED, LATE
from shared.script import Script

_OVERDUE_MS = 5_000


@dataclass(frozen=True)
class Request:
    """A request that is in the fleet. `record` is what the front that took it needs to tell of it
    later."""

    id: str
    tenant: str
    job_ids: tuple[str, ...]
    record: bytes = b""


@dataclass(frozen=True)
class JobTimes:
    """When a job was queued, first taken by a worker, had said its first token, and ended: seconds
    of Redis's clock; None for what has not been."""

    queued_s: float
    taken_s: float | None
    first_s: float | None
    ended_s: float | None


@dataclass(frozen=True)
class JobSnapshot:
    """How one job stands: its state, its log's newest index, and the seconds left to be taken and
    to its deadline.

    `fingerprint` is that of the worker that took it last, "" for none.
    """

    state: str
    last_index: int
    queue_s: float
    deadline_s: float
    fingerprint: str
    times: JobTimes


@dataclass(frozen=True)
class QueuePosition:
    """`num_before` jobs will be taken before a request that waits, and it itself in `starts_in_s`:
    both foretold, by `position.lua`, from what waits on its shard now. None where nothing has ended
    lately to tell by."""

    num_before: int
    starts_in_s: float | None


def new_follower_id() -> str:
    """What one follower is noted by."""
    return secrets.token_hex(8)


class Requests:
    """`result_ttl_s`: how long an ended request can be read."""

    def __init__(self, broker: Broker, *, result_ttl_s: float = 600.0) -> None:
        self._broker = broker
        self._status, self._follow, self._position = (
            Script(broker, name) for name in ("status", "follow", "position")
        )
        self._ttl_ms = int(result_ttl_s * 1000)

    async def find(self, request_id: str, tenant: str) -> Request:
        """Raises JobNotFound for a request that is not there, or another tenant's."""
        missing = JobNotFound("No such job: it does not exist, or its result has expired.")
        if not keys.is_id(request_id):
            raise missing
        client = self._broker.client(keys.shard_of(request_id))
        asked = client.hmget(keys.request(request_id), ["tenant", "jobs", "record"])
        fields = await cast(Awaitable[list[Any]], asked)
        if fields[0] is None or not secrets.compare_digest(fields[0], tenant.encode()):
            raise missing
        return Request(request_id, tenant, tuple(fields[1].decode().split()), fields[2])

    async def look(self, request: Request) -> list[JobSnapshot]:
        """How its jobs stand; what is overdue ends by that. Raises JobNotFound when one has
        expired."""
        found = await self._status.call(
            keys.shard_of(request.id),
            jobs=request.job_ids,
            expired=EXPIRED,
            late=LATE,
            grace_ms=_OVERDUE_MS,
            ttl_ms=self._ttl_ms,
        )
        if any(len(item) == 1 for item in found):
            raise JobNotFound("No such job: its result has expired.")
        return [_snapshot(*item) for item in found]

    async def position(self, request: Request) -> QueuePosition | None:
        """Where the first of its jobs that wait stands; None when none waits."""
        found = await self._position.call(
            keys.shard_of(request.id), jobs=request.job_ids, classes=PRIORITIES
        )
        if not found:
            return None
        num_before, wait_ms = found
        return QueuePosition(num_before, None if wait_ms < 0 else wait_ms / 1000)

    async def follow(self, request: Request) -> str:
        """Note one more follower; returns its mark. Raises JobNotFound when the request has
        expired."""
        follower_id = new_follower_id()
        if not await self._follow.call(
            keys.shard_of(request.id), request=request.id, follower_id=follower_id
        ):
            raise JobNotFound("No such job: its result has expired.")
        return follower_id

    async def leave(self, request_id: str, follower_id: str) -> None:
        """Strike a follower off; nothing ends by that."""
        client = self._broker.client(keys.shard_of(request_id))
        await cast(
            Awaitable[int], client.hdel(keys.request(request_id), keys.follower_field(follower_id))
        )


def state_of(snapshots: Sequence[JobSnapshot]) -> str:
    """A request's state: queued until a worker has taken one of its jobs, failed or cancelled as
    soon as one is, done when all are."""
    states = {snapshot.state for snapshot in snapshots}
    for state in ("failed", "cancelled"):
        if state in states:
            return state
    return states.pop() if len(states) == 1 else "running"


def _snapshot(
    state: bytes,
    last: int,
    queue_ms: int,
    deadline_ms: int,
    fingerprint: bytes | None,
    queued: bytes,
    *later: bytes | None,
) -> JobSnapshot:
    taken_s, first_s, ended_s = (None if at is None else int(at) / 1000 for at in later)
    times = JobTimes(int(queued) / 1000, taken_s, first_s, ended_s)
    return JobSnapshot(
        state.decode(),
        last,
        queue_ms / 1000,
        deadline_ms / 1000,
        (fingerprint or b"").decode(),
        times,
    )
