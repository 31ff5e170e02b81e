"""What enters the worker: takes jobs until they fill the free places, one for each choice, as token ids to one engine.

The last job taken may have more choices than places are left: no other is taken until they have places too.

Looks for jobs whose owner's lease has lapsed as well; of those the logged tokens are replayed, never sampled again.
"""

import asyncio
import contextlib
import logging
import time

from redis.exceptions import RedisError

from shared.errors import FleetError, WorkerFailed
from shared.log import LogReader
from shared.messages import Generate, Started, Tokens
from shared.queue import Claim, JobQueue
from worker.engine import Engine
from worker.outbox import Outbox
from worker.request import Work
from worker.runners.base import Runner

logger = logging.getLogger("aios.intake")

_BLOCK_MS = 250


class Intake:
    """One model's way in. `priority` names the class stream it serves."""

    def __init__(
        self,
        queue: JobQueue,
        reader: LogReader,
        outbox: Outbox,
        engine: Engine,
        runner: Runner,
        *,
        model_id: str,
        worker_id: str,
        lease_s: float,
        priority: str = "default",
    ) -> None:
        self._queue = queue
        self._reader = reader
        self._outbox = outbox
        self._engine = engine
        self._runner = runner
        self._address = (model_id, priority, worker_id)
        self._lease_s = lease_s
        self._next_look_s = 0.0
        self._free = runner.spec.max_batch
        self._freed = asyncio.Event()

    def closed(self, claim: Claim) -> None:
        """A job of this intake has ended: its places are free."""
        self._free += claim.places
        self._freed.set()

    async def turn(self) -> None:
        """Take what can be taken now; returns after a short while without work."""
        if self._free <= 0:
            self._freed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._freed.wait(), _BLOCK_MS / 1000)
            return
        claims = await self._lapsed() or await self._queue.take(*self._address, self._free, _BLOCK_MS)
        for claim in claims:
            self._outbox.open(claim)
            self._free -= claim.places
        for claim in claims:
            await self._accept(claim)

    async def leave(self) -> None:
        """Be forgotten by the queue, unless something is still in this worker's hands."""
        await self._queue.forget_worker(*self._address)

    async def _lapsed(self) -> list[Claim]:
        """Jobs to take over, looked for twice in a lease."""
        if time.monotonic() < self._next_look_s:
            return []
        self._next_look_s = time.monotonic() + self._lease_s / 2
        claims = await self._queue.take_lapsed(*self._address, self._free, self._lease_s)
        for claim in claims:
            logger.warning("job %s taken over, epoch %d", claim.job.id, claim.epoch)
        return claims

    async def _accept(self, claim: Claim) -> None:
        """From a job in hand to a work for the engine. A long prompt must not hold up the renewal of leases."""
        task = claim.job.task
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
        worker_id, num_prompt_tokens = self._address[2], len(encoded.prompt_ids)
        started = Started(claim.epoch, worker_id, num_prompt_tokens, encoded.num_truncated, max_tokens)
        if self._outbox.add(claim, started):
            self._engine.submit(Work(claim.key, encoded, sampling, replayed, claim.job.tenant))

    async def _replay(self, claim: Claim) -> tuple[tuple[int, ...], ...]:
        """The logged tokens of each choice."""
        said: list[list[int]] = []
        for _, event in await self._reader.read(claim.job.id):
            if isinstance(event, Tokens):
                said += [[] for _ in range(event.choice + 1 - len(said))]
                said[event.choice] += event.ids
        return tuple(map(tuple, said))
