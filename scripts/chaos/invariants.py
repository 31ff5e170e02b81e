"""What must hold when every request has ended, whatever happened on the way: read from Redis
itself."""

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import cast

from redis.asyncio import Redis

from scripts.chaos.polling import came_true
from shared import keys
from shared.broker import Broker
from shared.log import LogReader
from shared.messages import Event, Job, Started, Terminal, Tokens, decode_job

_OWNED = ("job", "log", "request", "key")
_EMPTY = ("line", "leases", "held", "turns")
_OPEN = (b"queued", b"running")


@dataclass(frozen=True)
class Trace:
    """One job as Redis remembers it."""

    job: Job
    state: str
    epoch: int
    events: tuple[Event, ...]

    @property
    def starts(self) -> int:
        return sum(isinstance(event, Started) for event in self.events)

    @property
    def text(self) -> str:
        """What its first choice said."""
        return "".join(
            event.text for event in self.events if isinstance(event, Tokens) and event.choice == 0
        )

    @property
    def was_hit(self) -> bool:
        """Whether one worker took it from another."""
        return self.epoch > 1


async def traces(redis: Redis) -> list[Trace]:
    """Every job there is."""
    reader, found = LogReader(Broker(redis)), []
    async for name in redis.scan_iter("aios:{*}:job:*", count=1000):
        spec, state, epoch = await cast(
            Awaitable[list[bytes]], redis.hmget(name.decode(), ["spec", "state", "epoch"])
        )
        job = decode_job(spec)
        events = tuple(event for _, event in await reader.read(job.id))
        found.append(Trace(job, state.decode(), int(epoch), events))
    return found


async def num_open(redis: Redis) -> int:
    """Jobs that have not ended."""
    names = [name async for name in redis.scan_iter("aios:{*}:job:*", count=1000)]
    pipe = redis.pipeline(transaction=False)
    for name in names:
        pipe.hget(name, "state")
    return sum(state in _OPEN for state in await pipe.execute())


async def all_ended(redis: Redis, within_s: float) -> bool:
    """Whether nothing is open any more, within the time."""

    async def is_none_open() -> bool:
        return await num_open(redis) == 0

    return await came_true(is_none_open, within_s, every_s=0.2)


async def violations(redis: Redis) -> list[str]:
    """Everything that is not as it must be, in words; empty if all is well. Call it when nothing is
    open."""
    return [*await _bad_logs(redis), *await _left_behind(redis)]


async def _bad_logs(redis: Redis) -> list[str]:
    bad = []
    for trace in await traces(redis):
        ends = [event for event in trace.events if isinstance(event, Terminal)]
        if len(ends) != 1 or trace.events[-1] is not ends[0]:
            kinds = " ".join(type(event).__name__ for event in trace.events)
            bad.append(
                f"job {trace.job.id} ({trace.state}) has {len(ends)} terminal events: {kinds}"
            )
    return bad


async def _left_behind(redis: Redis) -> list[str]:
    bad = []
    async for raw_name in redis.scan_iter("aios:{*}:*", count=1000):
        name = raw_name.decode()
        kind = name.split(":")[2]
        if kind in _OWNED and await redis.pttl(name) < 0:
            bad.append(f"{name} lives for ever")
        elif kind in _EMPTY and not name.startswith(f"aios:{{{keys.PRESENCE}}}"):
            bad.append(f"{name} is left behind")
        elif kind == "depth":
            counts = await cast(Awaitable[dict[bytes, bytes]], redis.hgetall(name))
            bad += [
                f"{name} {field.decode()} is {count.decode()}"
                for field, count in counts.items()
                if int(count)
            ]
    return bad
