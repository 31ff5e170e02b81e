"""The work queue as a front sees it: submit requests, and end them.

Only the scripts in `lua/` change the state of a job. A request is one job or several on one shard,
and either all of them are queued or none. Limits are those of the whole fleet: with a single shard
the script that queues checks them, with several `shared.queue.reservations` does so before.
"""

import asyncio
import hashlib
import math
import secrets
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

from shared.access import Budget
from shared.errors import (
    BrokerUnavailable,
    BudgetExceeded,
    FleetError,
    IdempotencyConflict,
    InvalidRequest,
    JobNotFound,
    OverQuota,
    QueueFull,
    TooSlow,
)
from shared.messages import PRIORITIES, STATE_OF, Cancelled, Failed, Job, Priority, Task, encode
from shared.queue import keys
from shared.queue.broker import Broker
from shared.queue.requests import Request, Requests
from shared.queue.reservations import Reservations
from shared.queue.script import Script, raw
from shared.tasks.task_table import cost_of, slots_of
from shared.tasks.token_bounds import most_prompt_tokens, most_tokens
from shared.telemetry.tracing import NO_TRACE, Trace

_OPEN = (b"parked", b"queued", b"running")
_TOO_MUCH = {
    b"depth": "The request takes {requested} places in the queue, which has {limit}.",
    b"bytes": "The request has {requested} bytes for the queue, which holds {limit}.",
    b"concurrency": "The request opens {requested} jobs, and at most {limit} may be open.",
    b"budget": "The request may use {requested} tokens, and the budget of the key is {limit}.",
}
"""Messages for a request that exceeds a limit by itself, by the limit. Waiting does not help it."""
# The number of keys that one call of SCAN looks at. Redis serves nobody else meanwhile.
_SCAN_COUNT = 1000


@dataclass(frozen=True)
class Quota:
    """The most that a tenant may do at once, in the whole fleet. 0 is no limit.

    `rate_per_s` counts requests; `burst` of them may come at once after a rest.
    """

    concurrency: int = 0
    rate_per_s: float = 0.0
    burst: int = 1


@dataclass(frozen=True)
class QueueLimits:
    """The most that may wait for one model in the whole fleet: jobs of one class, and bytes.

    0 bytes is no limit.
    """

    max_jobs: int
    max_bytes: int = 0


@dataclass(frozen=True)
class Key:
    """An idempotency key, which is the caller's own text.

    Requests of one tenant with the same key and the same `body` are one request.
    """

    text: str
    body: bytes = b""

    @property
    def name(self) -> str:
        return _hashed(self.text.encode())

    @property
    def digest(self) -> str:
        return _hashed(self.body)


@dataclass(frozen=True)
class SubmitRequest:
    """A request on its way into the queue. Times are seconds from now.

    The task with index i waits until the one with index `leaders[i]` has ended, and is never done
    if that one settles their question; None is for a task that does not wait. Without `leaders` no
    task waits. A request that `is_urgent` is refused when the work before it would take longer than
    its deadline. `follower_id` is a follower from the start; "" is none. `trace` is as in `Job`.
    `experiment` is the one of which the model is an arm, "" for none. `api_key` is the id of the key
    that the request came with, "" for none, and `budget` that of this key. It reserves tokens for
    prompts that fill the model's `context_window` at most; 0 is not known. The end of a request that
    `has_webhook` is an event for the tenant's webhooks.
    """

    model: str
    tasks: tuple[Task, ...]
    tenant: str = "public"
    priority: Priority = "default"
    queue_timeout_s: float = 60.0
    deadline_s: float = 300.0
    is_urgent: bool = False
    request_id: str = ""
    is_streamed: bool = False
    key: Key | None = None
    record: bytes = b""
    follower_id: str = ""
    trace: Trace = NO_TRACE
    leaders: tuple[int | None, ...] = ()
    experiment: str = ""
    api_key: str = ""
    budget: Budget | None = None
    context_window: int = 0
    has_webhook: bool = False


@dataclass(frozen=True)
class Depth:
    """Jobs waiting to be taken, by class, and jobs taken and not yet ended."""

    waiting: dict[Priority, int]
    running: int

    @property
    def queued(self) -> int:
        return sum(self.waiting.values())


