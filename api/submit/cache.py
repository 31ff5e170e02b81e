"""Answers of finished requests that are given again when their tenant asks the same.

They are read from the logs of those requests. An answer is given again only where computing it
again would yield the same: greedy text, scores, puzzles. Sampled text is not given again, even with
a seed. A caller that samples wants another draw, and equal seeds give equal text in float32 alone,
which a front cannot see. Answers of other weights (of a fingerprint that is not announced now), and
requests that were cut short by a deadline, failed or were cancelled, are not given again either.
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
    """Return a digest of the work that is asked for, whoever asks for it and when.

    Return None where another try may yield something else.
    """
    repeated = [info_of(task).repeated(task) for task in tasks]
    if None in repeated:
        return None
    # These two fields do not change the answer.
    timeless = msgspec.structs.replace(record, created=0, on_disconnect="cancel")
    return hashlib.sha256(encode_record(timeless) + _encoder.encode(repeated)).hexdigest()


class AnswerCache:
    """Finds finished requests whose answers may be given again."""

    def __init__(self, repeats: Repeats, requests: Requests, reader: LogReader) -> None:
        self._repeats = repeats
        self._requests = requests
        self._reader = reader

    @redis_answers()
    async def find(self, tenant: str, digest: str, fingerprint: str) -> Request | None:
        """Return a request that asked the same and was answered whole under this fingerprint.

        Return None where there is none. Raise BrokerUnavailable.
        """
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
    """Return whether a job's last event says that it is done, and not cut short by a deadline."""
    if not isinstance(event, Done):
        return False
    reasons = (event.finish_reason, *event.generated.finish_reasons)
    return "deadline" not in reasons
