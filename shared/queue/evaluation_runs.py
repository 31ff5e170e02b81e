"""Evaluations that the fleet runs by itself, and what Redis knows of each.

A run is kept and claimed as a batch is (`shared/queue/batches.py`), by the same scripts under
another hash tag: its items are the lines, whose results are noted once, and only the newest claim
may write. Its report stays in its record.
"""

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import msgspec

from shared.errors import EvaluationNotFound, IdempotencyConflict, OverQuota
from shared.queue import keys
from shared.queue.batches import BatchCaller, BatchClaim, Renewal
from shared.queue.broker import Broker
from shared.queue.script import Script, raw

RunState = Literal["queued", "running", "done", "failed"]
_STATES: dict[str, RunState] = {
    "validating": "queued",
    "in_progress": "running",
    "completed": "done",
    "failed": "failed",
}
_OPEN = ("validating", "in_progress")
_MOST_OPEN = 4
_KEPT_S = 90 * 86_400.0
_MOST_KEPT = 50
# All runs are the operator's.
_TENANT = "operator"


class RunSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """The sets to be asked: these tasks (None: all) of this model (None: all that can)."""

    tasks: tuple[str, ...] | None = None
    model: str | None = None
    is_accepted: bool = False
    tenant: str = "public"
    caller: BatchCaller = BatchCaller()


@dataclass(frozen=True)
class EvaluationRun:
    """The record of a run. Times are in seconds since 1970.

    `num_done` of `total` requests have answers; `total` is 0 until it is known. `plan` is what it
    asks, and `report` what came of it, both in JSON: b"" until there is one.
    """

    id: str
    spec: RunSpec
    state: RunState
    created_at: int
    ended_at: int | None
    total: int
    num_done: int
    plan: bytes
    report: bytes
    error: str


