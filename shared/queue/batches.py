"""Batches: files of requests that are answered line by line, and what Redis knows of each.

A batch is claimed by one process at a time, for a lease. Each claim has an *epoch*, and only the
newest one may write. So a process that was held up for longer than its lease changes nothing any
more. Every write is safe to repeat.

The answers of lines lie in a hash until all lines before them have answers too. Then they go into
parts, which are artifacts, so Redis holds few of them at any time. Times are those of Redis.
"""

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import msgspec

from shared.errors import BatchEnded, BatchNotFound, IdempotencyConflict, OverQuota
from shared.messages import Priority
from shared.queue import keys
from shared.queue.broker import Broker
from shared.queue.script import Script, raw

BatchStatus = Literal[
    "validating",
    "in_progress",
    "finalizing",
    "completed",
    "failed",
    "expired",
    "cancelling",
    "cancelled",
]
BatchEnding = Literal["completed", "failed", "expired", "cancelled"]
"""The statuses in which a batch ends."""
OPEN_STATUSES: tuple[BatchStatus, ...] = ("validating", "in_progress", "finalizing", "cancelling")
LineOutcome = Literal["completed", "failed"]

_PAGE = 500
_KEPT_S = 7 * 86_400.0


class BatchCaller(msgspec.Struct, frozen=True, omit_defaults=True):
    """The caller who made a batch: its key, and its rights when it did so."""

    id: str = ""
    digest: str = ""
    models: tuple[str, ...] = ()
    best_priority: Priority = "interactive"
    concurrency: int = 0


class BatchSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """The request of a caller. `output_lives_s` is the time for which the files of answers are kept."""

    endpoint: str
    input_file_id: str
    completion_window: str
    caller: BatchCaller = BatchCaller()
    metadata: dict[str, str] | None = None
    output_lives_s: float | None = None


