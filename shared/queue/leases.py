"""The work queue as a worker sees it: take jobs, renew their leases, give them back.

A job is leased to a worker until a moment of Redis's clock, and owned by its epoch: every take
raises the epoch, and only the newest epoch may write to the job's log. The scripts in `lua/` alone
change the state of a job. This module knows nothing of HTTP, models or engines.
"""

import logging
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import msgspec

from shared.errors import DeadlineExceeded, QueueTimeout, WorkerCrashed
from shared.messages import PRIORITIES, Job, Priority, decode_job, encode
from shared.queue import keys
from shared.queue.broker import Broker
from shared.queue.script import Script, raw
from shared.tasks.task_table import slots_of
from shared.telemetry.logging_setup import fields, job_fields

logger = logging.getLogger("aios.queue")

# A lapsed job that has been taken this often is given up, whatever became of its workers.
_MOST_EPOCHS = 16
_MOST_DEAD = 10_000
EXPIRED = raw(encode(QueueTimeout("No worker took the request in time.").as_event()))
LATE = raw(encode(DeadlineExceeded("The deadline passed before a worker could answer.").as_event()))
_CONVICTED = raw(
    encode(WorkerCrashed("Every worker that ran the request crashed; it was given up.").as_event())
)


@dataclass(frozen=True)
class Claim:
    """A job in the hands of one worker, as it was at the take.

    `last_index` is the newest event in its log, `time_left_s` is left to its deadline, and
    `waited_s` have passed since it was queued. A job that `is_alone` is suspected of crashing
    workers, and runs by itself.
    """

    job: Job
    epoch: int
    last_index: int
    time_left_s: float = 3600.0
    is_alone: bool = False
    waited_s: float = 0.0

    @property
    def key(self) -> str:
        """The id of this take of the job; another take of it, by this worker too, has another."""
        return f"{self.job.id}:{self.epoch}"

    @property
    def slots(self) -> int:
        """The number of rows that the job takes in the worker's batch."""
        return slots_of(self.job.task)


@dataclass(frozen=True)
class Taken:
    """The answer to a take.

    With `should_empty` a job that is suspected waits for this worker, which takes nothing more
    until it has nothing in hand. `num_convicted` jobs were given up in passing.
    """

    claims: tuple[Claim, ...] = ()
    should_empty: bool = False
    num_convicted: int = 0


@dataclass(frozen=True)
class QueuePolicy:
    """The rules of the queue, the same for all workers. Times are in seconds.

    A worker takes over at most `lapsed_at_once` lapsed jobs in one take, so that its own jobs do
    not stall. Each `ageing_s` of waiting lifts a job by one class. Ended jobs can be read for
    `result_ttl_s`, convicted ones for `dead_ttl_s`.
    """

    lease_s: float = 3.0
    ageing_s: float = 10.0
    lapsed_at_once: int = 8
    result_ttl_s: float = 600.0
    dead_ttl_s: float = 7 * 86_400.0


