"""The event log of a job: fenced appends by its owner, and reading and following by anyone.

The log is the truth; pub/sub only makes it fast. What one script logs reaches a process that follows
several of its jobs in one message. An event's index is its entry id, so a cursor
means the same to every front and survives workers. Exactly one terminal event ends a log.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from shared.errors import BrokerUnavailable
from shared.events.subscriptions import Subscriptions
from shared.messages import (
    SKIPPED,
    STATE_OF,
    Done,
    Event,
    Job,
    Progress,
    Solution,
    Started,
    Terminal,
    Tokens,
    decode_event,
    encode,
)
from shared.queue import keys
from shared.queue.broker import Broker
from shared.queue.script import Script, raw

Deliver = Callable[[int, Event], None]
"""A function that takes an event with its index."""

_SKIPPED_EVENT = raw(encode(SKIPPED))
_PROGRESSED = 1
_SAMPLED = 2
"""The ways in which a job advances, as `append.lua` knows them."""
_NEWEST = 4
"""The number of last events that are searched for the newest progress.

The progress need not be the last one: after a takeover a start follows it.
"""


@dataclass(frozen=True)
class Append:
    """Events to add behind index `after`, by the owner of `epoch`. The last may be terminal.

    The first of them happened at `since_s` of the event loop's clock (None: now).
    """

    job: Job
    epoch: int
    after: int
    events: tuple[Event, ...]
    since_s: float | None = None


class LogWriter:
    """Appends events for a worker."""

    def __init__(self, broker: Broker, *, result_ttl_s: float = 600.0) -> None:
        self._append = Script(broker, "append")
        self._ttl_ms = int(result_ttl_s * 1000)

    async def append(self, appends: Sequence[Append]) -> list[bool]:
        """Write all appends, in one round trip for each server.

        Return for each whether it landed. It does not land where another epoch owns the job by
        now, or the job has ended. Safe to repeat after a lost connection: an append that had landed
        gives True again.
        """
        indices_of: dict[str, list[int]] = {}
        for index, append in enumerate(appends):
            indices_of.setdefault(keys.shard_of(append.job.id), []).append(index)

        now_s = asyncio.get_running_loop().time()
        calls: dict[str, dict[str, Any]] = {}
        for shard, indices in indices_of.items():
            packed = [_packed(appends[index], now_s) for index in indices]
            calls[shard] = {"ttl_ms": self._ttl_ms, "appends": packed}
            if any(_settles(appends[index]) for index in indices):
                calls[shard]["skipped"] = _SKIPPED_EVENT

        landed = [False] * len(appends)
        replies_of_shards = await self._append.call_all(calls)
        for indices, replies in zip(indices_of.values(), replies_of_shards, strict=True):
            for index, reply in zip(indices, replies, strict=True):
                landed[index] = bool(reply)
        return landed


class LogReader:
    """Reads and follows logs. Without `subscriptions` it can only read.

    With them it looks at the log after `poll_s` of silence, in case a message was lost.
    """

    def __init__(
        self, broker: Broker, subscriptions: Subscriptions | None = None, *, poll_s: float = 1.0
    ) -> None:
        self._broker = broker
        self._hear = Script(broker, "hear")
        self._mailbox: Mailbox | None = None
        if subscriptions is not None:
            self._mailbox = Mailbox(subscriptions)
        self._poll_s = poll_s

    async def read(self, job_id: str, after: int = 0) -> list[tuple[int, Event]]:
        """Return the events behind index `after`, each with its index."""
        entries = await self._client(job_id).xrange(keys.log(job_id), min=f"({after}-0")
        return [(_index(entry), decode_event(fields[b"e"])) for entry, fields in entries]

    async def newest_progress(self, job_id: str) -> Progress | None:
        """Return the last progress that was logged.

        None means that there is none among the last events.
        """
        entries = await self._client(job_id).xrevrange(keys.log(job_id), count=_NEWEST)
        for _, fields in entries:
            event = decode_event(fields[b"e"])
            if isinstance(event, Progress):
                return event
        return None

    async def deliver(self, job_id: str, to: Deliver, after: int = 0) -> None:
        """Call `to` with every event behind `after`, up to the terminal one.

        The events come in order, and each once. Raise BrokerUnavailable when the job and its log
        have vanished, as after a restart of Redis without its data.
        """
        assert self._mailbox is not None, "following needs subscriptions"
        tail = _Tail(to, after)
        shard = keys.shard_of(job_id)
        # The mailbox is open before Redis is told of it, and it is told of it and reads the log in
        # one script, so nothing falls in between.
        async with self._mailbox.receives(job_id, tail.on_event):
            while True:
                is_there, entries = await self._hear.call(
                    shard, job=job_id, reader=self._mailbox.id, after=tail.after
                )
                for entry, (_, payload) in entries:
                    tail.take(_index(entry), decode_event(payload))
                if tail.has_ended:
                    return
                # Where the job is gone no terminal event will ever come.
                if not is_there:
                    raise BrokerUnavailable("Redis has lost the request.", retry_after_s=1)
                await tail.wait(self._poll_s)
                if tail.has_ended:
                    return

    async def follow(self, job_id: str, after: int = 0) -> AsyncIterator[tuple[int, Event]]:
        """Yield every event behind `after`, with its index, as `deliver` delivers them."""
        arrived: asyncio.Queue[tuple[int, Event] | None] = asyncio.Queue()

        def note(index: int, event: Event) -> None:
            arrived.put_nowait((index, event))

        delivering = asyncio.create_task(self.deliver(job_id, note, after))
        delivering.add_done_callback(lambda _: arrived.put_nowait(None))
        try:
            while (entry := await arrived.get()) is not None:
                yield entry
            await delivering
        finally:
            delivering.cancel()
            await asyncio.gather(delivering, return_exceptions=True)

    def _client(self, job_id: str) -> Redis:
        return self._broker.client(keys.shard_of(job_id))


Receive = Callable[[int, bytes], None]
"""A function that takes an event's index and its payload. It must not raise."""


