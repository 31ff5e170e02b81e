"""The event log of a job: fenced appends by its owner, and reading and following by anyone.

The log is the truth; pub/sub only makes it fast. An event's index is its entry id, so a cursor means the same to every
front and survives workers. Exactly one terminal event ends a log.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from redis.asyncio import Redis
from redis.typing import EncodableT

from shared import keys
from shared.errors import BrokerUnavailable
from shared.messages import STATE_OF, Event, Job, Terminal, decode_event, encode
from shared.queue import job_keys
from shared.script import Call, QueueScript
from shared.subscriptions import Subscriptions


@dataclass(frozen=True)
class Append:
    """Events to add behind index `after`, by the owner of `epoch`; the last of them may be terminal."""

    job: Job
    epoch: int
    after: int
    events: tuple[Event, ...]


class LogWriter:
    """Appends for a worker."""

    def __init__(self, redis: Redis, *, result_ttl_s: float = 600.0) -> None:
        self._script = QueueScript(redis)
        self._ttl_ms = int(result_ttl_s * 1000)

    async def append(self, appends: Sequence[Append]) -> list[bool]:
        """All appends in one round trip; False where another epoch owns the job now or it has ended.

        Safe to repeat after a lost connection: an append that had landed answers True again.
        """
        calls: list[Call] = []
        for item in appends:
            last = item.events[-1]
            state = STATE_OF[type(last)] if isinstance(last, Terminal) else ""
            fence: list[EncodableT] = ["write", item.epoch, item.after, keys.channel(item.job.id), state, self._ttl_ms]
            calls.append((job_keys(item.job), [*fence, *map(encode, item.events)]))
        return [bool(reply) for reply in await self._script.batch(calls)]


class LogReader:
    """Reads and follows for a front, and replays for a worker. Without `subscriptions` it can only read."""

    def __init__(self, redis: Redis, subscriptions: Subscriptions | None = None, *, poll_s: float = 1.0) -> None:
        self._redis = redis
        self._subscriptions = subscriptions
        self._poll_s = poll_s

    async def read(self, job_id: str, after: int = 0) -> list[tuple[int, Event]]:
        """The events behind index `after`, each with its index."""
        entries = await self._redis.xrange(keys.log(job_id), min=f"({after}-0")
        return [(int(entry.partition(b"-")[0]), decode_event(fields[b"e"])) for entry, fields in entries]

    async def follow(self, job_id: str, after: int = 0) -> AsyncIterator[tuple[int, Event]]:
        """Every event behind `after` in order, each once, up to and with the terminal one.

        Raises BrokerUnavailable when the job and its log have vanished, as after a restart of Redis without its data.
        """
        assert self._subscriptions is not None, "following needs subscriptions"
        async with self._subscriptions.listen(keys.channel(job_id)) as inbox:
            while True:
                for index, event in await self.read(job_id, after):
                    yield index, event
                    after = index
                    if isinstance(event, Terminal):
                        return
                if not await self._redis.exists(keys.job(job_id)):
                    raise BrokerUnavailable("Redis has lost the request.", retry_after_s=1)
                async for index, event in self._live(inbox, after):
                    yield index, event
                    after = index
                    if isinstance(event, Terminal):
                        return

    async def _live(self, inbox: "asyncio.Queue[bytes]", after: int) -> AsyncIterator[tuple[int, Event]]:
        """Published events while they join up with `after`; ends at a gap or a quiet while, to look at the log."""
        while True:
            try:
                message = await asyncio.wait_for(inbox.get(), self._poll_s)
            except TimeoutError:
                return
            number, _, payload = message.partition(b":")
            index = int(number)
            if index > after + 1:
                return
            if index == after + 1:
                yield index, decode_event(payload)
                after = index
