"""Answers that are given again to who asks the same: those of a tenant's own finished requests,
from their logs.

Only where asking again would compute the same: greedy text, scores, puzzles. Sampled text is not
among them, even with a seed: who samples wants another draw, and equal seeds give equal text in
float32 alone, which a front cannot see. What was answered by other weights (another fingerprint
than is announced now), cut short by a deadline, failed or called off is not given again.
"""

import asyncio
import hashlib
from collections.abc import Sequence
from contextlib import suppress

import msgspec

from api.redis_timeout import redis_answers
from api.submit.request_record import RequestRecord, encode_record
from shared.errors import BrokerUnavailable, JobNotFound
from shared.events.log import LogReader
from shared.messages import Done, Task
from shared.queue.broker import UNAVAILABLE
from shared.queue.repeats import Repeats
from shared.queue.requests import Request, Requests
from shared.tasks.task_table import info_of

CACHE = "X-Cache"

_encoder = msgspec.msgpack.Encoder()


def digest_of(record: RequestRecord, tasks: Sequence[Task]) -> str | None:
    """Return a digest of what is asked for, whoever asks and when.

    None where another try may yield something else.
    """
    repeated = [info_of(task).repeated(task) for task in tasks]
    if None in repeated:
        return None
    asked = msgspec.structs.replace(record, created=0, on_disconnect="cancel")
    return hashlib.sha256(encode_record(asked) + _encoder.encode(repeated)).hexdigest()


class AnswerCache:
    """Finds finished requests whose answers may be given again."""

    def __init__(self, repeats: Repeats, requests: Requests, reader: LogReader) -> None:
        self._repeats = repeats
        self._requests = requests
        self._reader = reader

    @redis_answers()
    async def find(self, tenant: str, digest: str, fingerprint: str) -> Request | None:
        """Return a request that asked the same and was answered whole under this fingerprint."""
        request_id = await self._repeats.find(tenant, digest)
        if request_id is None:
            return None
        try:
            request = await self._requests.find(request_id, tenant)
            snapshots = await self._requests.look(request)
        except JobNotFound:
            return None
        reading = []
        for job_id, snapshot in zip(request.job_ids, snapshots, strict=True):
            if snapshot.state != "done" or snapshot.fingerprint != fingerprint:
                return None
            reading.append(self._last_event(job_id, snapshot.last_index))
        for event in await asyncio.gather(*reading):
            if not _is_whole(event):
                return None
        return request

    async def _last_event(self, job_id: str, last_index: int) -> object:
        """Return the last event of a job's log, None where there is none."""
        entries = await self._reader.read(job_id, last_index - 1)
        if not entries:
            return None
        return entries[-1][1]

    async def note(self, tenant: str, digest: str, request: Request) -> None:
        """Remember what a request asked for."""
        # A note that gets lost costs one more run, so it is not insisted on.
        with suppress(BrokerUnavailable, *UNAVAILABLE):
            async with redis_answers():
                await self._repeats.note(tenant, digest, request.id)


def _is_whole(event: object) -> bool:
    return isinstance(event, Done) and "deadline" not in (
        event.finish_reason,
        *event.generated.finish_reasons,
    )
