"""Clients of any tenant, which submit straight to the queue.

They use no front, since without keys every caller of a front has the tenant `public`.
"""

import asyncio
from collections.abc import Sequence

from redis.asyncio import Redis

from scripts.chaos.polling import came_true
from shared.events.log import LogReader
from shared.events.subscriptions import Subscriptions
from shared.messages import (
    Cancelled,
    Event,
    Generate,
    Priority,
    Sampling,
    Started,
    Tokens,
    decode_event,
)
from shared.queue import keys
from shared.queue.broker import Broker
from shared.queue.requests import Request, Requests
from shared.queue.submission import QueueLimits, Quota, Submissions, SubmitRequest

_FILLED_BY_S = 60.0


class QueueClients:
    """Clients of any tenant and class that submit jobs for one model.

    `slots` is the number of sequences that all workers of the fleet can run at the same time.
    """

    def __init__(self, redis: Redis, model: str, slots: int) -> None:
        broker = Broker(redis)
        self.model = model
        self.slots = slots
        self._redis = redis
        self._submissions = Submissions(broker)
        self._requests = Requests(broker)
        self._subscriptions = Subscriptions(redis)
        self._reader = LogReader(broker, self._subscriptions)

    async def close(self) -> None:
        await self._subscriptions.close()

    async def submit(
        self, tenant: str, count: int, num_tokens: int, priority: Priority = "default"
    ) -> Request:
        """Submit `count` jobs of `num_tokens` tokens each, all with different prompts."""
        sampling = Sampling(num_tokens, seed=7, temperature=0.8, ignore_eos=True)
        tasks = tuple(Generate(f"{number} of {tenant}", sampling) for number in range(count))
        request = SubmitRequest(
            self.model,
            tasks,
            tenant=tenant,
            priority=priority,
            queue_timeout_s=600,
            deadline_s=600,
            is_streamed=True,
        )
        request_id, jobs = self._submissions.jobs_of(request)
        return await self._submissions.submit(
            request,
            request_id,
            jobs,
            quota=Quota(),
            queue_limits=QueueLimits(max_jobs=100_000),
        )

    async def cancel(self, request: Request) -> None:
        """Cancel all jobs of a request."""
        await self._submissions.end(request.job_ids, Cancelled())

    async def num_in(self, request: Request, *states: str) -> int:
        """Return the number of jobs of a request that are in one of `states`."""
        num_jobs = 0
        for job in await self._requests.look(request):
            if job.state in states:
                num_jobs += 1
        return num_jobs

    async def waiting(self, priority: Priority) -> int:
        """Return the number of jobs of a class that wait in the queue."""
        depth = await self._submissions.depth(self.model)
        return depth.waiting[priority]

    async def filled(self) -> None:
        """Wait until all slots are taken. Raises RuntimeError if they are not after a minute."""

        async def is_full() -> bool:
            depth = await self._submissions.depth(self.model)
            return depth.running >= self.slots

        if not await came_true(is_full, _FILLED_BY_S, every_s=0.005):
            raise RuntimeError("the fleet never had all its slots taken")

    async def served(self, *requests: Request) -> list[int]:
        """Return the number of tokens that each request has had until now, prompts included."""
        # One transaction reads all logs, so that the requests are compared at the same moment.
        async with self._redis.pipeline(transaction=True) as pipe:
            for request in requests:
                for job_id in request.job_ids:
                    pipe.xrange(keys.log(job_id))
            logs = iter(await pipe.execute())

        totals = []
        for request in requests:
            num_tokens = 0
            for _ in request.job_ids:
                num_tokens += _num_tokens(next(logs))
            totals.append(num_tokens)
        return totals

    async def first_token(self, request: Request) -> None:
        """Wait until the first job of a request has generated a token."""
        async for _, event in self._reader.follow(request.job_ids[0]):
            if isinstance(event, Tokens):
                return

    async def texts(self, request: Request) -> list[str]:
        """Wait until the jobs of a request have ended, and return their texts."""
        return await asyncio.gather(*[self._text(job_id) for job_id in request.job_ids])

    async def _text(self, job_id: str) -> str:
        parts = []
        async for _, event in self._reader.follow(job_id):
            if isinstance(event, Tokens):
                parts.append(event.text)
        return "".join(parts)


def _num_tokens(log: Sequence[tuple[bytes, dict[bytes, bytes]]]) -> int:
    total = 0
    for _, fields in log:
        total += _cost(decode_event(fields[b"e"]))
    return total


def _cost(event: Event) -> int:
    """Return the number of tokens of an event: those of the prompt, or those generated."""
    match event:
        case Started():
            return event.num_prompt_tokens
        case Tokens():
            return len(event.ids)
        case _:
            return 0
