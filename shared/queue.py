"""The work queue as a worker sees it: take, renew, give back, hear what is over. States are moved
by `lua/` alone.

A job is leased to a worker until a moment of Redis's clock and owned by its epoch: every take
raises the epoch, and only the newest epoch may write to the job's log. Knows nothing of HTTP,
models or engines.
"""

import logging
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import msgspec

from shared import keys
from shared.broker import Broker
from shared.errors import DeadlineExceeded, QueueTimeout, WorkerCrashed
from shared.logging_setup import fields, job_fields
from shared.messages import PRIORITIES, Job, Priority, decode_job, encode
from shared.script import Script, raw
from shared.task_table import places_of

logger = logging.getLogger("aios.queue")

_MOST_EPOCHS = 16
_MOST_DEAD = 10_000
EXPIRED = raw(encode(QueueTimeout("No worker took the request in time.").as_event()))
LATE = raw(encode(DeadlineExceeded("The deadline passed before a worker could answer.").as_event()))
_CONVICTED = raw(
    encode(WorkerCrashed("Every worker that ran the request crashed; it was given up.").as_event())
)


@dataclass(frozen=True)
class Claim:
    """A job in the hands of one worker. `last_index` is the newest event in its log at the time of
    the take.

    `time_left_s` was left to its deadline then, and `waited_s` had passed since it was queued. One
    that is `alone` has crashed workers before, or seems to have.
    """

    job: Job
    epoch: int
    last_index: int
    time_left_s: float = 3600.0
    is_alone: bool = False
    waited_s: float = 0.0

    @property
    def key(self) -> str:
        """Tells this take of the job from every other, by this worker too."""
        return f"{self.job.id}:{self.epoch}"

    @property
    def places(self) -> int:
        """How many of a worker's places the job takes."""
        return places_of(self.job.task)


@dataclass(frozen=True)
class Taken:
    """`should_empty`: a suspect waits for this worker to have nothing else in hand, so take nothing
    more until then. `num_convicted` jobs were given up in passing."""

    claims: tuple[Claim, ...] = ()
    should_empty: bool = False
    num_convicted: int = 0


@dataclass(frozen=True)
class QueuePolicy:
    """How a fleet treats its work; the same for all workers. Times in seconds.

    A worker takes at most `lapsed_at_once` jobs of a dead one in one go, so that its own do not
    stall. Each `ageing_s` of waiting lifts a job by one class. Ended jobs can be read for
    `result_ttl_s`, convicted ones for `dead_ttl_s`.
    """

    lease_s: float = 3.0
    ageing_s: float = 10.0
    lapsed_at_once: int = 8
    result_ttl_s: float = 600.0
    dead_ttl_s: float = 7 * 86_400.0


