"""Limits of the whole fleet where its queues lie on several shards, which no script sees together.

One script, which counts for all shards (`reserve.lua`), lets a request in. Then the request is
queued on its own shard. When a job leaves its line or ends, the script that does that notes it on
the shard. The note is settled later: by a front that is about to refuse a request, by one that
submits, at most once a second, and by the janitor. So the count is never too low, and no request is
refused because of jobs that have already left.

A front that dies between the two steps leaves a reservation that nobody confirms. After a while its
request is looked up on the shard. If it is not there, the reservation is given back, and the
request cannot come any more.
"""

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from shared.queue import keys
from shared.queue.broker import UNAVAILABLE, Broker
from shared.queue.script import Script

Answer = TypeVar("Answer")

_PAGE = 1000
_MOST_PAGES = 100
_SETTLE_EVERY_S = 1.0
ANSWER_S = 1.0
"""The time that one server has to answer. After that its notes stay, and their jobs still count."""
_UNCONFIRMED_MS = 5_000
"""The age at which a reservation is looked up; longer than a front waits for Redis to queue it."""
_VOID_MS = 600_000
"""The time for which a request that was given up may not come any more."""


@dataclass(frozen=True)
class Departure:
    """A job that has left its line.

    `tenant` is "" unless the job has ended, and `model` "" unless it ran before. `tokens` are those
    that it used in all, None where that is not known.
    """

    job_id: str
    tenant: str = ""
    model: str = ""
    cost: int = 0
    tokens: int | None = None
    at_ms: int = 0


