"""Invariants of the data in Redis that hold when all requests have ended, whatever faults came."""

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import cast

from redis.asyncio import Redis

from scripts.chaos.polling import came_true
from shared.events.log import LogReader
from shared.messages import Event, Job, Started, Terminal, Tokens, decode_job
from shared.queue import keys
from shared.queue.broker import Broker

# Kinds of keys that must have a time to live, and kinds that must be gone.
_EXPIRING = (
    "job",
    "log",
    "request",
    "key",
    "assigned",
    "outcomes",
    "feedback",
    "usage",
    "usage_rows",
    "usage_tenants",
    "budget",
)
_GONE = ("line", "leases", "open", "parked", "turns", "budgeted")
_OPEN = (b"parked", b"queued", b"running")


@dataclass(frozen=True)
class Trace:
    """A job and its log as they are in Redis."""

    job: Job
    state: str
    epoch: int
    events: tuple[Event, ...]

    @property
    def starts(self) -> int:
        """The number of times that a worker has started the job."""
        return sum(isinstance(event, Started) for event in self.events)

    @property
    def text(self) -> str:
        """The text of the first choice."""
        parts = []
        for event in self.events:
            if isinstance(event, Tokens) and event.choice == 0:
                parts.append(event.text)
        return "".join(parts)

    @property
    def was_hit(self) -> bool:
        """Return whether a worker has taken the job over from another."""
        return self.epoch > 1


async def traces(redis: Redis) -> list[Trace]:
    """Return the traces of all jobs in Redis."""
    reader = LogReader(Broker(redis))
    job_traces = []
    async for name in redis.scan_iter("aios:{*}:job:*", count=1000):
        spec, state, epoch = await cast(
            Awaitable[list[bytes]], redis.hmget(name.decode(), ["spec", "state", "epoch"])
        )
        job = decode_job(spec)
        events = tuple(event for _, event in await reader.read(job.id))
        job_traces.append(Trace(job, state.decode(), int(epoch), events))
    return job_traces


async def num_open(redis: Redis) -> int:
    """Return the number of jobs that have not ended."""
    pipe = redis.pipeline(transaction=False)
    async for name in redis.scan_iter("aios:{*}:job:*", count=1000):
        pipe.hget(name, "state")
    states = await pipe.execute()
    return sum(state in _OPEN for state in states)


async def all_ended(redis: Redis, within_s: float) -> bool:
    """Return True as soon as no job is open, and False if one is still open after `within_s`."""

    async def is_none_open() -> bool:
        return await num_open(redis) == 0

    return await came_true(is_none_open, within_s, every_s=0.2)


async def violations(redis: Redis) -> list[str]:
    """Return a sentence for each violated invariant. Call this when no job is open."""
    return [*await _bad_logs(redis), *await _left_behind(redis)]


async def _bad_logs(redis: Redis) -> list[str]:
    """Return a sentence for each job whose log does not end with its only terminal event."""
    bad = []
    for trace in await traces(redis):
        ends = [event for event in trace.events if isinstance(event, Terminal)]
        if len(ends) == 1 and trace.events[-1] is ends[0]:
            continue
        kinds = " ".join(type(event).__name__ for event in trace.events)
        bad.append(f"job {trace.job.id} ({trace.state}) has {len(ends)} terminal events: {kinds}")
    return bad


async def _left_behind(redis: Redis) -> list[str]:
    """Return a sentence for each key that does not expire, is not gone, or does not count 0."""
    bad = []
    async for raw_name in redis.scan_iter("aios:{*}:*", count=1000):
        name = raw_name.decode()
        kind = name.split(":")[2]
        if kind in _EXPIRING and await redis.pttl(name) < 0:
            bad.append(f"{name} lives for ever")
        elif kind in _GONE and not name.startswith(f"aios:{{{keys.PRESENCE}}}"):
            bad.append(f"{name} is left behind")
        elif kind == "depth":
            counts = await cast(Awaitable[dict[bytes, bytes]], redis.hgetall(name))
            for field, count in counts.items():
                if int(count):
                    bad.append(f"{name} {field.decode()} is {count.decode()}")
    return bad
