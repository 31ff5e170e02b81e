"""The janitor repairs what crashes, flushes and bugs leave behind in Redis.

Nothing waits for the janitor: workers take over lost jobs by themselves. Every sweep is short,
looks at keys in small batches, and is safe to repeat or to run twice at once. Each returns how many
things it found, by name. With `dry_run` it changes nothing.
"""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from itertools import groupby
from typing import Any, cast

import msgspec
from redis.asyncio import Redis

from shared.artifacts.store import ArtifactStore
from shared.errors import DeadlineExceeded, QueueTimeout
from shared.fleet.popularity import Popularity
from shared.fleet.presence import Presence
from shared.messages import PRIORITIES, encode
from shared.queue import keys
from shared.queue.batch_sweep import BatchSweep
from shared.queue.broker import Broker
from shared.queue.reservations import Departure, Reservations
from shared.queue.script import Script, raw

SweepCounts = Counter[str]
"""Counts of the things that a sweep has found, and mended unless it is a dry run, by name."""
Sweep = Callable[[], Awaitable[SweepCounts]]

_BATCH = 200
_EXPIRED = raw(encode(QueueTimeout("No worker took the request in time.").as_event()))
_LATE = raw(
    encode(DeadlineExceeded("The deadline passed before a worker could answer.").as_event())
)


