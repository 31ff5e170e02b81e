"""The dead: jobs that were given up because their workers crashed. Listed, shown, tried again,
forgotten.

`take.lua` puts them here; their hashes and logs live for `QueuePolicy.dead_ttl_s`.
"""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import cast

from shared import keys
from shared.broker import Broker
from shared.errors import JobNotFound
from shared.log import LogReader
from shared.messages import Event, Job, decode_job
from shared.submission import Key, QueueLimits, Quota, Submissions, SubmitRequest

_PAGE = 500
_ANY_NUMBER = 1 << 40


@dataclass(frozen=True)
class DeadLetter:
    """One convicted job. `at_ms` is when it was given up, since 1970; `epochs` how often it was
    taken, at last by `worker`."""

    id: str
    model: str
    tenant: str
    worker: str
    epochs: int
    at_ms: int
    entry: str


class DeadLetters:
    """Every method but `everyone` raises JobNotFound for a job that is not among the dead."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._submissions = Submissions(broker)
        self._reader = LogReader(broker)

    async def everyone(self) -> list[DeadLetter]:
        """All of them, the latest first."""
        found = await asyncio.gather(*map(self._on_shard, self._broker.shards))
        return sorted(
            (dead for some in found for dead in some), key=lambda dead: dead.at_ms, reverse=True
        )

    async def show(self, job_id: str) -> tuple[DeadLetter, Job, list[Event]]:
        """It, what it was to do, and what it had said."""
        dead = await self._find(job_id)
        return (
            dead,
            await self._job(job_id),
            [event for _, event in await self._reader.read(job_id)],
        )

    async def retry(
        self, job_id: str, *, queue_timeout_s: float = 60.0, deadline_s: float = 300.0
    ) -> str:
        """Queue the same task as a new job, whose id is returned, and forget this one. Safe to
        repeat."""
        dead, job = await self._find(job_id), await self._job(job_id)
        submit_request = SubmitRequest(
            job.model,
            (job.task,),
            job.tenant,
            job.priority,
            queue_timeout_s=queue_timeout_s,
            deadline_s=deadline_s,
            request_id=job.request_id,
            key=Key(f"dead/{job_id}"),
        )
        request_id, jobs = self._submissions.jobs_of(submit_request)
        request = await self._submissions.submit(
            submit_request, request_id, jobs, Quota(), QueueLimits(_ANY_NUMBER)
        )
        await self._forget(dead)
        return request.job_ids[0]

    async def drop(self, job_id: str) -> None:
        """Forget it, its task and its log."""
        await self._forget(await self._find(job_id))

    async def _forget(self, dead: DeadLetter) -> None:
        shard = keys.shard_of(dead.id)
        pipe = self._broker.client(shard).pipeline(transaction=True)
        pipe.delete(keys.job(dead.id), keys.log(dead.id))
        pipe.xdel(keys.dead(shard), dead.entry)
        await pipe.execute()

    async def _find(self, job_id: str) -> DeadLetter:
        if keys.is_id(job_id) and keys.shard_of(job_id) in self._broker.shards:
            for dead in await self._on_shard(keys.shard_of(job_id)):
                if dead.id == job_id:
                    return dead
        raise JobNotFound(f"{job_id} is not among the dead.")

    async def _job(self, job_id: str) -> Job:
        client = self._broker.client(keys.shard_of(job_id))
        spec = await cast(Awaitable[bytes | None], client.hget(keys.job(job_id), "spec"))
        if spec is None:
            raise JobNotFound(
                f"The task of {job_id} has expired; all that can be done is to drop it."
            )
        return decode_job(spec)

    async def _on_shard(self, shard: str) -> list[DeadLetter]:
        client, found, start = self._broker.client(shard), [], "-"
        while page := await client.xrange(keys.dead(shard), min=start, count=_PAGE):
            found += [_dead(entry, fields) for entry, fields in page]
            start = f"({found[-1].entry}"
        return found


def _dead(entry: bytes, fields: dict[bytes, bytes]) -> DeadLetter:
    told = {name.decode(): value.decode() for name, value in fields.items()}
    at_ms = int(entry.partition(b"-")[0])
    return DeadLetter(
        told["job"],
        told["model"],
        told["tenant"],
        told["worker"],
        int(told["epochs"]),
        at_ms,
        entry.decode(),
    )
