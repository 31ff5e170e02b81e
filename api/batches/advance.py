"""Advance batches: validate their files, run their lines, write the files of answers.

Whoever advances a batch holds a claim on it for a while. What has been reached lies in Redis, so
that the next one goes on from there, whatever has become of the one before:

- A line's request is found again by its idempotency key.
- An answer is noted before anything relies on it, and only once.
- Files are made anew from the same answers, and the same bytes are the same artifact.
"""

import asyncio
import logging
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import replace

from api.access.caller import Caller
from api.batches.batch_files import BatchFiles
from api.batches.hold import ClaimLost, Hold
from api.batches.line_run import LineRun
from api.batches.validation import BatchRefused, validated
from api.deps import Front
from api.endpoints.endpoint import Post
from shared.errors import ArtifactNotFound, BrokerUnavailable, StorageUnavailable, Unauthorized
from shared.queue.batches import (
    OPEN_STATUSES,
    Batch,
    BatchClaim,
    BatchEnding,
    BatchError,
    Batches,
)
from shared.queue.broker import UNAVAILABLE
from shared.queue.submission import Quota
from shared.telemetry.logging_setup import fields
from shared.telemetry.metrics import BatchMetrics

_AWAY = (BrokerUnavailable, StorageUnavailable, *UNAVAILABLE)
_NO_INPUT = BatchError("input_file_not_found", "The input file was deleted.", param="input_file_id")

log = logging.getLogger("aios.batches")


