"""Callers of any tenant and class, straight at the queue: every caller of a front is `public`."""

import asyncio
from collections.abc import Sequence

from redis.asyncio import Redis

from scripts.chaos.polling import came_true
from shared import keys
from shared.broker import Broker
from shared.log import LogReader
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
from shared.requests import Request, Requests
from shared.submission import QueueLimits, Quota, Submissions, SubmitRequest
from shared.subscriptions import Subscriptions

_FILLED_BY_S = 60.0


class QueueClients:
    """Callers of any tenant and class. The fleet has `places` for sequences, in all its workers
    together."""

    def __init__(self, redis: Redis, model: str, places: int) -> None:
        broker = Broker(redis)
        self.model, self.places = model, places
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
        """`count` jobs that each say `num_tokens`; the texts differ."""
        sampling = Sampling(num_tokens, seed=7, temperature=0.8, ignore_eos=True)
        tasks = tuple(Generate(f"{number} of {tenant}", sampling) for number in range(count))
        order = SubmitRequest(
            self.model,
            tasks,
            tenant,
            priority,
            queue_timeout_s=600,
            deadline_s=600,
            is_streamed=True,
        )
        request_id, jobs = self._submissions.jobs_of(order)
        return await self._submissions.submit(
            order, request_id, jobs, Quota(), QueueLimits(max_jobs=100_000)
        )

    async def call_off(self, request: Request) -> None:
        await self._submissions.end(request.job_ids, Cancelled())

    async def num_in(self, request: Request, *states: str) -> int:
        """How many of its jobs are in one of `states`."""
        return sum(job.state in states for job in await self._requests.look(request))

    async def waiting(self, priority: Priority) -> int:
        return (await self._submissions.depth(self.model)).waiting[priority]

    async def filled(self) -> None:
        """Return when every place is taken."""

        async def is_full() -> bool:
            return (await self._submissions.depth(self.model)).running >= self.places

        if not await came_true(is_full, _FILLED_BY_S, every_s=0.005):
            raise RuntimeError("the fleet never had all its places taken")

    async def served(self, *requests: Request) -> list[int]:
        """The tokens that have been spent on each until now, those of prompts too."""
        async with self._redis.pipeline(transaction=True) as pipe:
            for request in requests:
                for job_id in request.job_ids:
                    pipe.xrange(keys.log(job_id))
            logs = iter(await pipe.execute())
        return [sum(_num_tokens(next(logs)) for _ in request.job_ids) for request in requests]

    async def first_token(self, request: Request) -> None:
        """Return when its first job has said something."""
        async for _, event in self._reader.follow(request.job_ids[0]):
            if isinstance(event, Tokens):
                return

    async def texts(self, request: Request) -> list[str]:
        """What its jobs say in the end."""
        return await asyncio.gather(*map(self._text, request.job_ids))

    async def _text(self, job_id: str) -> str:
        return "".join(
            [
                event.text
                async for _, event in self._reader.follow(job_id)
                if isinstance(event, Tokens)
            ]
        )


def _num_tokens(log: Sequence[tuple[bytes, dict[bytes, bytes]]]) -> int:
    events = (decode_event(fields[b"e"]) for _, fields in log)
    return sum(_cost(event) for event in events)


def _cost(event: Event) -> int:
    match event:
        case Started():
            return event.num_prompt_tokens
        case Tokens():
            return len(event.ids)
        case _:
            return 0