class WorkQueue:
    """The jobs of one model, for one worker. `fingerprint` names everything that decides which
    tokens come out."""

    def __init__(
        self, broker: Broker, policy: QueuePolicy, *, model: str, worker: str, fingerprint: str
    ) -> None:
        self._broker = broker
        self._policy = policy
        self._model = model
        self._worker = worker
        self._fingerprint = fingerprint
        self._has_work, self._take, self._lease = (
            Script(broker, name) for name in ("has_work", "take", "lease")
        )

    async def shards_with_work(
        self, shards: Sequence[str], *, priorities: Sequence[Priority] = PRIORITIES
    ) -> list[str]:
        """Those of `shards`, in their order, where there may be something to take. The shards of
        one server are looked at in one round trip; of one that is alone on its server only a take
        tells."""
        found: set[str] = set()
        for part in self._broker.together(shards):
            found.update(part if len(part) == 1 else await self._has_work_at_once(part, priorities))
        return [shard for shard in shards if shard in found]

    async def has_work(self, shards: Sequence[str]) -> bool:
        """Whether a job waits on one of `shards`, or its lease has lapsed; nothing is taken."""
        return any(
            [
                await self._has_work_at_once(part, PRIORITIES)
                for part in self._broker.together(shards)
            ]
        )

    async def _has_work_at_once(
        self, shards: Sequence[str], priorities: Sequence[Priority]
    ) -> list[str]:
        found = await self._has_work.call(
            shards[0],
            shards=[keys.prefix(shard) for shard in shards],
            model=self._model,
            classes=priorities,
            is_thorough=len(priorities) == len(PRIORITIES),
        )
        return [shards[place] for place in found]

    async def take(
        self,
        shard: str,
        places: int,
        *,
        is_empty: bool,
        priorities: Sequence[Priority] = PRIORITIES,
    ) -> Taken:
        """What there is to do, until it fills `places`, of which the last job may take more than
        are left.

        Jobs whose owners have let the lease run out come before those that wait, and among these
        the better class, the longer wait and the tenant that was served less. `is_empty`: this
        worker has nothing in hand.
        """
        policy = self._policy
        claims, should_empty, convicted = await self._take.call(
            shard,
            model=self._model,
            worker=self._worker,
            fingerprint=self._fingerprint,
            places=places,
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
        for item in convicted:
            _log_conviction(*item)
        found = [_claim(*item) for item in claims]
        return Taken(
            tuple(claim for claim in found if claim is not None), bool(should_empty), len(convicted)
        )

    async def renew(self, claims: Sequence[Claim], *, silence_s: float = 0.0) -> list[Claim]:
        """Let the leases end `lease_s` after the last sign of life, which came `silence_s` ago
        (less than `lease_s`); returns the claims that are no longer this worker's."""
        return await self._set(claims, max(0.001, self._policy.lease_s - silence_s))

    async def give_back(self, claims: Sequence[Claim]) -> None:
        """Others may take them at once, and nobody is blamed."""
        await self._set(claims, 0)

    def together(self, shards: Sequence[str]) -> list[list[str]]:
        """The shards, parted so that the bells of a part can be awaited at once."""
        return self._broker.together(shards)

    async def await_bell(self, shards: Sequence[str], timeout_s: float) -> str | None:
        """Which of these shards may have something to take; None after `timeout_s`."""
        bells = {keys.bell(shard, self._model).encode(): shard for shard in shards}
        waiting = self._broker.client(shards[0]).blpop(list(bells), timeout_s)  # type: ignore[arg-type]  # parts of seconds, too
        rung = await cast(Awaitable[tuple[bytes, bytes] | None], waiting)
        return None if rung is None else bells[rung[0]]

    async def ring(self, shard: str) -> None:
        """Somebody else should look."""
        await cast(
            Awaitable[int], self._broker.client(shard).lpush(keys.bell(shard, self._model), "1")
        )

    async def _set(self, claims: Sequence[Claim], lease_s: float) -> list[Claim]:
        """The claims that are another's by now."""
        shards: dict[str, list[Claim]] = {}
        for claim in claims:
            shards.setdefault(keys.shard_of(claim.job.id), []).append(claim)
        calls = {shard: self._lease_call(some, lease_s) for shard, some in shards.items()}
        held = await self._lease.call_all(calls)
        return [
            claim
            for some, are_ours in zip(shards.values(), held, strict=True)
            for claim, is_ours in zip(some, are_ours, strict=True)
            if not is_ours
        ]

    def _lease_call(self, claims: Sequence[Claim], lease_s: float) -> dict[str, Any]:
        jobs = [{"id": claim.job.id, "epoch": claim.epoch} for claim in claims]
        return {"model": self._model, "jobs": jobs, "lease_ms": _ms(lease_s)}


def _claim(
    spec: bytes, epoch: int, last_index: int, left_ms: int, is_alone: int, waited_ms: int
) -> Claim | None:
    """None for a job that only a newer version can read: its lease lapses, and it is left to
    that."""
    try:
        return Claim(
            decode_job(spec), epoch, last_index, left_ms / 1000, bool(is_alone), waited_ms / 1000
        )
    except msgspec.DecodeError as error:
        logger.error("job of another version left alone", extra=fields(error=str(error)))
        return None


def _log_conviction(spec: bytes, worker: bytes, epochs: int) -> None:
    try:
        job = decode_job(spec)
    except msgspec.DecodeError as error:
        logger.error("job of another version left alone", extra=fields(error=str(error)))
        return
    said = job_fields(
        job, model=job.model, tenant=job.tenant, last_worker=worker.decode(), epochs=epochs
    )
    logger.error("job convicted", extra=said)


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