class Mailbox:
    """The channel on which a process hears of all jobs that it follows.

    `id` is what scripts know it by. It stays open until its subscriptions are closed.
    """

    def __init__(self, subscriptions: Subscriptions) -> None:
        self.id = secrets.token_hex(8)
        self._subscriptions = subscriptions
        self._receivers: dict[bytes, list[Receive]] = {}

    @asynccontextmanager
    async def receives(self, job_id: str, receive: Receive) -> AsyncIterator[None]:
        """Call `receive` with the job's events during the block. It begins when the mailbox is open.

        When Redis is away it begins all the same, as `Subscriptions.keep` says.
        """
        key = job_id.encode()
        self._receivers.setdefault(key, []).append(receive)
        try:
            await self._subscriptions.keep(keys.mail(self.id), self._deliver)
            yield
        finally:
            self._receivers[key].remove(receive)
            if not self._receivers[key]:
                del self._receivers[key]

    def _deliver(self, message: bytes) -> None:
        """Hand out the events of a message: each has a line `JOB INDEX LENGTH`, then its payload."""
        begin = 0
        while begin < len(message):
            line_end = message.index(b"\n", begin)
            job_id, index, length = message[begin:line_end].split()
            begin = line_end + 1 + int(length)
            # Also nobody: those who have left are told to the end of the job.
            for receive in tuple(self._receivers.get(job_id, ())):
                receive(int(index), message[line_end + 1 : begin])


class _Tail:
    """The end of a log, as far as a follower has got: `after` is the last index delivered.

    Published events are delivered at once, by whoever reads messages from Redis, while they join up
    with `after`.
    """

    def __init__(self, to: Deliver, after: int) -> None:
        self._to = to
        self.after = after
        self.has_ended = False
        self._error: Exception | None = None
        self._wake = asyncio.Event()

    def take(self, index: int, event: Event) -> None:
        """Deliver an event, unless it has been delivered already."""
        if index <= self.after or self.has_ended:
            return
        self.after = index
        self._to(index, event)
        # Last: a follower whose delivery failed has not ended well.
        self.has_ended = isinstance(event, Terminal)

    def on_event(self, index: int, payload: bytes) -> None:
        """Deliver an event that was published, if it is the next one."""
        # Other followers share the mailbox, and an error is none of theirs.
        try:
            if index == self.after + 1:
                self.take(index, decode_event(payload))
        except Exception as error:
            self._error = error
        # A message was lost, or the last one has come: the follower has to look.
        if index > self.after or self.has_ended or self._error is not None:
            self._wake.set()

    async def wait(self, poll_s: float) -> None:
        """Wait until a message is missing, the last event has come, or nothing comes for a while.

        That is at least `poll_s`, and less than twice that. Raise an error of the delivery.
        """
        is_quiet = False
        while not is_quiet:
            before = self.after
            try:
                # Not `wait_for`, which can swallow a cancellation in Python 3.11.
                async with asyncio.timeout(poll_s):
                    await self._wake.wait()
                break
            except TimeoutError:
                is_quiet = self.after == before
        self._wake.clear()
        if self._error is not None:
            raise self._error


def _index(entry_id: bytes) -> int:
    return int(entry_id.partition(b"-")[0])


def _settles(append: Append) -> bool:
    """Return whether an append makes other jobs needless."""
    last = append.events[-1]
    return isinstance(last, Done) and last.settles


def _packed(append: Append, now_s: float) -> tuple[object, ...]:
    """Return an append as `append.lua` reads it.

    The last values are the state that it ends in ("": none), what the job has used in all, the
    milliseconds since the first event happened, whether other jobs are needless now, and the number
    of tokens in the events, less that of the events that are not terminal.
    """
    num_prompt_tokens = None
    surplus = 0
    advance = 0
    for event in append.events:
        if isinstance(event, Tokens):
            advance = _SAMPLED
            surplus += len(event.ids)
        elif isinstance(event, Progress):
            advance = max(advance, _PROGRESSED)
        elif isinstance(event, Started):
            num_prompt_tokens = event.num_prompt_tokens
        if not isinstance(event, Terminal):
            surplus -= 1

    last = append.events[-1]
    state = ""
    if isinstance(last, Terminal):
        state = STATE_OF[type(last)]
    used = None
    if isinstance(last, Done):
        used = _used(last)

    age_ms = 0
    if append.since_s is not None:
        age_ms = max(0, int((now_s - append.since_s) * 1000))
    events = [raw(encode(event)) for event in append.events]
    return (
        append.job.id,
        append.epoch,
        append.after,
        events,
        num_prompt_tokens,
        advance,
        state,
        used,
        age_ms,
        _settles(append),
        surplus,
    )


def _used(done: Done) -> tuple[int, ...]:
    """Return what a job has used, in the order of `count_usage` in `common.lua`."""
    num_segments = 0
    if isinstance(done.result, Solution):
        num_segments = done.result.steps
    return (
        done.num_prompt_tokens,
        done.num_cached_tokens,
        done.num_completion_tokens,
        num_segments,
        sum(artifact.num_bytes for artifact in done.artifacts),
    )