class Janitor:
    """The sweeps, by name in `sweeps`.

    Jobs are left to workers and fronts for `grace_s` after these could have acted. Jobs, logs and
    requests that are over stay for `ttl_s`. Files of `artifacts` are removed where that store can
    reach them.
    """

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
        self._reservations = Reservations(broker)
        self._repair = Script(broker, "repair")
        self._recount = Script(broker, "recount")
        self._release = Script(broker, "release")
        self._prune = Script(broker, "prune")
        self._settle_budgets = Script(broker, "settle_budgets")
        self._ttl_ms = int(ttl_s * 1000)
        self._grace_ms = int(grace_s * 1000)
        self._artifacts = artifacts or ArtifactStore(broker)
        self._batch_sweep = BatchSweep(broker, dry_run=dry_run)
        self._popularity = Popularity(broker)
        self._dry_run = dry_run
        self.sweeps: dict[str, Sweep] = {
            "jobs": self.jobs,
            "orphans": self.orphans,
            "quotas": self.quotas,
            "budgets": self.budgets,
            "depths": self.depths,
            "tenants": self.tenants,
            "workers": self.workers,
            "artifacts": self.artifacts,
            "files": self.files,
            "batch_records": self.batch_records,
            "popularity": self.popularity,
        }

    async def jobs(self) -> SweepCounts:
        """End jobs that are past their deadline or their time to wait, and find lost ones again."""
        counts: SweepCounts = Counter()
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
            for verdict in verdicts:
                if verdict != b"fine":
                    counts[f"{verdict.decode()}_jobs"] += 1
        return counts

    async def orphans(self) -> SweepCounts:
        """Let logs and requests expire that have no job and would stay for ever.

        Remove dead letters whose jobs have expired.
        """
        counts: SweepCounts = Counter()
        for kind in ("log", "request"):
            async for shard, ids in self._scan(kind):
                counts[f"orphan_{kind}s"] += await self._let_expire(kind, shard, ids)
        for shard in self._broker.shards:
            counts["expired_dead"] += await self._remove_dead(shard)
        # `+` leaves out counts of 0, here and below.
        return +counts

    async def quotas(self) -> SweepCounts:
        """Stop counting jobs that have ended, or are gone, against quotas and fleet-wide limits."""
        counts: SweepCounts = Counter()
        if self._reservations.are_needed:
            counts = await self._settle_reservations()
        async for shard, tenants in self._scan("open"):
            for tenant in tenants:
                scan = partial(self._client(shard).zscan, keys.open_jobs(shard, tenant))
                async for members in _pages(scan):
                    ids = [member.decode() for member, _ in members]
                    counts["leaked_holders"] += await self._release.call(
                        shard, tenant=tenant, jobs=ids, dry_run=self._dry_run
                    )
        return +counts

    async def budgets(self) -> SweepCounts:
        """Settle the budgets of jobs that are gone, or have ended, and are not settled.

        What such a job has used is not known, so all that was reserved counts as used.
        """
        counts: SweepCounts = Counter()
        tag = self._broker.admission
        before_ms = await self._now_ms() - self._grace_ms
        async for reservations in _pages(partial(self._client(tag).hscan, keys.budgeted(tag))):
            job_ids = []
            for job_id, reservation in reservations.items():
                if _reserved_ms(reservation) <= before_ms:
                    job_ids.append(job_id.decode())
            over = []
            for job_id, state in (await self._states(job_ids)).items():
                if state not in ("parked", "queued", "running"):
                    over.append(job_id)
            if over and self._reservations.are_needed:
                # Most have left a note, which tells what they used, and is to be settled first.
                noted = await self._noted()
                over = [job_id for job_id in over if job_id not in noted]
                if not self._dry_run:
                    await self._reservations.settle_all()
            counts["leaked_budgets"] += await self._settle_budgets.call(
                tag, jobs=over, dry_run=self._dry_run
            )
        return +counts

    async def depths(self) -> SweepCounts:
        """Count the waiting jobs again. Remove entries and turns that lead to no waiting job."""
        counts: SweepCounts = Counter()
        async for shard, models in self._scan("depth"):
            for model in models:
                removed = await self._recount.call(
                    shard, model=model, classes=PRIORITIES, dry_run=self._dry_run
                )
                stray_entries, idle_turns, wrong_depths = removed
                counts["stray_entries"] += stray_entries
                counts["idle_turns"] += idle_turns
                counts["wrong_depths"] += wrong_depths
        return +counts

    async def tenants(self) -> SweepCounts:
        """Forget the virtual times of tenants that have nothing open and no advantage to lose."""
        counts: SweepCounts = Counter()
        async for shard, names in self._scan("served"):
            for name in names:
                model, _, priority = name.rpartition(":")
                scan = partial(self._client(shard).hscan, keys.served(shard, name))
                async for fields in _pages(scan):
                    arguments = {
                        "model": model,
                        # `class` is a keyword of Python, so the arguments are in a dict.
                        "class": priority,
                        "tenants": [tenant.decode() for tenant in fields],
                        "dry_run": self._dry_run,
                    }
                    counts["idle_tenants"] += await self._prune.call(shard, **arguments)
        return +counts

    async def workers(self) -> SweepCounts:
        """Take the names of workers that are gone off the list."""
        gone = await self._presence.gone()
        if gone and not self._dry_run:
            await self._presence.forget(gone)
        return +Counter({"gone_workers": len(gone)})

    async def artifacts(self) -> SweepCounts:
        """Remove expired artifacts, with their bytes and share of quotas, and unfinished files."""
        return await self._artifacts.clear(dry_run=self._dry_run)

    async def files(self) -> SweepCounts:
        """Find the files of artifacts that Redis does not know, so that they are removed later."""
        return await self._artifacts.list_unknown(dry_run=self._dry_run)

    async def batch_records(self) -> SweepCounts:
        """End batches that nobody advances, and remove what is left of others."""
        return await self._batch_sweep.run()

    async def popularity(self) -> SweepCounts:
        """Forget how popular models were that nobody has asked for in a month."""
        num_unwanted = await self._popularity.forget_unwanted(dry_run=self._dry_run)
        return +Counter({"unwanted_models": num_unwanted})

    async def _let_expire(self, kind: str, shard: str, ids: list[str]) -> int:
        """Let logs or requests expire that have no time to live and no job. Return their number."""
        client = self._client(shard)
        key_of = {"log": keys.log, "request": keys.request}[kind]
        pipe = client.pipeline(transaction=False)
        for name in ids:
            pipe.pttl(key_of(name))
            pipe.exists(keys.job(name))
        answers = await pipe.execute()

        orphans = []
        for name, ttl_ms, has_job in zip(ids, answers[::2], answers[1::2], strict=True):
            # -1 is a key that never expires.
            if ttl_ms == -1 and not has_job:
                orphans.append(name)
        if orphans and not self._dry_run:
            pipe = client.pipeline(transaction=False)
            for name in orphans:
                pipe.pexpire(key_of(name), self._ttl_ms)
            await pipe.execute()
        return len(orphans)

    async def _remove_dead(self, shard: str) -> int:
        """Remove dead letters whose jobs have expired. Return their number."""
        client = self._client(shard)
        # The oldest expire first, so one page from the beginning is enough for a sweep.
        entries = await client.xrange(keys.dead(shard), count=_BATCH)
        if not entries:
            return 0
        pipe = client.pipeline(transaction=False)
        for _, fields in entries:
            pipe.exists(keys.job(fields[b"job"].decode()))
        expired = []
        for (entry, _), has_job in zip(entries, await pipe.execute(), strict=True):
            if not has_job:
                expired.append(entry)
        if expired and not self._dry_run:
            await client.xdel(keys.dead(shard), *expired)
        return len(expired)

    async def _settle_reservations(self) -> SweepCounts:
        """Settle jobs that have left, also those that left without a note."""
        gone: dict[str, list[str]] = {}
        async for tenant, job_ids in self._counted():
            states = await self._states(job_ids)
            # A job counts as waiting until it is taken, and as its tenant's until it has ended.
            waits = ("parked", "queued")
            states_that_count = (*waits, "running") if tenant else waits
            gone_ids = gone.setdefault(tenant, [])
            for job_id, state in states.items():
                if state not in states_that_count:
                    gone_ids.append(job_id)

        # The notes are read after the states. So a job that was gone by then, and left with a note,
        # is among the notes or has been settled.
        noted = await self._noted()
        if not self._dry_run:
            await self._reservations.settle_all()

        # A job without a note that is counted even now left without one.
        now_ms = await self._now_ms()
        num_stale = 0
        for tenant, job_ids in gone.items():
            unnoted = [job_id for job_id in job_ids if job_id not in noted]
            stale = await self._still_counted(tenant, unnoted)
            num_stale += len(stale)
            if stale and not self._dry_run:
                departures = [Departure(job_id, tenant, at_ms=now_ms) for job_id in stale]
                await self._reservations.settle_departures(departures)
        return +Counter({"stale_reservations": num_stale})

    async def _noted(self) -> set[str]:
        """Return the jobs that have left, as their shards have noted, and are not settled."""
        noted: set[str] = set()
        for entries in (await self._reservations.departures()).values():
            for departure in entries.values():
                noted.add(departure.job_id)
        return noted

    async def _counted(self) -> AsyncIterator[tuple[str, list[str]]]:
        """Yield pages of jobs that were let in at least `grace_s` ago and count against limits.

        Each page comes with its tenant, "" for jobs that count as waiting; others count as their
        tenant's.
        """
        client = self._client(keys.ADMISSION)
        before_ms = await self._now_ms() - self._grace_ms
        async for reservations in _pages(partial(client.hscan, keys.RESERVED)):
            job_ids = []
            for job_id, reservation in reservations.items():
                if _reserved_ms(reservation) <= before_ms:
                    job_ids.append(job_id.decode())
            yield "", job_ids

        prefix = keys.open_jobs(keys.ADMISSION, "")
        scan = partial(client.scan, match=keys.open_jobs(keys.ADMISSION, "*"))
        async for names in _pages(scan):
            for name in names:
                tenant = name.decode()[len(prefix) :]
                async for members in _pages(partial(client.zscan, name)):
                    job_ids = []
                    for job_id, at_ms in members:
                        if at_ms <= before_ms:
                            job_ids.append(job_id.decode())
                    yield tenant, job_ids

    async def _now_ms(self) -> int:
        """Return the time of the server that counts the limits, in milliseconds since 1970."""
        seconds, microseconds = await self._client(keys.ADMISSION).time()
        return int(seconds) * 1000 + int(microseconds) // 1000

    async def _still_counted(self, tenant: str, job_ids: Sequence[str]) -> list[str]:
        """Return those of the jobs that count against limits even now."""
        pipe = self._client(keys.ADMISSION).pipeline(transaction=False)
        for job_id in job_ids:
            if tenant:
                pipe.zscore(keys.open_jobs(keys.ADMISSION, tenant), job_id)
            else:
                pipe.hget(keys.RESERVED, job_id)
        still_counted = []
        for job_id, answer in zip(job_ids, await pipe.execute(), strict=True):
            if answer is not None:
                still_counted.append(job_id)
        return still_counted

    async def _states(self, job_ids: Sequence[str]) -> dict[str, str]:
        """Return the state of each job, "" for one that is gone."""
        states: dict[str, str] = {}
        by_shard: dict[str, list[str]] = {}
        for job_id in job_ids:
            by_shard.setdefault(keys.shard_of(job_id), []).append(job_id)
        for shards in await self._broker.by_server(list(by_shard)):
            ids_of_server: list[str] = []
            for shard in shards:
                ids_of_server += by_shard[shard]
            pipe = self._client(shards[0]).pipeline(transaction=False)
            for job_id in ids_of_server:
                pipe.hget(keys.job(job_id), "state")
            for job_id, state in zip(ids_of_server, await pipe.execute(), strict=True):
                states[job_id] = (state or b"").decode()
        return states

    def _client(self, shard: str) -> Redis:
        return self._broker.client(shard)

    async def _scan(self, kind: str) -> AsyncIterator[tuple[str, list[str]]]:
        """Yield, by shard, the names of all keys of this kind, without the prefix and `kind:`."""
        for client in await self._broker.nodes():
            async for names in _pages(partial(client.scan, match=keys.pattern(kind))):
                parts = sorted(keys.parts(name.decode(), kind) for name in names)
                for shard, parts_of_shard in groupby(parts, lambda part: part[0]):
                    yield shard, [rest for _, rest in parts_of_shard]


def _reserved_ms(reservation: bytes) -> int:
    """Return when a job was let in, from the reservation that `reserve.lua` has written."""
    at_ms: int = msgspec.msgpack.decode(reservation)["at_ms"]
    return at_ms


async def _pages(scan: Callable[..., Awaitable[Any]]) -> AsyncIterator[Any]:
    """Yield the pages of a SCAN, HSCAN or ZSCAN."""
    # A page may be empty before the end; only a cursor of 0 is the end.
    cursor = 0
    while True:
        cursor, page = await cast(Awaitable[tuple[int, Any]], scan(cursor=cursor, count=_BATCH))
        if page:
            yield page
        if cursor == 0:
            return
