"""What enters the worker: takes jobs until they fill the free places, one for each choice, as token
ids to one engine.

The last job taken may have more choices than places are left: no other is taken until they have
places too. Only jobs of the best class are taken all the same while worse ones hold places: the
engine pauses these for them. Of jobs that a lost worker had begun the logged tokens are replayed,
never sampled again.
"""

import asyncio
import contextlib
import logging
import time
from functools import partial

from redis.exceptions import RedisError

from shared.errors import FleetError, WorkerFailed
from shared.log import LogReader
from shared.logging_setup import job_fields
from shared.messages import PRIORITIES, Priority, Progress, Started, Tokens
from shared.queue import Claim, WorkQueue
from shared.tracing import NO_TRACING, Tracing
from worker.doorbells import Doorbells
from worker.engines import AnyEngine
from worker.job_span import JobSpan, begin
from worker.ledger import Ledger
from worker.outbox import Outbox
from worker.take import Take

logger = logging.getLogger("aios.intake")

_WAIT_S = 0.5
"""Between two looks for jobs of lost workers, for which no bell rings."""
_LOOK_S = 0.1
"""Between two looks for urgent jobs of a worker that is full, which hears no bell."""
_URGENT = PRIORITIES[:1]


class Intake:
    """One model's way in, from all `shards`. `num_taken_over` jobs had been in other hands, or here
    before, and `num_convicted` were given up because workers had crashed on them."""

    def __init__(
        self,
        queue: WorkQueue,
        reader: LogReader,
        ledger: Ledger,
        outbox: Outbox,
        engine: AnyEngine,
        *,
        max_batch: int,
        worker_id: str,
        shards: tuple[str, ...],
        tracing: Tracing = NO_TRACING,
    ) -> None:
        self._queue = queue
        self._reader = reader
        self._ledger = ledger
        self._outbox = outbox
        self._engine = engine
        self._worker_id = worker_id
        self._tracing = tracing
        self._shards = list(shards)
        self._doorbells = Doorbells(queue, _WAIT_S)
        self._most = self._free = self._urgent_free = max_batch
        self._freed = asyncio.Event()
        self._should_empty = False
        self.num_taken_over = self.num_convicted = 0

    def closed(self, claim: Claim) -> None:
        """A job of this intake has ended: its places are free."""
        self._count(claim, -1)
        self._freed.set()

    async def turn(self) -> None:
        """Take what can be taken now; returns after a short while without work."""
        if self._places(PRIORITIES) > 0:
            if not await self._take_any(PRIORITIES):
                for shard in await self._doorbells.wait(self._shards):
                    self._move(shard, 0)
            return
        await self._doorbells.pass_on()
        if not await self._take_any(_URGENT):
            self._freed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(
                    self._freed.wait(), _LOOK_S if self._places(_URGENT) > 0 else _WAIT_S
                )

    async def close(self) -> None:
        """Wait for the last bell; what it rang for is passed on."""
        await self._doorbells.close()

    def drop(self) -> None:
        """There is no time for that."""
        self._doorbells.drop()

    def _places(self, priorities: tuple[Priority, ...]) -> int:
        """How many places are free for jobs of these classes. Urgent ones need only places of worse
        ones."""
        if self._should_empty and self._free < self._most:
            return 0
        if not self._engine.accepts:
            return 0
        return self._urgent_free if priorities == _URGENT else self._free

    def _count(self, claim: Claim, jobs: int) -> None:
        self._free -= jobs * claim.places
        if claim.job.priority in _URGENT:
            self._urgent_free -= jobs * claim.places

    async def _take_any(self, priorities: tuple[Priority, ...]) -> bool:
        """Whether a shard had anything. The others come first the next time."""
        for shard in await self._queue.shards_with_work(self._shards, priorities=priorities):
            if self._places(priorities) > 0 and await self._take(shard, priorities):
                self._move(shard, len(self._shards))
                return True
        return False

    def _move(self, shard: str, place: int) -> None:
        self._shards.remove(shard)
        self._shards.insert(place, shard)

    async def _take(self, shard: str, priorities: tuple[Priority, ...]) -> bool:
        asked_s, places, is_empty = (
            time.monotonic(),
            self._places(priorities),
            self._free == self._most,
        )
        taken = await self._queue.take(shard, places, is_empty=is_empty, priorities=priorities)
        self._should_empty = taken.should_empty
        self.num_convicted += taken.num_convicted
        job_spans = [self._begin(claim) for claim in taken.claims]
        for claim, job_span in zip(taken.claims, job_spans, strict=True):
            self._ledger.open(claim, job_span)
            self._count(claim, 1)
        for claim, job_span in zip(taken.claims, job_spans, strict=True):
            await self._accept(claim, job_span, asked_s + claim.time_left_s)
        return bool(taken.claims)

    def _begin(self, claim: Claim) -> JobSpan:
        return begin(self._tracing, claim.job, claim.epoch, claim.waited_s, self._worker_id)

    async def _accept(self, claim: Claim, job_span: JobSpan, deadline_s: float) -> None:
        """From a job in hand to a work for the engine, or to its end where no step is needed.

        A long prompt must not hold up the renewal of leases.
        """
        job = claim.job
        if claim.epoch > 1:
            self.num_taken_over += 1
            logger.warning(
                "job taken over",
                extra=job_fields(claim.job, epoch=claim.epoch, worker=self._worker_id),
            )
        try:
            replayed_ids = await self._replay(claim, job_span) if claim.last_index else ()
            take = Take(claim.key, job.task, job.tenant, deadline_s, job.priority, replayed_ids)
            work = await asyncio.to_thread(self._engine.prepare, take)
        except RedisError as error:
            logger.warning("job not replayed", extra=job_fields(claim.job, error=str(error)))
            self._ledger.close(
                claim, "not_replayed"
            )  # its lease lapses, and somebody takes it again
            return
        except FleetError as error:
            self._outbox.add(claim, error.as_event())
            return
        except (
            Exception
        ) as error:  # the seam to a tokenizer: whatever it raises is that job's failure
            logger.exception("job not encoded", extra=job_fields(claim.job))
            self._outbox.add(
                claim, WorkerFailed(f"The request could not be tokenized: {error}").as_event()
            )
            return
        job_span.encoded(work.num_prompt_tokens, sum(map(len, replayed_ids)))
        started = Started(
            claim.epoch,
            self._worker_id,
            work.num_prompt_tokens,
            work.num_truncated,
            work.max_tokens,
            job_span.trace,
        )
        if work.answer is not None:
            self._outbox.add(claim, started)
            self._outbox.add(claim, work.answer)
            return
        # Only what is known to have begun is blamed if this worker dies of it.
        self._outbox.add(claim, started, then=partial(self._engine.submit, work))

    async def _replay(self, claim: Claim, job_span: JobSpan) -> tuple[tuple[int, ...], ...]:
        """Return the logged tokens of each choice. `job_span` is told of those that logged them."""
        said: list[list[int]] = []
        for _, event in await self._reader.read(claim.job.id):
            if isinstance(event, Started):
                job_span.follows(event.trace)
            elif isinstance(event, Tokens):
                said += [[] for _ in range(event.choice + 1 - len(said))]
                said[event.choice] += event.ids
            elif isinstance(event, Progress):
                self._ledger.note_progress(claim, event)
        return tuple(map(tuple, said))