class Reservations:
    """Counts the fleet's limits, for one process.

    All methods but `reserve` are safe at any time, in many processes, and to repeat. `settled_s` is
    when this process settled last, on the monotonic clock.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._reserve = Script(broker, "reserve", needs=("limits",))
        self._settle = Script(broker, "settle")
        self._void = Script(broker, "void")
        self._confirmed: list[str] = []
        self._settling: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None
        self.settled_s = 0.0

    @property
    def are_needed(self) -> bool:
        """False with a single shard, which counts by itself."""
        return len(self._broker.shards) > 1

    async def reserve(self, request_id: str, **arguments: Any) -> list[Any] | None:
        """Let a request in. Its jobs and limits are the `arguments` of `reserve.lua`.

        Return None if it is in, else the refusal of the script.
        """
        answer = await self._try_reserve(request_id, arguments)
        # Settling makes room where jobs have left. A rate recovers by the clock alone.
        if answer[0] == b"refused" and answer[1] != b"rate":
            await self.settle()
            answer = await self._try_reserve(request_id, arguments)
        if answer[0] == b"refused":
            return answer
        return None

    def confirm(self, request_id: str) -> None:
        """Note that the request is queued. The next call of a script tells Redis.

        Begin to settle, if that has not been done for a second.
        """
        self._confirmed.append(request_id)
        if time.monotonic() - self.settled_s > _SETTLE_EVERY_S and self._next is None:
            self.settled_s = time.monotonic()
            self._next = asyncio.create_task(self._settle_after(self._settling))

    async def void(self, request_id: str) -> None:
        """Give back the reservation of a request that will not come."""
        # Where Redis cannot be reached the request stays unconfirmed, and is looked up later.
        with suppress(*UNAVAILABLE):
            await self._call_settle(voided=[request_id])

    async def settle(self) -> None:
        """Settle the jobs that have left until now, as far as Redis can be reached.

        Callers that come at the same time share one run.
        """
        if self._next is None:
            self._next = asyncio.create_task(self._settle_after(self._settling))
        await asyncio.shield(self._next)

    async def _settle_after(self, before: "asyncio.Task[None] | None") -> None:
        """Settle once the run `before`, which has begun already, is done."""
        if before is not None:
            await asyncio.wait([before])
        # A caller that comes from here on gets a later run: this one may miss jobs that
        # leave meanwhile.
        self._settling = self._next
        self._next = None
        with suppress(*UNAVAILABLE):
            await self.settle_all()
        self.settled_s = time.monotonic()

    async def settle_all(self) -> None:
        """Settle as `settle` does, without waiting for another run.

        Raise redis-py's errors when Redis cannot be reached.
        """
        for _ in range(_MOST_PAGES):
            by_shard = await self.departures()
            departures: list[Departure] = []
            is_last_page = True
            for entries in by_shard.values():
                departures += entries.values()
                is_last_page = is_last_page and len(entries) < _PAGE
            overdue = await self._call_settle(left=departures)

            # Notes are removed only after they are settled. If this process dies in between,
            # another one settles them again, which gives nothing back twice.
            await self._remove_notes(by_shard)

            confirmed = []
            voided = []
            for request_id, has_come in (await self._have_come(overdue)).items():
                if has_come:
                    confirmed.append(request_id)
                else:
                    voided.append(request_id)
            if confirmed or voided:
                await self._call_settle(confirmed=confirmed, voided=voided)
            elif is_last_page:
                return

    async def settle_departures(self, departures: Sequence[Departure]) -> None:
        """Settle jobs that have left although no shard has noted it."""
        await self._call_settle(left=departures)

    async def departures(self) -> dict[str, dict[bytes, Departure]]:
        """Return the notes that are not settled, by shard and by the note's id: a page of each.

        The notes of a server that does not answer are left out.
        """

        async def read(shards: Sequence[str]) -> dict[str, dict[bytes, Departure]]:
            pipe = self._broker.client(shards[0]).pipeline(transaction=False)
            for shard in shards:
                pipe.xrange(keys.unsettled(shard), count=_PAGE)
            notes = {}
            for shard, entries in zip(shards, await pipe.execute(), strict=True):
                if not entries:
                    continue
                notes[shard] = {entry: _departure(entry, fields) for entry, fields in entries}
            return notes

        notes: dict[str, dict[bytes, Departure]] = {}
        for part in await self._at_each_server(self._broker.shards, read):
            notes |= part
        return notes

    async def _remove_notes(self, notes: dict[str, dict[bytes, Departure]]) -> None:
        """Remove notes that are settled."""

        async def remove(shards: Sequence[str]) -> None:
            pipe = self._broker.client(shards[0]).pipeline(transaction=False)
            for shard in shards:
                pipe.xdel(keys.unsettled(shard), *notes[shard])
            await pipe.execute()

        await self._at_each_server(list(notes), remove)

    async def _have_come(self, request_ids: Sequence[str]) -> dict[str, bool]:
        """Return for each request whether it is on its shard.

        One that is not may not come any more. Requests of a server that does not answer are left
        out.
        """
        by_shard: dict[str, list[str]] = {}
        for request_id in request_ids:
            by_shard.setdefault(keys.shard_of(request_id), []).append(request_id)

        async def look(shards: Sequence[str]) -> dict[str, bool]:
            calls = {shard: {"requests": by_shard[shard], "keep_ms": _VOID_MS} for shard in shards}
            have_come = {}
            for shard, came in zip(shards, await self._void.call_all(calls), strict=True):
                for request_id, has_come in zip(by_shard[shard], came, strict=True):
                    have_come[request_id] = bool(has_come)
            return have_come

        have_come: dict[str, bool] = {}
        for part in await self._at_each_server(list(by_shard), look):
            have_come |= part
        return have_come

    async def _at_each_server(
        self, shards: Sequence[str], ask: Callable[[Sequence[str]], Awaitable[Answer]]
    ) -> list[Answer]:
        """Call `ask` with the shards of each server, all at once. Return the answers that came."""
        answers: list[Answer] = []

        async def ask_one(part: Sequence[str]) -> None:
            with suppress(TimeoutError, *UNAVAILABLE):
                async with asyncio.timeout(ANSWER_S):
                    answers.append(await ask(part))

        parts = await self._broker.by_server(shards)
        await asyncio.gather(*[ask_one(part) for part in parts])
        return answers

    async def _try_reserve(self, request_id: str, arguments: dict[str, Any]) -> list[Any]:
        confirmed = self._take_confirmed()
        answer: list[Any] = await self._reserve.call(
            keys.ADMISSION,
            request=request_id,
            confirmed=confirmed,
            **arguments,
        )
        return answer

    def _take_confirmed(self) -> list[str]:
        """Take the confirmed requests that Redis has not been told of."""
        # If the call that tells Redis fails, these requests become overdue, and are looked up.
        confirmed = self._confirmed
        self._confirmed = []
        return confirmed

    async def _call_settle(
        self,
        *,
        left: Sequence[Departure] = (),
        confirmed: Sequence[str] = (),
        voided: Sequence[str] = (),
    ) -> list[str]:
        """Call `settle.lua`. Return the requests that have been unconfirmed for too long."""
        overdue = await self._settle.call(
            keys.ADMISSION,
            left=[dataclasses.astuple(departure) for departure in left],
            confirmed=[*self._take_confirmed(), *confirmed],
            voided=voided,
            unconfirmed_ms=_UNCONFIRMED_MS,
        )
        return [request_id.decode() for request_id in overdue]


def _departure(entry: bytes, fields: dict[bytes, bytes]) -> Departure:
    values = {name.decode(): value.decode() for name, value in fields.items()}
    tokens = None
    if "tokens" in values:
        tokens = int(values["tokens"])
    return Departure(
        job_id=values["job"],
        tenant=values.get("tenant", ""),
        model=values.get("model", ""),
        cost=int(values.get("cost", 0)),
        tokens=tokens,
        at_ms=int(entry.partition(b"-")[0]),
    )
