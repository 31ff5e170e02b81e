"""Dead letters: jobs that were given up because their workers crashed.

`take.lua` puts them here; their hashes and logs live for `QueuePolicy.dead_ttl_s`.
"""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import cast

from shared.errors import JobNotFound
from shared.events.log import LogReader
from shared.messages import Event, Job, decode_job
from shared.queue import keys
from shared.queue.broker import Broker
from shared.queue.submission import Key, QueueLimits, Quota, Submissions, SubmitRequest

_PAGE = 500
_ANY_NUMBER = 1 << 40


@dataclass(frozen=True)
class DeadLetter:
    """A convicted job. It was given up `at_ms` milliseconds after 1970.

    It had been taken `epochs` times, the last time by `worker`. `entry` is its id in the stream of
    dead letters.
    """

    id: str
    model: str
    tenant: str
    worker: str
    epochs: int
    at_ms: int
    entry: str


class DeadLetters:
    """Lists dead letters, shows them, tries them again and drops them.

    Every method but `all_letters` raises JobNotFound for a job that is not among them.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._submissions = Submissions(broker)
        self._reader = LogReader(broker)

    async def all_letters(self) -> list[DeadLetter]:
        """Return all dead letters, the latest first."""
        letters: list[DeadLetter] = []
        reads = [self._on_shard(shard) for shard in self._broker.shards]
        for letters_of_shard in await asyncio.gather(*reads):
            letters += letters_of_shard
        return sorted(letters, key=lambda letter: letter.at_ms, reverse=True)

    async def show(self, job_id: str) -> tuple[DeadLetter, Job, list[Event]]:
        """Return a dead letter, the job with its task, and the events of its log."""
        letter = await self._find(job_id)
        job = await self._job(job_id)
        events = [event for _, event in await self._reader.read(job_id)]
        return letter, job, events

    async def retry(
        self, job_id: str, *, queue_timeout_s: float = 60.0, deadline_s: float = 300.0
    ) -> str:
        """Queue the same task as a new job, and forget this one. Return the new job's id.

        Safe to repeat: the new request has an idempotency key made of the old id.
        """
        letter = await self._find(job_id)
        job = await self._job(job_id)
        client = self._broker.client(keys.shard_of(job_id))
        api_key = await cast(Awaitable[bytes | None], client.hget(keys.job(job_id), "api_key"))
        submit_request = SubmitRequest(
            model=job.model,
            tasks=(job.task,),
            tenant=job.tenant,
            priority=job.priority,
            queue_timeout_s=queue_timeout_s,
            deadline_s=deadline_s,
            request_id=job.request_id,
            key=Key(f"dead/{job_id}"),
            api_key=(api_key or b"").decode(),
        )
        request_id, jobs = self._submissions.jobs_of(submit_request)
        request = await self._submissions.submit(
            submit_request, request_id, jobs, quota=Quota(), queue_limits=QueueLimits(_ANY_NUMBER)
        )
        # The letter is forgotten only when the new job is queued: the task is nowhere else.
        await self._forget(letter)
        return request.job_ids[0]

    async def drop(self, job_id: str) -> None:
        """Forget a dead letter, its task and its log."""
        await self._forget(await self._find(job_id))

    async def _forget(self, letter: DeadLetter) -> None:
        shard = keys.shard_of(letter.id)
        pipe = self._broker.client(shard).pipeline(transaction=True)
        pipe.delete(keys.job(letter.id), keys.log(letter.id))
        pipe.xdel(keys.dead(shard), letter.entry)
        await pipe.execute()

    async def _find(self, job_id: str) -> DeadLetter:
        if keys.is_id(job_id) and keys.shard_of(job_id) in self._broker.shards:
            for letter in await self._on_shard(keys.shard_of(job_id)):
                if letter.id == job_id:
                    return letter
        raise JobNotFound(f"{job_id} is not among the dead letters.")

    async def _job(self, job_id: str) -> Job:
        client = self._broker.client(keys.shard_of(job_id))
        spec = await cast(Awaitable[bytes | None], client.hget(keys.job(job_id), "spec"))
        if spec is None:
            raise JobNotFound(
                f"The task of {job_id} has expired; the dead letter can only be dropped."
            )
        return decode_job(spec)

    async def _on_shard(self, shard: str) -> list[DeadLetter]:
        client = self._broker.client(shard)
        letters: list[DeadLetter] = []
        start = "-"
        while page := await client.xrange(keys.dead(shard), min=start, count=_PAGE):
            letters += [_letter(entry, fields) for entry, fields in page]
            # The next page begins behind the last entry of this one: `(` leaves it out.
            start = f"({letters[-1].entry}"
        return letters


def _letter(entry: bytes, fields: dict[bytes, bytes]) -> DeadLetter:
    values = {name.decode(): value.decode() for name, value in fields.items()}
    return DeadLetter(
        id=values["job"],
        model=values["model"],
        tenant=values["tenant"],
        worker=values["worker"],
        epochs=int(values["epochs"]),
        at_ms=int(entry.partition(b"-")[0]),
        entry=entry.decode(),
    )