class EvaluationRuns:
    """The records of all runs, and the claims on them, which hold for `lease_s`."""

    def __init__(self, broker: Broker, *, lease_s: float = 5.0) -> None:
        self.lease_s = lease_s
        self._redis = broker.client(keys.EVALUATIONS)
        self._create = Script(broker, "batch_create", needs=("batches",))
        self._claim = Script(broker, "batch_claim", needs=("batches",))
        self._renew = Script(broker, "batch_renew", needs=("batches",))
        self._note = Script(broker, "batch_note", needs=("batches",))
        self._move = Script(broker, "batch_move", needs=("batches",))

    # For callers.

    async def create(self, spec: RunSpec, *, window_s: float, key: str = "") -> EvaluationRun:
        """Queue a run, which has `window_s` to end. Runs with the same idempotency `key` are one.

        Raise OverQuota while too many are open, and IdempotencyConflict for a key that came with
        another one.
        """
        run_id = keys.new_evaluation_id()
        if key:
            run_id = keys.evaluation_id_for(spec.tenant, key)
        answer = await self._create.call(
            keys.EVALUATIONS,
            id=run_id,
            tenant=_TENANT,
            spec=raw(msgspec.msgpack.encode(spec)),
            window_ms=int(window_s * 1000),
            most_open=_MOST_OPEN,
        )
        if answer == b"full":
            raise OverQuota(
                f"At most {_MOST_OPEN} evaluations may be open at once.", retry_after_s=60
            )
        if answer == b"conflict":
            words = "This key came before with another evaluation."
            raise IdempotencyConflict(words, field="Idempotency-Key")
        return await self.find(run_id)

    async def find(self, run_id: str) -> EvaluationRun:
        """Return a run. Raise EvaluationNotFound."""
        found = None
        if keys.is_evaluation_id(run_id):
            [found] = await self._read([run_id])
        if found is None:
            raise EvaluationNotFound(f"id: evaluation {run_id[:64]!r} does not exist.", field="id")
        return found

    async def latest_id(self) -> str | None:
        """Return the id of the run that ended last with a report, None without any."""
        run_id = await self._redis.get(keys.LATEST_EVALUATION)
        return None if run_id is None else run_id.decode()

    async def done(self, limit: int) -> list[EvaluationRun]:
        """Return the last runs that have a report, the newest first, out of `limit` runs."""
        return [run for run in await self.last(limit) if run.report]

    async def last(self, limit: int) -> list[EvaluationRun]:
        """Return the last runs, the newest first, whatever has become of them."""
        found = await self._redis.zrange(keys.EVALUATION_RUNS, 0, limit - 1, desc=True)
        ids = [run_id.decode() for run_id in found]
        runs = []
        gone = []
        for run_id, run in zip(ids, await self._read(ids), strict=True):
            if run is None:
                gone.append(run_id)
            else:
                runs.append(run)
        if gone:
            await self._redis.zrem(keys.EVALUATION_RUNS, *gone)
        return runs

    # For the process that asks. `Hold` renews claims.

    async def claim(self) -> BatchClaim | None:
        """Claim the run that has waited longest, None if none waits or another one has a claim.

        Items of two runs at once would slow each other. Two processes that look at the same moment
        may both claim one all the same.
        """
        pipe = self._redis.pipeline(transaction=False)
        pipe.zrange(keys.ACTIVE_EVALUATIONS, 0, -1, withscores=True)
        pipe.time()
        active, (seconds, micros) = await pipe.execute()
        now_ms = seconds * 1000 + micros // 1000
        if any(until_ms > now_ms for _, until_ms in active):
            return None
        answer = await self._claim.call(keys.EVALUATIONS, lease_ms=int(self.lease_s * 1000))
        if not answer:
            return None
        run_id, epoch = answer
        return BatchClaim(run_id.decode(), epoch)

    async def renew(self, claim: BatchClaim) -> Renewal | None:
        """Begin the lease of a claim again. Return None where the claim does not hold."""
        return await self._renew_for(claim, int(self.lease_s * 1000))

    async def give_back(self, claim: BatchClaim) -> None:
        """Let others claim the run from now on."""
        await self._renew_for(claim, 0)

    async def begin(self, claim: BatchClaim, *, total: int, plan: bytes) -> bool:
        """Note what a run asks, in `total` requests. Return whether the run began now."""
        fields = {"total": total, "plan": raw(plan)}
        return await self._move_on(claim, ("validating",), "in_progress", fields)

    async def note(self, claim: BatchClaim, number: int, result: bytes) -> bool:
        """Note the result of a request by its number, from 1; the first one noted stays.

        Return whether the claim holds.
        """
        counted = {"prompt_tokens": 0, "completion_tokens": 0, "cached_tokens": 0}
        entry = {"line": number, "outcome": "completed", "text": raw(result), **counted}
        noted: int = await self._note.call(
            keys.EVALUATIONS, id=claim.batch_id, epoch=claim.epoch, answers=[entry]
        )
        return noted >= 0

    async def results(self, claim: BatchClaim) -> dict[int, bytes]:
        """Return the results that are noted, by the numbers of their requests."""
        reading = self._redis.hgetall(keys.evaluation_results(claim.batch_id))
        found = await cast(Awaitable[dict[bytes, bytes]], reading)
        return {int(number): result for number, result in found.items()}

    async def end(self, claim: BatchClaim, *, report: bytes = b"", error: str = "") -> bool:
        """End a run with its report, or failed with an error. Return whether it ended now."""
        status = "failed" if error else "completed"
        fields = {"report": raw(report), "error": error}
        has_ended = await self._move_on(claim, _OPEN, status, fields, kept_s=_KEPT_S)
        if has_ended and report:
            await self._redis.set(keys.LATEST_EVALUATION, claim.batch_id, px=int(_KEPT_S * 1000))
            await self._forget_old()
        return has_ended

    async def _forget_old(self) -> None:
        """Remove the records of all but the last runs. Open ones are among these, as they are few."""
        old = await self._redis.zrange(keys.EVALUATION_RUNS, _MOST_KEPT, -1, desc=True)
        if not old:
            return
        pipe = self._redis.pipeline(transaction=False)
        for run_id in old:
            pipe.delete(keys.evaluation(run_id.decode()))
        pipe.zrem(keys.EVALUATION_RUNS, *old)
        await pipe.execute()

    async def _renew_for(self, claim: BatchClaim, lease_ms: int) -> Renewal | None:
        answer = await self._renew.call(
            keys.EVALUATIONS, id=claim.batch_id, epoch=claim.epoch, lease_ms=lease_ms
        )
        if not answer:
            return None
        _, left_ms = answer
        return Renewal("in_progress", left_ms / 1000)

    async def _move_on(
        self,
        claim: BatchClaim,
        before: Sequence[str],
        after: str,
        fields: Mapping[str, Any],
        *,
        kept_s: float = 0.0,
    ) -> bool:
        has_moved = await self._move.call(
            keys.EVALUATIONS,
            id=claim.batch_id,
            epoch=claim.epoch,
            **{"from": before},
            to=after,
            fields=fields,
            kept_ms=int(kept_s * 1000),
        )
        return bool(has_moved)

    async def _read(self, ids: Sequence[str]) -> list[EvaluationRun | None]:
        """Return the runs with these ids, None for each that is not there."""
        if not ids:
            return []
        pipe = self._redis.pipeline(transaction=False)
        for run_id in ids:
            pipe.hgetall(keys.evaluation(run_id))
        runs = []
        for run_id, fields in zip(ids, await pipe.execute(), strict=True):
            runs.append(_run(run_id, fields) if fields else None)
        return runs


def _run(run_id: str, fields: Mapping[bytes, bytes]) -> EvaluationRun:
    state = _STATES[fields[b"status"].decode()]
    ended_ms = fields.get(b"at:completed") or fields.get(b"at:failed")
    return EvaluationRun(
        id=run_id,
        spec=msgspec.msgpack.decode(fields[b"spec"], type=RunSpec),
        state=state,
        created_at=int(fields[b"created_ms"]) // 1000,
        ended_at=int(ended_ms) // 1000 if ended_ms else None,
        total=int(fields[b"total"]),
        num_done=int(fields[b"completed"]),
        plan=fields.get(b"plan", b""),
        report=fields.get(b"report", b""),
        error=fields.get(b"error", b"").decode(),
    )