class Advancer:
    """Advances the batches of all tenants, each for a while.

    `posts` are the endpoints by their paths. A process advances `most_at_once` batches at a time.
    """

    def __init__(
        self,
        front: Front,
        batches: Batches,
        files: BatchFiles,
        posts: Mapping[str, Post],
        metrics: BatchMetrics,
        *,
        max_lines: int,
        seed: int | None = None,
        most_at_once: int = 4,
    ) -> None:
        self._front = front
        self._batches = batches
        self._files = files
        self._posts = posts
        self._metrics = metrics
        self._max_lines = max_lines
        self._seed = seed
        self._most_at_once = most_at_once
        self._turns: set[asyncio.Task[None]] = set()

    async def advance_one(self, for_s: float) -> bool:
        """Advance the batch that has waited longest, for about `for_s`. Return whether one waited.

        Nothing is done while this process advances as many batches as it may, or Redis is away.
        """
        try:
            await self._count()
            claim = None
            if len(self._turns) < self._most_at_once:
                claim = await self._batches.claim()
        except UNAVAILABLE as error:
            log.warning("batches not advanced", extra=fields(error=str(error)))
            return False
        if claim is None:
            return False
        turn = asyncio.create_task(self._advance(claim, for_s), name="advance-batch")
        self._turns.add(turn)
        try:
            await turn
        finally:
            turn.cancel()
            self._turns.discard(turn)
        return True

    async def close(self) -> None:
        """End the turns. Others take the batches over at once."""
        for turn in self._turns:
            turn.cancel()
        await asyncio.gather(*self._turns, return_exceptions=True)

    async def _count(self) -> None:
        """Count the open batches of the fleet for the metrics."""
        counts = await self._batches.open_by_status()
        for status in OPEN_STATUSES:
            self._metrics.open.labels(status).set(counts.get(status, 0))

    async def _advance(self, claim: BatchClaim, for_s: float) -> None:
        """Take a batch as far as it gets in this time."""
        try:
            async with Hold(self._batches, claim) as hold:
                batch = await self._read(hold)
                if batch.status == "validating":
                    batch = await self._validate(hold, batch)
                if batch.status in ("in_progress", "cancelling"):
                    if not await self._run_lines(hold, batch, for_s):
                        return
                    batch = await self._read(hold)
                if batch.status in ("finalizing", "cancelling"):
                    await self._finish(hold, batch)
        except ClaimLost:
            log.info("batch claim lost", extra=fields(batch=claim.batch_id))
        except _AWAY as error:
            log.warning("batch not advanced", extra=fields(batch=claim.batch_id, error=str(error)))

    async def _read(self, hold: Hold) -> Batch:
        """Return the batch as it is now. Raise ClaimLost for one that is gone."""
        hold.check()
        batch = await self._batches.read(hold.claim)
        if batch is None:
            raise ClaimLost
        return batch

    async def _validate(self, hold: Hold, batch: Batch) -> Batch:
        """Read the whole file once, and begin the batch or fail it. Return it as it is then."""
        if batch.spec.endpoint not in self._posts:
            message = "This version of the server has no such endpoint."
            await self._end(
                hold, "failed", BatchError("unknown_endpoint", message, param="endpoint")
            )
            return await self._read(hold)
        try:
            async with aclosing(self._files.lines(batch)) as lines:
                validation = await validated(
                    lines,
                    url=batch.spec.endpoint,
                    max_lines=self._max_lines,
                    max_line_bytes=self._files.max_line_bytes(batch.spec.endpoint),
                )
        except ArtifactNotFound:
            await self._end(hold, "failed", _NO_INPUT)
        except BatchRefused as refusal:
            await self._end(hold, "failed", refusal.error)
        else:
            await self._batches.note_duplicates(hold.claim, validation.duplicates)
            await self._batches.begin(hold.claim, validation.total)
        return await self._read(hold)

    async def _run_lines(self, hold: Hold, batch: Batch, for_s: float) -> bool:
        """Run lines for a while. Return whether none is left to be run: then the batch moves on."""
        ending: BatchEnding = "completed"
        error = None
        caller = _caller_of(batch)
        try:
            caller = await self._refreshed(caller)
        except Unauthorized as refusal:
            ending = "failed"
            error = BatchError(refusal.code, refusal.message)
        try:
            run = LineRun(
                self._front,
                self._batches,
                self._files,
                hold,
                self._metrics,
                batch=batch,
                caller=caller,
                post=self._posts[batch.spec.endpoint],
                seed=self._seed,
                may_begin=error is None,
            )
            if not await run.run(for_s):
                return False
        except ArtifactNotFound:
            ending = "failed"
            error = _NO_INPUT

        counts = (await self._read(hold)).counts
        if ending == "completed" and counts.completed + counts.failed < counts.total:
            # Only a batch that was stopped has lines without answers. One that was cancelled is not
            # in progress any more, and does not move.
            ending = "expired"
        await self._batches.finalize(hold.claim, ending, [error] if error else [])
        return True

    async def _refreshed(self, caller: Caller) -> Caller:
        """Return a caller with its present rights. Raise Unauthorized."""
        caller = await self._front.auth.refresh(caller)
        # Lines are not counted by rates: a batch has limits of its own.
        return replace(caller, quota=Quota(caller.quota.concurrency))

    async def _finish(self, hold: Hold, batch: Batch) -> None:
        """Write the files of a batch whose lines are run, and end it."""
        assert batch.ending != ""
        results = await self._batches.results(hold.claim)
        output_id, error_id = await self._files.write(batch, results, batch.ending)
        hold.check()
        await self._end(hold, batch.ending, output_file_id=output_id, error_file_id=error_id)
        await self._files.remove_parts(batch)

    async def _end(
        self,
        hold: Hold,
        ending: BatchEnding,
        error: BatchError | None = None,
        *,
        output_file_id: str | None = None,
        error_file_id: str | None = None,
    ) -> None:
        has_ended = await self._batches.end(
            hold.claim,
            ending,
            output_file_id=output_file_id,
            error_file_id=error_file_id,
            errors=[error] if error else [],
        )
        if has_ended:
            self._metrics.ended.labels(ending).inc()
            log.info("batch ended", extra=fields(batch=hold.claim.batch_id, status=ending))


def _caller_of(batch: Batch) -> Caller:
    """Return the caller who made a batch, with the rights of that time."""
    made_by = batch.spec.caller
    return Caller(
        tenant=batch.tenant,
        quota=Quota(made_by.concurrency),
        best_priority=made_by.best_priority,
        id=made_by.id,
        models=frozenset(made_by.models),
        digest=made_by.digest,
    )
