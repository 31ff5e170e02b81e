"""Both ends of the queue for tests: what a front submits, and what workers take and say, on one
Redis."""

from redis.asyncio import Redis

from shared.broker import Broker
from shared.log import Append, LogReader, LogWriter
from shared.messages import Done, Event, Generate, Job, Priority, Sampling, Task
from shared.queue import Claim, QueuePolicy, WorkQueue
from shared.requests import Request, Requests
from shared.submission import QueueLimits, Quota, Submissions, SubmitRequest
from tests.polling import ALL_DAY_S

DONE = Done("stop", 1, 1)
SAY_HI = Generate("hi", Sampling(max_tokens=4, seed=0))


class Desk:
    """`lease_s` 0: what is taken has lapsed at once. Leases last all day where none is named."""

    def __init__(
        self, redis: Redis | Broker, model: str = "m", *, shards: int = 1, **policy: float
    ) -> None:
        self.broker = redis if isinstance(redis, Broker) else Broker(redis, shards)
        self.submissions, self.requests = Submissions(self.broker), Requests(self.broker)
        self.writer, self.reader = LogWriter(self.broker), LogReader(self.broker)
        self.model = model
        self.policy = {"lease_s": ALL_DAY_S, **policy}

    async def submit(
        self,
        *tasks: Task,
        quota: Quota | None = None,
        max_jobs: int = 100,
        max_bytes: int = 0,
        **order: object,
    ) -> list[Job]:
        """One request with a job for each task (one if none is named)."""
        return (
            await self.request(*tasks, quota=quota, max_jobs=max_jobs, max_bytes=max_bytes, **order)
        )[1]

    async def request(
        self,
        *tasks: Task,
        quota: Quota | None = None,
        max_jobs: int = 100,
        max_bytes: int = 0,
        **order: object,
    ) -> tuple[Request, list[Job]]:
        made, quota = SubmitRequest(self.model, tasks or (SAY_HI,), **order), quota or Quota()  # type: ignore[arg-type]
        request_id, jobs = self.submissions.jobs_of(made)
        return await self.submissions.submit(
            made, request_id, jobs, quota, QueueLimits(max_jobs, max_bytes)
        ), jobs

    def queue(self, worker: str = "w1", fingerprint: str = "f") -> WorkQueue:
        policy = QueuePolicy(**self.policy)  # type: ignore[arg-type]
        return WorkQueue(
            self.broker, policy, model=self.model, worker=worker, fingerprint=fingerprint
        )

    async def take(
        self,
        places: int = 1,
        worker: str = "w1",
        *,
        fingerprint: str = "f",
        is_empty: bool = True,
        priorities: tuple[Priority, ...] = ("interactive", "default", "bulk"),
    ) -> list[Claim]:
        queue = self.queue(worker, fingerprint)
        taken = [
            await queue.take(name, places, is_empty=is_empty, priorities=priorities)
            for name in self.broker.shards
        ]
        return [claim for some in taken for claim in some.claims]

    async def say(self, claim: Claim, *events: Event, after: int | None = None) -> bool:
        """As the owner of the claim; False when it is no longer that."""
        index = claim.last_index if after is None else after
        [landed] = await self.writer.append([Append(claim.job, claim.epoch, index, events)])
        return landed

    async def events(self, job: Job) -> list[Event]:
        return [event for _, event in await self.reader.read(job.id)]

    async def counts(self) -> tuple[int, int]:
        """Jobs that wait, and jobs in workers' hands."""
        depth = await self.submissions.depth(self.model)
        return depth.queued, depth.running