class Submissions:
    """Submits requests, finds them again by their keys, and ends their jobs.

    An idempotency key is remembered for `key_ttl_s`; an ended request can be read for
    `result_ttl_s`.
    """

    def __init__(
        self, broker: Broker, *, result_ttl_s: float = 600.0, key_ttl_s: float = 86_400.0
    ) -> None:
        self._broker = broker
        self._requests = Requests(broker, result_ttl_s=result_ttl_s)
        self.reservations = Reservations(broker)
        self.submit_script = Script(broker, "submit", needs=("limits",))
        self._end = Script(broker, "end")
        self._ttl_ms = int(result_ttl_s * 1000)
        self._key_ttl_ms = int(key_ttl_s * 1000)

    def jobs_of(self, submit_request: SubmitRequest) -> tuple[str, list[Job]]:
        """Return the id of the request that `submit_request` becomes, and its jobs."""
        shard = self._shard(submit_request.tenant, submit_request.key)
        jobs = []
        for task in submit_request.tasks:
            most_prompt = None
            if submit_request.budget is not None:
                most_prompt = most_prompt_tokens(task, submit_request.context_window)
            job = Job(
                id=keys.new_id(shard),
                model=submit_request.model,
                task=task,
                tenant=submit_request.tenant,
                priority=submit_request.priority,
                request_id=submit_request.request_id,
                is_streamed=submit_request.is_streamed,
                trace=submit_request.trace,
                most_prompt_tokens=most_prompt,
            )
            jobs.append(job)
        return keys.new_id(shard), jobs

    async def submit(
        self,
        submit_request: SubmitRequest,
        request_id: str,
        jobs: Sequence[Job],
        quota: Quota,
        queue_limits: QueueLimits,
    ) -> Request:
        """Queue all `jobs`, or find the request that came before with the same idempotency key.

        Raise QueueFull, OverQuota, BudgetExceeded or TooSlow, each with the time after which to try
        again, IdempotencyConflict, InvalidRequest for a request that exceeds a limit by itself, and
        BrokerUnavailable if Redis took too long.
        """
        limits: dict[str, Any] = {
            "max_jobs": queue_limits.max_jobs,
            "max_bytes": queue_limits.max_bytes,
            "concurrency": quota.concurrency,
            "rate": quota.rate_per_s,
            "burst": quota.burst,
            "is_urgent": submit_request.is_urgent,
        }
        budget = submit_request.budget
        if budget is not None:
            limits["budget"] = {
                "key": submit_request.api_key,
                "tokens": budget.tokens,
                "starts_ms": budget.starts_ms(datetime.now(UTC)),
            }
        about = {
            "model": submit_request.model,
            "class": submit_request.priority,
            "tenant": submit_request.tenant,
            "classes": PRIORITIES,
            "deadline_ms": int(submit_request.deadline_s * 1000),
        }
        specs = [encode(job) for job in jobs]
        costs = [cost_of(job.task) for job in jobs]
        tokens = [most_tokens(job.task, job.most_prompt_tokens or 0) for job in jobs]
        leaders = _leaders(submit_request, jobs)

        # With several shards the limits are counted apart, before the request is queued.
        is_reserved = self.reservations.are_needed
        if is_reserved:
            needs = []
            for job, cost, most, spec, leader in zip(
                jobs, costs, tokens, specs, leaders, strict=True
            ):
                # The cost of a job that is parked counts only once it is in line.
                cost_now = 0 if leader else cost
                need = {"id": job.id, "cost": cost_now, "tokens": most, "bytes": len(spec)}
                needs.append(need)
            refusal = await self.reservations.reserve(request_id, jobs=needs, **about, **limits)
            if refusal is not None:
                # The same request may have come before: it is found although there is no room.
                known = await self.known(submit_request.tenant, submit_request.key)
                if known is not None:
                    return known
                raise _refusal(quota, refusal[1:])

        key = submit_request.key
        entries = []
        for job, cost, most, spec, leader in zip(jobs, costs, tokens, specs, leaders, strict=True):
            entry = {
                "id": job.id,
                "slots": slots_of(job.task),
                "cost": cost,
                "tokens": most,
                "spec": raw(spec),
                "leader": leader,
            }
            entries.append(entry)
        answer = await self.submit_script.call(
            keys.shard_of(request_id),
            request={
                "id": request_id,
                "key": key.name if key else "",
                "body": key.digest if key else "",
                "key_ttl_ms": self._key_ttl_ms,
                "record": raw(submit_request.record),
                "follower_id": submit_request.follower_id,
                "experiment": submit_request.experiment,
                "api_key": submit_request.api_key,
            },
            jobs=entries,
            queue_ms=int(submit_request.queue_timeout_s * 1000),
            ttl_ms=self._ttl_ms,
            is_reserved=is_reserved,
            has_budget=budget is not None,
            has_webhook=submit_request.has_webhook,
            **about,
            # The script looks at no limits where they have been reserved.
            **({} if is_reserved else limits),
        )
        if is_reserved and answer[0] == b"queued":
            self.reservations.confirm(request_id)
        elif is_reserved:
            await self.reservations.void(request_id)

        if answer[0] == b"queued":
            job_ids = tuple(job.id for job in jobs)
            return Request(request_id, submit_request.tenant, job_ids, submit_request.record)
        return await self._not_queued(answer, submit_request.tenant, quota)

    async def _not_queued(self, answer: Sequence[Any], tenant: str, quota: Quota) -> Request:
        """Return the request that came before with the same key, as `submit.lua` answers.

        Raise the error of any other answer.
        """
        match answer[0]:
            case b"known":
                return await self._known(answer[1].decode(), tenant)
            case b"conflict":
                raise _conflict("This key came before with another body.")
            case b"void":
                raise BrokerUnavailable("Redis took too long to take the request.", retry_after_s=1)
            case _:
                raise _refusal(quota, answer[1:])

    async def known(self, tenant: str, key: Key | None) -> Request | None:
        """Return the request that came before with this key, None if none did.

        Raise IdempotencyConflict if it had another body, or has expired.
        """
        if key is None:
            return None
        shard = self._shard(tenant, key)
        reading = self._broker.client(shard).hmget(
            keys.idempotency(shard, tenant, key.name), ["body", "request"]
        )
        body, request_id = await cast(Awaitable[list[bytes | None]], reading)
        if body is None or request_id is None:
            return None
        if body.decode() != key.digest:
            raise _conflict("This key came before with another body.")
        return await self._known(request_id.decode(), tenant)

    async def forget_soon(self, requests: Sequence[tuple[Key, Request]], *, lives_s: float) -> None:
        """Let requests that are done, and whose answers are kept elsewhere, expire with their keys."""
        lives_ms = int(lives_s * 1000)
        by_shard: dict[str, list[str]] = {}
        for key, request in requests:
            shard = keys.shard_of(request.id)
            names = by_shard.setdefault(shard, [])
            names.append(keys.request(request.id))
            names.append(keys.idempotency(shard, request.tenant, key.name))
            for job_id in request.job_ids:
                names += [keys.job(job_id), keys.log(job_id)]
        for shards in await self._broker.by_server(list(by_shard)):
            pipe = self._broker.client(shards[0]).pipeline(transaction=False)
            for shard in shards:
                for name in by_shard[shard]:
                    pipe.pexpire(name, lives_ms)
            await pipe.execute()

    async def _known(self, request_id: str, tenant: str) -> Request:
        """Return the request that a key stands for. Raise IdempotencyConflict if it has expired."""
        try:
            return await self._requests.find(request_id, tenant)
        except JobNotFound:
            raise _conflict(
                "The request with this key has ended, and its result has expired."
            ) from None

    async def end(
        self,
        jobs: Sequence[Job] | Sequence[str],
        event: Failed | Cancelled,
        *,
        if_waiting: bool = False,
        left: tuple[str, str] | None = None,
    ) -> int:
        """End jobs of one request from outside, whatever their phase.

        Return how many had not ended before. `if_waiting` spares those that run. `left` is the
        request id and the id of a follower who has left. Then no job is ended as long as the
        request has other followers.
        """
        ids = [job if isinstance(job, str) else job.id for job in jobs]
        if not ids:
            return 0
        request_id = ""
        follower_id = ""
        if left is not None:
            request_id, follower_id = left
        ended = await self._end.call(
            keys.shard_of(ids[0]),
            jobs=ids,
            state=STATE_OF[type(event)],
            event=raw(encode(event)),
            ttl_ms=self._ttl_ms,
            if_waiting=if_waiting,
            request=request_id,
            follower_id=follower_id,
        )
        return sum(ended)

    async def open_jobs(self) -> list[str]:
        """Return the ids of all jobs in Redis that have not ended, whoever submitted them."""
        open_ids: list[str] = []
        for client in await self._broker.nodes():
            async for name in client.scan_iter(match=keys.pattern("open"), count=_SCAN_COUNT):
                ids = [job_id.decode() for job_id in await client.zrange(name, 0, -1)]
                pipe = client.pipeline(transaction=False)
                for job_id in ids:
                    pipe.hget(keys.job(job_id), "state")
                states = await pipe.execute()
                for job_id, state in zip(ids, states, strict=True):
                    if state in _OPEN:
                        open_ids.append(job_id)
        return open_ids

    async def end_all(self, job_ids: Sequence[str], event: Failed | Cancelled) -> int:
        """End jobs of any requests, as `end` does. Return how many had not ended before."""
        by_shard: dict[str, list[str]] = {}
        for job_id in job_ids:
            by_shard.setdefault(keys.shard_of(job_id), []).append(job_id)
        ended = 0
        for shard_ids in by_shard.values():
            ended += await self.end(shard_ids, event)
        return ended

    async def depth(self, model: str) -> Depth:
        """Return how many jobs of a model wait, by class, and how many are in workers' hands."""

        async def read(shards: Sequence[str]) -> list[Any]:
            pipe = self._broker.client(shards[0]).pipeline(transaction=False)
            for shard in shards:
                pipe.hmget(keys.depth(shard, model), [f"jobs:{name}" for name in PRIORITIES])
                pipe.zcard(keys.leases(shard, model))
            return await pipe.execute()

        parts = self._broker.together(self._broker.shards)
        waiting: dict[Priority, int] = {name: 0 for name in PRIORITIES}
        running = 0
        for answers in await asyncio.gather(*[read(part) for part in parts]):
            # Each shard answers twice: its counts by class, and its number of leases.
            for counts in answers[::2]:
                for name, count in zip(PRIORITIES, counts, strict=True):
                    waiting[name] += int(count or 0)
            running += sum(answers[1::2])
        return Depth(waiting, running)

    def _shard(self, tenant: str, key: Key | None) -> str:
        """Return a shard at random, but for one idempotency key of a tenant always the same."""
        if key is not None:
            return keys.shard_for(f"{tenant}/{key.text}", len(self._broker.shards))
        return secrets.choice(self._broker.shards)