class WorkQueue:
    """The jobs of `model`, for one worker.

    `fingerprint` stands for everything that decides which tokens come out.
    """

    def __init__(
        self, broker: Broker, policy: QueuePolicy, *, model: str, worker: str, fingerprint: str
    ) -> None:
        self._broker = broker
        self._policy = policy
        self.model = model
        self._worker = worker
        self._fingerprint = fingerprint
        self._has_work = Script(broker, "has_work")
        self._take = Script(broker, "take")
        self._lease = Script(broker, "lease")

    async def shards_with_work(
        self, shards: Sequence[str], *, priorities: Sequence[Priority] = PRIORITIES
    ) -> list[str]:
        """Return those of `shards`, in their order, where there may be something to take.

        The shards of one server are looked at in one round trip.
        """
        with_work: set[str] = set()
        for part in self._broker.together(shards):
            if len(part) == 1:
                # With one shard a look would cost as much as the take itself, which tells as well.
                with_work.update(part)
            else:
                with_work.update(await self._has_work_at_once(part, priorities))
        return [shard for shard in shards if shard in with_work]

    async def has_work(self, shards: Sequence[str]) -> bool:
        """Return whether one of `shards` has a job that waits, or whose lease has lapsed.

        Take nothing.
        """
        with_work: list[str] = []
        for part in self._broker.together(shards):
            # All servers are asked, even if one has work: `has_work.lua` also removes the bells
            # that rang for nothing.
            with_work += await self._has_work_at_once(part, PRIORITIES)
        return bool(with_work)

    async def _has_work_at_once(
        self, shards: Sequence[str], priorities: Sequence[Priority]
    ) -> list[str]:
        indices = await self._has_work.call(
            shards[0],
            shards=[keys.prefix(shard) for shard in shards],
            model=self.model,
            classes=priorities,
            is_thorough=len(priorities) == len(PRIORITIES),
        )
        return [shards[index] for index in indices]

    async def take(
        self,
        shard: str,
        slots: int,
        *,
        is_empty: bool,
        priorities: Sequence[Priority] = PRIORITIES,
    ) -> Taken:
        """Take jobs until they fill `slots`. The last one may take more rows than are left.

        Jobs whose leases have lapsed come before those that wait. Among the waiting ones the better
        class, the longer wait and the tenant that was served less come first. `is_empty` tells that
        this worker has nothing in hand.
        """
        policy = self._policy
        claims, should_empty, convicted = await self._take.call(
            shard,
            model=self.model,
            worker=self._worker,
            fingerprint=self._fingerprint,
            slots=slots,
            classes=priorities,
            is_empty=is_empty,
            most_lapsed=policy.lapsed_at_once,
            most_epochs=_MOST_EPOCHS,
            most_dead=_MOST_DEAD,
            age_ms=_ms(policy.ageing_s),
            lease_ms=_ms(policy.lease_s),
            ttl_ms=_ms(policy.result_ttl_s),
            dead_ttl_ms=_ms(policy.dead_ttl_s),
            expired=EXPIRED,
            late=LATE,
            convicted=_CONVICTED,
        )
        for spec, last_worker, epochs in convicted:
            _log_conviction(spec, last_worker, epochs)

        readable = []
        for values in claims:
            claim = _claim(values)
            if claim is not None:
                readable.append(claim)
        return Taken(tuple(readable), bool(should_empty), num_convicted=len(convicted))

    async def renew(self, claims: Sequence[Claim], *, silence_s: float = 0.0) -> list[Claim]:
        """Let the leases end `lease_s` after the last sign of life, which came `silence_s` ago.

        Return the claims that are no longer this worker's.
        """
        return await self._set(claims, max(0.001, self._policy.lease_s - silence_s))

    async def give_back(self, claims: Sequence[Claim]) -> None:
        """End the leases. Others may take the jobs at once, and none counts as a death."""
        # By an end of 0 `take.lua` knows that a job was given back, and did not die.
        await self._set(claims, 0)

    def together(self, shards: Sequence[str]) -> list[list[str]]:
        """Return the shards in parts whose bells can be awaited at once."""
        return self._broker.together(shards)

    async def await_bell(self, shards: Sequence[str], timeout_s: float) -> str | None:
        """Return the shard whose bell rings first; None after `timeout_s`."""
        bells = {keys.bell(shard, self.model).encode(): shard for shard in shards}
        client = self._broker.client(shards[0])
        # Redis takes fractions of seconds as well, which the annotation does not allow.
        waiting = client.blpop(list(bells), timeout_s)  # type: ignore[arg-type]
        rung = await cast(Awaitable[tuple[bytes, bytes] | None], waiting)
        if rung is None:
            return None
        return bells[rung[0]]

    async def ring(self, shard: str) -> None:
        """Wake one worker that waits for this model's work."""
        rung = self._broker.client(shard).lpush(keys.bell(shard, self.model), "1")
        await cast(Awaitable[int], rung)

    async def _set(self, claims: Sequence[Claim], lease_s: float) -> list[Claim]:
        """Set the end of the leases. Return the claims that are another's by now."""
        by_shard: dict[str, list[Claim]] = {}
        for claim in claims:
            by_shard.setdefault(keys.shard_of(claim.job.id), []).append(claim)

        calls = {}
        for shard, part in by_shard.items():
            calls[shard] = self._lease_call(part, lease_s)
        answers = await self._lease.call_all(calls)
        lost = []
        for part, are_ours in zip(by_shard.values(), answers, strict=True):
            for claim, is_ours in zip(part, are_ours, strict=True):
                if not is_ours:
                    lost.append(claim)
        return lost

    def _lease_call(self, claims: Sequence[Claim], lease_s: float) -> dict[str, Any]:
        """Return the arguments of `lease.lua` for claims of one shard."""
        jobs = [{"id": claim.job.id, "epoch": claim.epoch} for claim in claims]
        return {"model": self.model, "jobs": jobs, "lease_ms": _ms(lease_s)}


def _claim(values: Sequence[Any]) -> Claim | None:
    """Return a claim from the values of `take.lua`; None for a job that only a newer version reads.

    The lease of such a job lapses, and a newer worker takes it.
    """
    spec, epoch, last_index, left_ms, is_alone, waited_ms = values
    try:
        job = decode_job(spec)
    except msgspec.DecodeError as error:
        logger.error("job of another version left alone", extra=fields(error=str(error)))
        return None
    return Claim(
        job,
        epoch,
        last_index,
        time_left_s=left_ms / 1000,
        is_alone=bool(is_alone),
        waited_s=waited_ms / 1000,
    )


def _log_conviction(spec: bytes, worker: bytes, epochs: int) -> None:
    """Log that a job was given up after so many epochs, with the last worker that took it."""
    try:
        job = decode_job(spec)
    except msgspec.DecodeError as error:
        logger.error("job of another version left alone", extra=fields(error=str(error)))
        return
    extra = job_fields(
        job, model=job.model, tenant=job.tenant, last_worker=worker.decode(), epochs=epochs
    )
    logger.error("job convicted", extra=extra)


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