class BatchError(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a batch failed as a whole. `line` is the line at fault, from 1."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


@dataclass(frozen=True)
class LineCounts:
    """The lines of a batch: all of them, and those that have been answered."""

    total: int = 0
    completed: int = 0
    failed: int = 0


@dataclass(frozen=True)
class LineTokens:
    """The tokens of the lines that are completed."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True)
class Batch:
    """The record of a batch. Times are in seconds since 1970, those of `entered_at` by status.

    `ending` is the status that it is to end in, "" as long as that is open. The lines before
    `next_line`, which begins at `next_offset` of the input, are in the parts.
    """

    id: str
    tenant: str
    spec: BatchSpec
    status: BatchStatus
    ending: BatchEnding | Literal[""]
    created_at: int
    expires_at: int
    entered_at: Mapping[str, int]
    counts: LineCounts
    tokens: LineTokens
    next_line: int
    next_offset: int
    output_parts: tuple[str, ...]
    error_parts: tuple[str, ...]
    output_file_id: str | None
    error_file_id: str | None
    errors: tuple[BatchError, ...]


@dataclass(frozen=True)
class BatchClaim:
    """A batch in the hands of this process, until the lease ends or is renewed."""

    batch_id: str
    epoch: int


@dataclass(frozen=True)
class Renewal:
    """The news for a claim that still holds: the batch's status, and the seconds to its end."""

    status: BatchStatus
    left_s: float


class LineAnswer(msgspec.Struct, frozen=True):
    """The answer of a line: its JSON as it goes into a file, and the tokens that it took."""

    line: int
    outcome: LineOutcome
    text: bytes
    tokens: LineTokens = LineTokens()


class Batches:
    """The records of all batches, and the claims on them.

    A claim holds for `lease_s`. A tenant may have `most_open` batches that have not ended.
    """

    def __init__(self, broker: Broker, *, lease_s: float = 5.0, most_open: int = 100) -> None:
        self.lease_s = lease_s
        self._redis = broker.client(keys.BATCHES)
        self._most_open = most_open
        self._create = Script(broker, "batch_create", needs=("batches",))
        self._claim = Script(broker, "batch_claim", needs=("batches",))
        self._renew = Script(broker, "batch_renew", needs=("batches",))
        self._note = Script(broker, "batch_note", needs=("batches",))
        self._flush = Script(broker, "batch_flush", needs=("batches",))
        self._move = Script(broker, "batch_move", needs=("batches",))

    # For callers.

    async def create(
        self, tenant: str, spec: BatchSpec, *, window_s: float, key: str = ""
    ) -> Batch:
        """Make a batch that has `window_s` to be answered.

        Batches of a tenant with the same idempotency `key` are one. Raise OverQuota, and
        IdempotencyConflict for a key that came with another batch.
        """
        batch_id = keys.new_batch_id()
        if key:
            batch_id = keys.batch_id_for(tenant, key)
        answer = await self._create.call(
            keys.BATCHES,
            id=batch_id,
            tenant=tenant,
            spec=raw(msgspec.msgpack.encode(spec)),
            window_ms=int(window_s * 1000),
            most_open=self._most_open,
        )
        if answer == b"full":
            raise OverQuota(
                f"At most {self._most_open} batches of a tenant may be open at once.",
                retry_after_s=60,
            )
        if answer == b"conflict":
            words = "This key came before with another batch."
            raise IdempotencyConflict(words, field="Idempotency-Key")
        return await self.find(tenant, batch_id)

    async def find(self, tenant: str, batch_id: str) -> Batch:
        """Return a tenant's batch. Raise BatchNotFound."""
        found = None
        if keys.is_batch_id(batch_id):
            [found] = await self._read([batch_id])
        if found is None or found.tenant != tenant:
            raise _not_found(batch_id)
        return found

    async def page(self, tenant: str, *, limit: int, after: str = "") -> tuple[list[Batch], bool]:
        """Return `limit` of a tenant's batches, the newest first, and whether more follow.

        They begin behind the batch `after`. Raise BatchNotFound if that is not there.
        """
        owned = keys.batches_of(tenant)
        start = 0
        if after:
            rank = await cast(Awaitable[int | None], self._redis.zrevrank(owned, after))
            if rank is None:
                raise _not_found(after)
            start = rank + 1
        batches: list[Batch] = []
        gone: list[str] = []
        while len(batches) <= limit:
            members = await self._redis.zrange(owned, start, start + limit, desc=True)
            if not members:
                break
            start += len(members)
            ids = [member.decode() for member in members]
            for batch_id, batch in zip(ids, await self._read(ids), strict=True):
                if batch is None:
                    gone.append(batch_id)
                else:
                    batches.append(batch)
        if gone:
            await self._redis.zrem(owned, *gone)
        return batches[:limit], len(batches) > limit

    async def cancel(self, tenant: str, batch_id: str) -> Batch:
        """Have a batch end with the lines that are done, and return it.

        Raise BatchNotFound, and BatchEnded for one that has ended or is about to.
        """
        batch = await self.find(tenant, batch_id)
        has_moved = await self._move_if(
            batch_id, -1, ("validating", "in_progress"), "cancelling", {"ending": "cancelled"}
        )
        batch = await self.find(tenant, batch_id)
        if not has_moved and batch.status not in ("cancelling", "cancelled"):
            raise BatchEnded(f"The batch is {batch.status} and cannot be cancelled any more.")
        return batch

    # For the process that advances batches.

    async def claim(self) -> BatchClaim | None:
        """Claim the batch that has waited longest to be advanced, None if none waits."""
        answer = await self._claim.call(keys.BATCHES, lease_ms=self._lease_ms)
        if not answer:
            return None
        batch_id, epoch = answer
        return BatchClaim(batch_id.decode(), epoch)

    async def read(self, claim: BatchClaim) -> Batch | None:
        """Return the record of a claimed batch, None if it is gone."""
        [batch] = await self._read([claim.batch_id])
        return batch

    async def renew(self, claim: BatchClaim) -> Renewal | None:
        """Begin the lease of a claim again. Return None where the claim does not hold."""
        return await self._renew_for(claim, self._lease_ms)

    async def give_back(self, claim: BatchClaim) -> None:
        """Let others claim the batch from now on."""
        await self._renew_for(claim, 0)

    async def note_duplicates(self, claim: BatchClaim, lines: Sequence[int]) -> None:
        """Note lines whose `custom_id` an earlier line has."""
        name = keys.batch_duplicates(claim.batch_id)
        for start in range(0, len(lines), _PAGE):
            await cast(Awaitable[int], self._redis.sadd(name, *lines[start : start + _PAGE]))

    async def duplicates(self, claim: BatchClaim) -> set[int]:
        """Return the lines whose `custom_id` an earlier line has."""
        reading = self._redis.smembers(keys.batch_duplicates(claim.batch_id))
        return {int(line) for line in await cast(Awaitable[set[bytes]], reading)}

    async def note(self, claim: BatchClaim, answers: Sequence[LineAnswer]) -> int | None:
        """Note the answers of lines; what is known of a line already stays.

        Return how many were new, None where the claim does not hold.
        """
        entries = []
        for answer in answers:
            entry = {"line": answer.line, "outcome": answer.outcome}
            # The first byte tells to which file the answer goes.
            text = answer.outcome[:1].encode() + answer.text
            tokens = {
                "prompt_tokens": answer.tokens.prompt_tokens,
                "completion_tokens": answer.tokens.completion_tokens,
                "cached_tokens": answer.tokens.cached_tokens,
            }
            entries.append({**entry, **tokens, "text": raw(text)})
        noted: int = await self._note.call(
            keys.BATCHES, id=claim.batch_id, epoch=claim.epoch, answers=entries
        )
        return noted if noted >= 0 else None

    async def results(self, claim: BatchClaim) -> dict[int, tuple[LineOutcome, bytes]]:
        """Return the answers that are in no part yet, by their lines."""
        reading = self._redis.hgetall(keys.batch_results(claim.batch_id))
        results: dict[int, tuple[LineOutcome, bytes]] = {}
        for line, text in (await cast(Awaitable[dict[bytes, bytes]], reading)).items():
            outcome: LineOutcome = "completed" if text[:1] == b"c" else "failed"
            results[int(line)] = (outcome, text[1:])
        return results

    async def flush(
        self,
        claim: BatchClaim,
        *,
        from_line: int,
        next_line: int,
        next_offset: int,
        output_part: str,
        error_part: str,
    ) -> bool:
        """Move answers into parts, which hold them already ("" for no part).

        They are those of the lines from `from_line` up to `next_line` (left out). Return whether
        the claim holds.
        """
        is_done = await self._flush.call(
            keys.BATCHES,
            id=claim.batch_id,
            epoch=claim.epoch,
            from_line=from_line,
            next_line=next_line,
            next_offset=next_offset,
            output_part=output_part,
            error_part=error_part,
        )
        return bool(is_done)

    async def begin(self, claim: BatchClaim, total: int) -> bool:
        """Move a batch that was validated on, with its number of lines. Return whether it did."""
        fields = {"total": total}
        return await self._move_if(
            claim.batch_id, claim.epoch, ("validating",), "in_progress", fields
        )

    async def finalize(
        self, claim: BatchClaim, ending: BatchEnding, errors: Sequence[BatchError] = ()
    ) -> bool:
        """Have the files of a batch written, before it ends so. Return whether it moved on."""
        fields: dict[str, Any] = {"ending": ending}
        if errors:
            fields["errors"] = _encoded(errors)
        return await self._move_if(
            claim.batch_id, claim.epoch, ("validating", "in_progress"), "finalizing", fields
        )

    async def end(
        self,
        claim: BatchClaim,
        ending: BatchEnding,
        *,
        output_file_id: str | None = None,
        error_file_id: str | None = None,
        errors: Sequence[BatchError] = (),
    ) -> bool:
        """End a batch, with its files. Return whether it ended now."""
        fields: dict[str, Any] = {"ending": ending}
        if output_file_id is not None:
            fields["output_file"] = output_file_id
        if error_file_id is not None:
            fields["error_file"] = error_file_id
        if errors:
            fields["errors"] = _encoded(errors)
        return await self._move_if(
            claim.batch_id, claim.epoch, OPEN_STATUSES, ending, fields, kept_s=_KEPT_S
        )

    async def count_open(self) -> int:
        """Return how many batches have not ended."""
        return await cast(Awaitable[int], self._redis.zcard(keys.ACTIVE_BATCHES))

    async def open_by_status(self) -> dict[str, int]:
        """Return how many batches have not ended, by their statuses."""
        ids = await self._redis.zrange(keys.ACTIVE_BATCHES, 0, -1)
        pipe = self._redis.pipeline(transaction=False)
        for batch_id in ids:
            pipe.hget(keys.batch(batch_id.decode()), "status")
        counts: dict[str, int] = {}
        for status in await pipe.execute():
            if status is not None:
                counts[status.decode()] = counts.get(status.decode(), 0) + 1
        return counts

    @property
    def _lease_ms(self) -> int:
        return int(self.lease_s * 1000)

    async def _renew_for(self, claim: BatchClaim, lease_ms: int) -> Renewal | None:
        answer = await self._renew.call(
            keys.BATCHES, id=claim.batch_id, epoch=claim.epoch, lease_ms=lease_ms
        )
        if not answer:
            return None
        status, left_ms = answer
        return Renewal(status.decode(), left_ms / 1000)

    async def _move_if(
        self,
        batch_id: str,
        epoch: int,
        before: Sequence[BatchStatus],
        after: BatchStatus,
        fields: Mapping[str, Any],
        *,
        kept_s: float = 0.0,
    ) -> bool:
        """Move a batch on if it has one of the statuses `before`. Return whether it had."""
        has_moved = await self._move.call(
            keys.BATCHES,
            id=batch_id,
            epoch=epoch,
            **{"from": before},
            to=after,
            fields=fields,
            kept_ms=int(kept_s * 1000),
        )
        return bool(has_moved)

    async def _read(self, ids: Sequence[str]) -> list[Batch | None]:
        """Return the batches with these ids, None for each that is not there."""
        pipe = self._redis.pipeline(transaction=False)
        for batch_id in ids:
            pipe.hgetall(keys.batch(batch_id))
        batches = []
        for batch_id, fields in zip(ids, await pipe.execute(), strict=True):
            batches.append(_batch(batch_id, fields) if fields else None)
        return batches


def _batch(batch_id: str, fields: Mapping[bytes, bytes]) -> Batch:
    def number(name: str) -> int:
        return int(fields.get(name.encode(), b"0"))

    def text(name: str) -> str:
        return fields.get(name.encode(), b"").decode()

    entered_at = {}
    for name, value in fields.items():
        if name.startswith(b"at:"):
            entered_at[name.removeprefix(b"at:").decode()] = int(value) // 1000
    errors: tuple[BatchError, ...] = ()
    if b"errors" in fields:
        errors = msgspec.json.decode(fields[b"errors"], type=tuple[BatchError, ...])
    return Batch(
        id=batch_id,
        tenant=text("tenant"),
        spec=msgspec.msgpack.decode(fields[b"spec"], type=BatchSpec),
        status=cast(BatchStatus, text("status")),
        ending=cast(BatchEnding, text("ending")),
        created_at=number("created_ms") // 1000,
        expires_at=number("expires_ms") // 1000,
        entered_at=entered_at,
        counts=LineCounts(number("total"), number("completed"), number("failed")),
        tokens=LineTokens(
            number("prompt_tokens"), number("completion_tokens"), number("cached_tokens")
        ),
        next_line=number("next_line"),
        next_offset=number("next_offset"),
        output_parts=tuple(text("output_parts").split()),
        error_parts=tuple(text("error_parts").split()),
        output_file_id=text("output_file") or None,
        error_file_id=text("error_file") or None,
        errors=errors,
    )


def _encoded(errors: Sequence[BatchError]) -> str:
    return msgspec.json.encode(errors).decode()


def _not_found(batch_id: str) -> BatchNotFound:
    return BatchNotFound(f"id: batch {batch_id[:64]!r} does not exist.", field="id")