def _leaders(submit_request: SubmitRequest, jobs: Sequence[Job]) -> list[str]:
    """Return for each job the id of the one that it waits for, "" for none."""
    if not submit_request.leaders:
        return [""] * len(jobs)
    return ["" if leader is None else jobs[leader].id for leader in submit_request.leaders]


def _hashed(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _conflict(words: str) -> IdempotencyConflict:
    return IdempotencyConflict(words, field="Idempotency-Key")


def _refusal(quota: Quota, values: Sequence[Any]) -> FleetError:
    """Return the error of a refused request, from the values of `submit.lua` or `reserve.lua`.

    The request takes `requested`, and `number` of `limit` are taken. It may fit later, unless it
    takes more than the whole limit.
    """
    reason, retry_ms, number, limit, requested = values
    if 0 < limit < requested and reason in _TOO_MUCH:
        words = _TOO_MUCH[reason].format(limit=limit, requested=requested)
        return InvalidRequest(f"{words} Ask for less at once.")
    retry_after_s = 5
    if retry_ms:
        retry_after_s = min(60, max(1, math.ceil(retry_ms / 1000)))
    match reason:
        case b"depth":
            words = (
                f"The queue is full: {number} of {limit} places are taken, and the request "
                f"takes {requested}."
            )
            return QueueFull(words, retry_after_s=retry_after_s)
        case b"bytes":
            words = (
                f"The queue is full: {number} of {limit} bytes wait, and the request has "
                f"{requested}."
            )
            return QueueFull(words, retry_after_s=retry_after_s)
        case b"concurrency":
            words = (
                f"{number} of the {limit} jobs that may be open are open, and the request opens "
                f"{requested} more."
            )
            return OverQuota(words, retry_after_s=retry_after_s)
        case b"budget":
            words = (
                f"{number} of the {limit} tokens of the key's budget are used, or reserved for "
                f"open requests, and the request may use {requested}."
            )
            # Not capped: a budget has room again when its period ends. It may be earlier, where
            # open requests use less than is reserved for them.
            return BudgetExceeded(words, retry_after_s=max(1, math.ceil(retry_ms / 1000)))
        case b"rate":
            return OverQuota(
                f"More than {quota.rate_per_s:g} requests a second.", retry_after_s=retry_after_s
            )
        case _:
            words = (
                f"The wait is about {number / 1000:.1f} s, and the deadline {limit / 1000:.1f} s."
            )
            return TooSlow(words, retry_after_s=retry_after_s)
