"""What enters the worker: takes jobs until they fill the free places, one for each choice, as token ids to one engine.

The last job taken may have more choices than places are left: no other is taken until they have places too. Of jobs
that a lost worker had begun the logged tokens are replayed, never sampled again.
"""

import asyncio
import contextlib
import logging
import time

from redis.exceptions import RedisError

from shared.errors import FleetError, WorkerFailed
from shared.log import LogReader
from shared.messages import Generate, Started, Tokens
from shared.queue import Claim, WorkQueue
from worker.bells import Bells
from worker.engine import Engine
from worker.outbox import Outbox
from worker.request import Work
from worker.runners.base import Runner

logger = logging.getLogger("aios.intake")

_WAIT_S = 0.5
"""Between two looks for jobs of lost workers, for which no bell rings."""


class Intake:
    """One model's way in, from all `shards`."""

    def __init__(
        self,
        queue: WorkQueue,
        reader: LogReader,
        outbox: Outbox,
        engine: Engine,
        runner: Runner,
        *,
        worker_id: str,
        shards: tuple[str, ...],
    ) -> None:
        self._queue = queue
        self._reader = reader
        self._outbox = outbox
        self._engine = engine
        self._runner = runner
        self._worker_id = worker_id
        self._shards = list(shards)
        self._bells = Bells(queue, _WAIT_S)
        self._most = self._free = runner.spec.max_batch
        self._freed = asyncio.Event()
        self._should_empty = False

    def closed(self, claim: Claim) -> None:
        """A job of this intake has ended: its places are free."""
        self._free += claim.places
        self._freed.set()

    async def turn(self) -> None:
        """Take what can be taken now; returns after a short while without work."""
        if not self._has_room:
            await self._bells.pass_on()
            self._freed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._freed.wait(), _WAIT_S)
            return
        for shard in list(self._shards):
            if self._has_room and await self._take(shard):
                return
        await self._bells.wait(self._shards)

    async def close(self) -> None:
        """Wait for the last bell; what it rang for is passed on."""
        await self._bells.close()

    def drop(self) -> None:
        """There is no time for that."""
        self._bells.drop()

    @property
    def _has_room(self) -> bool:
        return self._free == self._most if self._should_empty else self._free > 0

    async def _take(self, shard: str) -> bool:
        """Whether a shard had anything. The others come first the next time."""
        asked_s = time.monotonic()
        taken = await self._queue.take(shard, self._free, is_empty=self._free == self._most)
        self._should_empty = taken.should_empty
        self._shards.remove(shard)
        self._shards.append(shard)
        for claim in taken.claims:
            self._outbox.open(claim)
            self._free -= claim.places
        for claim in taken.claims:
            await self._accept(claim, asked_s + claim.time_left_s)
        return bool(taken.claims)

    async def _accept(self, claim: Claim, deadline_s: float) -> None:
        """From a job in hand to a work for the engine. A long prompt must not hold up the renewal of leases."""
        task = claim.job.task
        if claim.epoch > 1:
            logger.warning("job %s taken over, epoch %d", claim.job.id, claim.epoch)
        try:
            replayed = await self._replay(claim) if claim.last_index else ()
            encoded = await asyncio.to_thread(self._runner.encode, task)
        except RedisError as error:
            logger.warning("job %s cannot be replayed now: %s", claim.job.id, error)
            self._outbox.close(claim)  # its lease lapses, and somebody takes it again
            return
        except FleetError as error:
            self._outbox.add(claim, error.as_event())
            return
        except Exception as error:  # the seam to a tokenizer: whatever it raises is that job's failure
            logger.exception("job %s cannot be encoded", claim.job.id)
            self._outbox.add(claim, WorkerFailed(f"The request could not be tokenized: {error}").as_event())
            return
        sampling = task.sampling if isinstance(task, Generate) else None
        max_tokens = encoded.max_tokens if sampling is not None and encoded.max_tokens < sampling.max_tokens else None
        num_prompt_tokens = len(encoded.prompt_ids)
        started = Started(claim.epoch, self._worker_id, num_prompt_tokens, encoded.num_truncated, max_tokens)
        if self._outbox.add(claim, started):
            self._engine.submit(Work(claim.key, encoded, sampling, replayed, claim.job.tenant, deadline_s))

    async def _replay(self, claim: Claim) -> tuple[tuple[int, ...], ...]:
        """The logged tokens of each choice."""
        said: list[list[int]] = []
        for _, event in await self._reader.read(claim.job.id):
            if isinstance(event, Tokens):
                said += [[] for _ in range(event.choice + 1 - len(said))]
                said[event.choice] += event.ids
        return tuple(map(tuple, said))
