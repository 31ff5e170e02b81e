"""The intake of jobs: they are taken until they fill the free slots of one engine.

Each choice takes one slot. The last job taken may have more choices than there are free slots. Then
no other job is taken until all its choices have slots. While jobs of worse classes hold slots, jobs
of the best class are taken nevertheless, and the engine pauses the others for them. If another
worker had begun a job, the logged tokens are replayed, never sampled again.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from redis.exceptions import RedisError

from shared.errors import (
    BrokerUnavailable,
    BudgetExceeded,
    FleetError,
    StorageUnavailable,
    WorkerFailed,
)
from shared.events.log import LogReader
from shared.events.subscriptions import Subscriptions
from shared.messages import PRIORITIES, Job, Priority, Progress, Started, Tokens
from shared.queue import keys
from shared.queue.leases import Claim, WorkQueue
from shared.telemetry.logging_setup import job_fields
from shared.telemetry.tracing import NO_TRACING, Tracing
from worker.engine.engines import AnyEngine
from worker.engine.take import Prepared, Take
from worker.host.job_span import JobSpan, begin
from worker.host.ledger import Ledger
from worker.host.outbox import Outbox

logger = logging.getLogger("aios.intake")

_WAIT_S = 0.5
"""The longest wait for a bell, because none rings for jobs of lost workers."""
_URGENT_WAIT_S = 0.05
"""The time that an urgent job is left to workers with free slots, who hear a bell at once."""
_URGENT = PRIORITIES[:1]


@dataclass
class _Logged:
    """The part of a choice that is in the log."""

    ids: list[int] = field(default_factory=list)
    text: str = ""


class Intake:
    """The intake of one model's jobs from all `shards`.

    `num_taken_over` counts jobs that a worker, perhaps this one, had taken before. `num_convicted`
    counts jobs that were given up because workers had crashed on them.
    """

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
        self._max_slots = max_batch
        self.free_slots = max_batch
        # The slots that urgent jobs do not hold, which is the room for other urgent jobs.
        self.urgent_free_slots = max_batch
        # Set when a full worker may find something to take.
        self._changed = asyncio.Event()
        self._urgent_timer: asyncio.TimerHandle | None = None
        self._should_empty = False
        self.num_taken_over = 0
        self.num_convicted = 0

    def closed(self, claim: Claim) -> None:
        """Free the slots of a job of this intake that has ended."""
        self._count(claim, -1)
        self._changed.set()

    async def hear_urgent(self, subscriptions: Subscriptions) -> None:
        """Let a full worker look for urgent jobs when some are queued, until cancelled.

        A message that is lost costs `_WAIT_S`.
        """
        async with contextlib.AsyncExitStack() as stack:
            for shard in tuple(self._shards):
                channel = keys.urgent(shard, self._queue.model)
                attached = subscriptions.attached(channel, self._urgent_queued)
                await stack.enter_async_context(attached)
            await asyncio.Event().wait()

    def _urgent_queued(self, message: bytes) -> None:
        # One look is enough for all that are queued until then.
        if self._urgent_timer is None:
            loop = asyncio.get_running_loop()
            self._urgent_timer = loop.call_later(_URGENT_WAIT_S, self._look_for_urgent)

    def _look_for_urgent(self) -> None:
        self._urgent_timer = None
        self._changed.set()

    async def turn(self) -> None:
        """Take the jobs for which there are slots now. Without work return after a short wait."""
        if self._free_slots(PRIORITIES) > 0:
            if not await self._take_any(PRIORITIES):
                for shard in await self._doorbells.wait(self._shards):
                    self._move(shard, 0)
            return

        # A full worker waits for no bell. It checks for urgent jobs, or waits for a slot.
        await self._doorbells.pass_on()
        # Before the take, as a slot that becomes free meanwhile must not wait for the next one.
        self._changed.clear()
        if self._free_slots(_URGENT) > 0 and await self._take_any(_URGENT):
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), _WAIT_S)

    async def close(self) -> None:
        """Wait for the last bells, and ring them again for other workers."""
        await self._doorbells.close()

    def drop(self) -> None:
        """Cancel all that is to come: the wait for bells, and the look for urgent jobs."""
        self._doorbells.drop()
        # The timer refers to this intake, and with it to the weights.
        if self._urgent_timer is not None:
            self._urgent_timer.cancel()
            self._urgent_timer = None

    def _free_slots(self, priorities: tuple[Priority, ...]) -> int:
        """Return the number of slots that are free for jobs of these classes."""
        # A suspected job waits until this worker has no other job in hand.
        if self._should_empty and self.free_slots < self._max_slots:
            return 0
        if not self._engine.accepts:
            return 0
        if priorities == _URGENT:
            return self.urgent_free_slots
        return self.free_slots

    def _count(self, claim: Claim, num_jobs: int) -> None:
        """Count the slots of a job that is taken (1) or has ended (-1)."""
        self.free_slots -= num_jobs * claim.slots
        if claim.job.priority in _URGENT:
            self.urgent_free_slots -= num_jobs * claim.slots

    async def _take_any(self, priorities: tuple[Priority, ...]) -> bool:
        """Take jobs from the first shard that has any. Return whether one had.

        The other shards come first the next time.
        """
        for shard in await self._queue.shards_with_work(self._shards, priorities=priorities):
            if self._free_slots(priorities) > 0 and await self._take(shard, priorities):
                self._move(shard, len(self._shards))
                return True
        return False

    def _move(self, shard: str, index: int) -> None:
        self._shards.remove(shard)
        self._shards.insert(index, shard)

    async def _take(self, shard: str, priorities: tuple[Priority, ...]) -> bool:
        # Deadlines count from before the call, so that its duration is not added to them.
        called_s = time.monotonic()
        slots = self._free_slots(priorities)
        is_empty = self.free_slots == self._max_slots
        taken = await self._queue.take(shard, slots, is_empty=is_empty, priorities=priorities)
        self._should_empty = taken.should_empty
        self.num_convicted += taken.num_convicted

        # All jobs are in the ledger, and so renewed, before the first is encoded, which may take
        # long.
        job_spans: list[JobSpan] = []
        for claim in taken.claims:
            job_span = begin(
                self._tracing,
                claim.job,
                epoch=claim.epoch,
                waited_s=claim.waited_s,
                worker_id=self._worker_id,
            )
            self._ledger.open(claim, job_span)
            self._count(claim, 1)
            job_spans.append(job_span)
        for claim, job_span in zip(taken.claims, job_spans, strict=True):
            await self._accept(claim, job_span, called_s + claim.time_left_s)
        return bool(taken.claims)

    async def _accept(self, claim: Claim, job_span: JobSpan, deadline_s: float) -> None:
        """Turn a job in hand into work for the engine, or into its end if it needs no step."""
        if claim.epoch > 1:
            self.num_taken_over += 1
            logger.warning(
                "job taken over",
                extra=job_fields(claim.job, epoch=claim.epoch, worker=self._worker_id),
            )

        work = await self._prepare(claim, job_span, deadline_s)
        if work is None:
            return
        started = Started(
            claim.epoch,
            self._worker_id,
            num_prompt_tokens=work.num_prompt_tokens,
            num_truncated=work.num_truncated,
            max_tokens=work.max_tokens,
            trace=job_span.trace,
        )
        if work.answer is not None:
            self._outbox.add(claim, started)
            self._outbox.add(claim, work.answer)
            return
        # Computed only once the start is logged: only jobs whose start is in the log are suspected
        # if this worker dies.
        self._outbox.add(claim, started, on_logged=partial(self._engine.submit, work))

    async def _prepare(self, claim: Claim, job_span: JobSpan, deadline_s: float) -> Prepared | None:
        """Return a job as its engine has read it.

        Return None for a job that cannot be read. Then its end is queued, or it has left the
        ledger.
        """
        job = claim.job
        replayed: list[_Logged] = []
        try:
            if claim.last_index:
                replayed = await self._replay(claim, job_span)
            take = Take(
                claim.key,
                job.task,
                tenant=job.tenant,
                deadline_s=deadline_s,
                priority=job.priority,
                replayed_ids=tuple(tuple(choice.ids) for choice in replayed),
                replayed_texts=tuple(choice.text for choice in replayed),
            )
            # In a thread, because a long prompt must not delay the renewal of leases.
            work = await asyncio.to_thread(self._engine.prepare, take)
            _check_budget(job, work)
        except (RedisError, BrokerUnavailable, StorageUnavailable) as error:
            logger.warning("job not replayed", extra=job_fields(job, error=str(error)))
            # Its log or its files may be readable later. The lease lapses, and the job is taken again.
            self._ledger.close(claim, "not_replayed")
            return None
        except FleetError as error:
            self._outbox.add(claim, error.as_event())
            return None
        except Exception as error:
            # A tokenizer is foreign code: any error that it raises is that job's failure.
            logger.exception("job not encoded", extra=job_fields(job))
            failure = WorkerFailed(f"The request could not be tokenized: {error}")
            self._outbox.add(claim, failure.as_event())
            return None

        num_replayed = sum(len(choice.ids) for choice in replayed)
        job_span.encoded(work.num_prompt_tokens, num_replayed)
        return work

    async def _replay(self, claim: Claim, job_span: JobSpan) -> list[_Logged]:
        """Return the logged tokens and texts of each choice.

        Link `job_span` to the attempts that logged them.
        """
        replayed: list[_Logged] = []
        for _, event in await self._reader.read(claim.job.id):
            if isinstance(event, Started):
                job_span.follows(event.trace)
            elif isinstance(event, Tokens):
                while len(replayed) <= event.choice:
                    replayed.append(_Logged())
                replayed[event.choice].ids += event.ids
                replayed[event.choice].text += event.text
            elif isinstance(event, Progress):
                self._ledger.note_progress(claim, event)
        return replayed


def _check_budget(job: Job, work: Prepared) -> None:
    """Raise BudgetExceeded for a prompt of more tokens than are reserved for it."""
    most = job.most_prompt_tokens
    if most is not None and work.num_prompt_tokens > most:
        raise BudgetExceeded(
            f"The prompt has {work.num_prompt_tokens} tokens, and {most} of the key's budget are "
            "reserved for it."
        )


class Doorbells:
    """The waits for bells of several shards at once, each for at most `timeout_s`.

    A wait under way is not cancelled but goes on, so that no bell is lost. The shards of one server
    share one wait, and one connection.
    """

    def __init__(self, queue: WorkQueue, timeout_s: float) -> None:
        self._queue = queue
        self._timeout_s = timeout_s
        self._waits: dict[tuple[str, ...], asyncio.Task[str | None]] = {}

    async def wait(self, shards: Sequence[str]) -> list[str]:
        """Return the shards whose bell has rung, as soon as one has, or none after `timeout_s`."""
        for part in self._queue.together(sorted(shards)):
            key = tuple(part)
            if key not in self._waits:
                waiting = self._queue.await_bell(part, self._timeout_s)
                self._waits[key] = asyncio.create_task(waiting)
        await asyncio.wait(self._waits.values(), return_when=asyncio.FIRST_COMPLETED)
        return self._rung()

    async def pass_on(self) -> None:
        """Ring bells that have rung meanwhile for other workers, because this one has no room."""
        for shard in self._rung():
            await self._queue.ring(shard)

    async def close(self) -> None:
        """Let the waits end, and ring their bells again for other workers."""
        for task in self._waits.values():
            try:
                shard = await task
                if shard:
                    await self._queue.ring(shard)
            except RedisError:
                continue
        self._waits.clear()

    def drop(self) -> None:
        """Cancel all waits."""
        # A bell that rings at this moment is lost, but other workers check without a bell, too.
        for task in self._waits.values():
            task.cancel()
        self._waits.clear()

    def _rung(self) -> list[str]:
        """Return the shards whose bell has ended a wait. Raise RedisError where a wait failed."""
        done: list[asyncio.Task[str | None]] = []
        for key, task in list(self._waits.items()):
            if task.done():
                done.append(task)
                del self._waits[key]

        shards: list[str] = []
        for task in done:
            shard = task.result()
            if shard is not None:
                shards.append(shard)
        return shards
