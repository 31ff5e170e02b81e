"""Puts right what crashes, flushes and bugs leave behind in Redis. Nothing waits for it: takeover
is the workers' own.

Every sweep is short and safe to repeat or to run twice at once, and looks at keys in small batches.
Each returns how many things it found, by name; with `dry_run` it changes nothing.
"""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from itertools import groupby
from typing import Any, cast

import msgspec
from redis.asyncio import Redis

from shared import keys
from shared.artifacts import ArtifactStore
from shared.broker import Broker
from shared.errors import DeadlineExceeded, QueueTimeout
from shared.messages import PRIORITIES, encode
from shared.presence import Presence
from shared.reservations import Departure, Reservations
from shared.script import Script, raw

Found = Counter[str]
Sweep = Callable[[], Awaitable[Found]]

_BATCH = 200
_EXPIRED = raw(encode(QueueTimeout("No worker took the request in time.").as_event()))
_LATE = raw(
    encode(DeadlineExceeded("The deadline passed before a worker could answer.").as_event())
)


class Janitor:
    """`grace_s`: jobs are left to workers and fronts for so long after they could have acted. What
    is of no more use stays for `ttl_s`. Files of `artifacts` are removed where that store has a
    place for them."""

    def __init__(
        self,
        broker: Broker,
        *,
        ttl_s: float = 600.0,
        grace_s: float = 10.0,
        dry_run: bool = False,
        artifacts: ArtifactStore | None = None,
    ) -> None:
        self._broker = broker
        self._presence = Presence(broker.client(keys.PRESENCE))
        self._repair, self._recount = Script(broker, "repair"), Script(broker, "recount")
        self._reservations = Reservations(broker)
        self._release, self._prune = Script(broker, "release"), Script(broker, "prune")
        self._ttl_ms, self._grace_ms = int(ttl_s * 1000), int(grace_s * 1000)
        self._artifacts = artifacts or ArtifactStore(broker)
        self._dry_run = dry_run
        self.sweeps: dict[str, Sweep] = {
            "jobs": self.jobs,
            "orphans": self.orphans,
            "quotas": self.quotas,
            "depths": self.depths,
            "tenants": self.tenants,
            "workers": self.workers,
            "artifacts": self.artifacts,
        }

    async def jobs(self) -> Found:
        """Jobs that nobody takes, past their deadlines or their time to wait, are ended; lost ones
        are found again."""
        found: Found = Counter()
        async for shard, ids in self._scan("job"):
            verdicts = await self._repair.call(
                shard,
                jobs=ids,
                grace_ms=self._grace_ms,
                ttl_ms=self._ttl_ms,
                dry_run=self._dry_run,
                expired=_EXPIRED,
                late=_LATE,
            )
            found.update(f"{verdict.decode()}_jobs" for verdict in verdicts if verdict != b"fine")
        return found

    async def orphans(self) -> Found:
        """Logs without a job and requests that would stay for ever expire from now on; the dead
        whose task has expired are struck off."""
        found: Found = Counter()
        for kind in ("log", "request"):
            async for shard, ids in self._scan(kind):
                found[f"orphan_{kind}s"] += await self._let_expire(kind, shard, ids)
        for shard in self._broker.shards:
            found["expired_dead"] += await self._strike_off(shard)
        return +found

    async def quotas(self) -> Found:
        """Jobs that are over, or gone, no longer count as what a tenant has open; nor do others
        against limits that are counted for several shards."""
        found = await self._reserved() if self._reservations.are_needed else Counter()
        async for shard, tenants in self._scan("held"):
            for tenant in tenants:
                scan = partial(self._client(shard).zscan, keys.held(shard, tenant))
                async for members in _pages(scan):
                    ids = [member.decode() for member, _ in members]
                    found["leaked_holders"] += await self._release.call(
                        shard, tenant=tenant, jobs=ids, dry_run=self._dry_run
                    )
        return +found

    async def depths(self) -> Found:
        """What waits is counted again; entries and turns that lead to nothing leave their lines."""
        found: Found = Counter()
        async for shard, models in self._scan("depth"):
            for model in models:
                counts = await self._recount.call(
                    shard, model=model, classes=PRIORITIES, dry_run=self._dry_run
                )
                found.update(
                    dict(zip(("stray_entries", "idle_turns", "wrong_depths"), counts, strict=True))
                )
        return +found

    async def tenants(self) -> Found:
        """Virtual times of tenants that have nothing open, and no advantage to lose, are
        forgotten."""
        found: Found = Counter()
        async for shard, names in self._scan("served"):
            for name in names:
                model, _, priority = name.rpartition(":")
                async for fields in _pages(
                    partial(self._client(shard).hscan, keys.served(shard, name))
                ):
                    idle = {
                        "model": model,
                        "class": priority,
                        "tenants": [tenant.decode() for tenant in fields],
                    }
                    found["idle_tenants"] += await self._prune.call(
                        shard, dry_run=self._dry_run, **idle
                    )
        return +found

    async def workers(self) -> Found:
        """Names of workers that are gone leave the list."""
        gone = await self._presence.gone()
        if gone and not self._dry_run:
            await self._presence.forget(gone)
        return +Counter({"gone_workers": len(gone)})

    async def artifacts(self) -> Found:
        """Artifacts whose time is over go, with their bytes and what they take of quotas, and so do
        files that were never finished."""
        return await self._artifacts.clear(dry_run=self._dry_run)

    async def _let_expire(self, kind: str, shard: str, ids: list[str]) -> int:
        """How many of these logs or requests had no time to live, though nothing that lasts needs
        them."""
        client, name_of = self._client(shard), {"log": keys.log, "request": keys.request}[kind]
        pipe = client.pipeline(transaction=False)
        for one in ids:
            pipe.pttl(name_of(one))
            pipe.exists(keys.job(one))
        answers = await pipe.execute()
        ttls_and_jobs = zip(answers[::2], answers[1::2], strict=True)
        orphans = [
            one for one, (ttl, job) in zip(ids, ttls_and_jobs, strict=True) if ttl == -1 and not job
        ]
        if orphans and not self._dry_run:
            pipe = client.pipeline(transaction=False)
            for one in orphans:
                pipe.pexpire(name_of(one), self._ttl_ms)
            await pipe.execute()
        return len(orphans)

    async def _strike_off(self, shard: str) -> int:
        """How many of the dead had nothing left to show; the oldest are looked at, which expire
        first."""
        client = self._client(shard)
        entries = await client.xrange(keys.dead(shard), count=_BATCH)
        if not entries:
            return 0
        pipe = client.pipeline(transaction=False)
        for _, fields in entries:
            pipe.exists(keys.job(fields[b"job"].decode()))
        there = await pipe.execute()
        expired = [
            entry for (entry, _), is_there in zip(entries, there, strict=True) if not is_there
        ]
        if expired and not self._dry_run:
            await client.xdel(keys.dead(shard), *expired)
        return len(expired)

    async def _reserved(self) -> Found:
        """Settle what has left, and what left without a note."""
        gone: dict[str, list[str]] = {}
        async for tenant, job_ids in self._counted():
            states = await self._states(job_ids)
            still = ("queued", "running") if tenant else ("queued",)
            gone.setdefault(tenant, []).extend(
                job_id for job_id, state in states.items() if state not in still
            )
        # Only what was gone before the notes are read must be among them.
        noted = await self._reservations.departures()
        are_noted = {one.job_id for entries in noted.values() for one in entries.values()}
        if not self._dry_run:
            await self._reservations.settle_all()
        now_ms = await self._now_ms()
        num_stale = 0
        for tenant, job_ids in gone.items():
            unnoted = [job_id for job_id in job_ids if job_id not in are_noted]
            stale = await self._still_counted(tenant, unnoted)
            num_stale += len(stale)
            if stale and not self._dry_run:
                await self._reservations.settle_departures(
                    [Departure(job_id, tenant, at_ms=now_ms) for job_id in stale]
                )
        return +Counter({"stale_reservations": num_stale})

    async def _counted(self) -> AsyncIterator[tuple[str, list[str]]]:
        """Jobs let in a while ago that count against limits: as waiting (the tenant is ""), or as
        their tenant's."""
        client = self._client(keys.ADMISSION)
        before_ms = await self._now_ms() - self._grace_ms
        async for takes in _pages(partial(client.hscan, keys.RESERVED)):
            yield (
                "",
                [
                    job_id.decode()
                    for job_id, taken in takes.items()
                    if _reserved_ms(taken) <= before_ms
                ],
            )
        async for names in _pages(partial(client.scan, match=f"{keys.held(keys.ADMISSION, '*')}")):
            for name in names:
                tenant = name.decode()[len(keys.held(keys.ADMISSION, "")) :]
                async for members in _pages(partial(client.zscan, name)):
                    yield (
                        tenant,
                        [job_id.decode() for job_id, at_ms in members if at_ms <= before_ms],
                    )

    async def _now_ms(self) -> int:
        """By the clock of the server that counts."""
        seconds, microseconds = await self._client(keys.ADMISSION).time()
        return int(seconds) * 1000 + int(microseconds) // 1000

    async def _still_counted(self, tenant: str, job_ids: Sequence[str]) -> list[str]:
        """Those of them that nobody has settled meanwhile."""
        pipe = self._client(keys.ADMISSION).pipeline(transaction=False)
        for job_id in job_ids:
            if tenant:
                pipe.zscore(keys.held(keys.ADMISSION, tenant), job_id)
            else:
                pipe.hget(keys.RESERVED, job_id)
        answers = await pipe.execute()
        return [
            job_id for job_id, answer in zip(job_ids, answers, strict=True) if answer is not None
        ]

    async def _states(self, job_ids: Sequence[str]) -> dict[str, str]:
        """The state of each, "" of one that is gone."""
        states: dict[str, str] = {}
        by_shard: dict[str, list[str]] = {}
        for job_id in job_ids:
            by_shard.setdefault(keys.shard_of(job_id), []).append(job_id)
        for shards in await self._broker.by_server(list(by_shard)):
            of_server = [job_id for shard in shards for job_id in by_shard[shard]]
            pipe = self._client(shards[0]).pipeline(transaction=False)
            for job_id in of_server:
                pipe.hget(keys.job(job_id), "state")
            answers = await pipe.execute()
            states |= {
                job_id: (state or b"").decode()
                for job_id, state in zip(of_server, answers, strict=True)
            }
        return states

    def _client(self, shard: str) -> Redis:
        return self._broker.client(shard)

    async def _scan(self, kind: str) -> AsyncIterator[tuple[str, list[str]]]:
        """What follows `kind:` in the names of all such keys, by shard."""
        for client in await self._broker.nodes():
            async for names in _pages(partial(client.scan, match=keys.pattern(kind))):
                parts = sorted(keys.parts(name.decode(), kind) for name in names)
                for shard, some in groupby(parts, lambda part: part[0]):
                    yield shard, [rest for _, rest in some]


def _reserved_ms(taken: bytes) -> int:
    """When a job was let in, by what `reserve.lua` noted of it."""
    at_ms: int = msgspec.msgpack.decode(taken)["at_ms"]
    return at_ms


async def _pages(scan: Callable[..., Awaitable[Any]]) -> AsyncIterator[Any]:
    """The pages of a SCAN, HSCAN or ZSCAN."""
    cursor = 0
    while True:
        cursor, page = await cast(Awaitable[tuple[int, Any]], scan(cursor=cursor, count=_BATCH))
        if page:
            yield page
        if cursor == 0:
            return
