"""Follow the jobs of a request to their ends, and end those that nobody waits for any more.

Every way out of `Dispatcher.follow` decides what becomes of jobs that have not ended by themselves.
They are ended in Redis when their time has run out, a sibling has failed, or the caller has left
and wanted them to end. They go on when this front drains, or when the caller will ask again.

This module knows no dialect, and of HTTP only the ASGI `receive`.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, MutableMapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from api.access.caller import Caller
from api.access.revocations import Revocations
from api.http.errors import ClientDisconnected
from api.http.request_state import RequestState
from api.stream.cancellation import CancellationQueue
from api.stream.request_events import Outcome, RequestEvents
from api.stream.stopwatch import Stopwatch
from api.submit.request_record import SubmittedWork
from shared.errors import (
    ClientGone,
    DeadlineExceeded,
    Draining,
    FleetError,
    Forbidden,
    QueueTimeout,
    Unauthorized,
)
from shared.events.log import LogReader
from shared.messages import Cancelled, Event
from shared.queue.broker import UNAVAILABLE
from shared.telemetry.metrics import Metrics

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

_REDIS_AWAY_S = 0.5
_LEFT = (ClientDisconnected, Unauthorized, Forbidden)
"""Errors by which a caller leaves: it hung up, or may not call any more. Its jobs are unharmed."""
_LATE_S = 1.0  # time for a worker to end a job at its deadline with what it has


class StillRunning(Exception):
    """The caller has waited as long as it wanted to."""


def _now_s() -> float:
    return asyncio.get_running_loop().time()


@dataclass(frozen=True)
class RequestFollower:
    """One who follows a request.

    `queue_s` and `deadline_s` are seconds from `since_s` on, which is now. `follower_id` is "" if
    its leaving does not end the request. `is_first` holds in the front that took the request, so
    that each job is counted in the metrics once. `cache` is "hit" for an answer that was given
    before, "miss" where none was found, "" where none was looked for. `watch` takes the times of
    the jobs, in the front that took the request.
    """

    work: SubmittedWork
    queue_s: float
    deadline_s: float
    follower_id: str = ""
    is_first: bool = True
    cache: str = ""
    watch: Stopwatch | None = None
    caller: Caller | None = None
    since_s: float = field(default_factory=_now_s)

    def note_in(self, request_state: RequestState) -> None:
        """Note the work in the state of the caller's request, for its log line.

        Times are noted only by the front that took the request.
        """
        request_state.x_job_id = self.work.id
        request_state.job_ids = self.work.request.job_ids
        request_state.model = self.work.record.model
        request_state.assignment = self.work.assignment
        request_state.watch = self.watch


class Dispatcher:
    """Follows requests, for their callers or for nobody."""

    def __init__(
        self,
        cancellations: CancellationQueue,
        log: LogReader,
        metrics: Metrics,
        revocations: Revocations,
        *,
        disconnect_grace_s: float,
    ) -> None:
        self._cancellations = cancellations
        self._log = log
        self._revocations = revocations
        self._metrics = metrics
        self._disconnect_grace_s = disconnect_grace_s
        self._followed: dict[RequestEvents, str] = {}
        self._drained: Callable[[str], FleetError] | None = None
        self._background: set[asyncio.Task[None]] = set()

    async def gather(
        self, follower: RequestFollower, receive: Receive, wait_s: float | None = None
    ) -> list[Outcome]:
        """Return the outcome of each job, in order.

        Raise the FleetError of the first that fails, and StillRunning after `wait_s`.
        """
        async with self.follow(follower, receive, wait_s) as events:
            return await events.outcomes()

    @asynccontextmanager
    async def follow(
        self, follower: RequestFollower, receive: Receive | None, wait_s: float | None = None
    ) -> AsyncIterator[RequestEvents]:
        """Follow the jobs from the beginning for the caller behind `receive`, or for nobody.

        The error that leaves the body decides what becomes of jobs that have not ended.
        """
        events = RequestEvents(follower.work.request.job_ids, follower.work.record.n)
        timers = self._set_timers(events, follower, wait_s)
        watchers = self._watch(events, follower, receive)
        self._followed[events] = follower.work.id
        if self._drained is not None:
            events.fail(self._drained(follower.work.id))
        error: BaseException | None = None
        try:
            yield events
        except BaseException as caught:
            error = caught
            raise
        finally:
            for timer in timers:
                timer.cancel()
            del self._followed[events]
            # This comes before the only await, which may be cancelled.
            self._leave(events, follower, error)
            for watcher in watchers:
                watcher.cancel()
            await asyncio.gather(*watchers, return_exceptions=True)

    def follow_in_background(self, follower: RequestFollower) -> None:
        """Follow a request that nobody waits for.

        Somebody must end its jobs when their time is over, or when a sibling has failed.
        """
        task = asyncio.create_task(
            self._follow_in_background(replace(follower, follower_id="", caller=None)),
            name="mind-request",
        )
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    @property
    def num_followed(self) -> int:
        """The number of requests that are followed, for callers or for nobody."""
        return len(self._followed)

    @property
    def num_in_background(self) -> int:
        """The number of followed requests that nobody waits for."""
        return len(self._background)

    def drain(self, error: Callable[[str], FleetError] | None = None) -> None:
        """Send all callers that wait away, and all that come from now on.

        `error` makes the error of each from the id of its request. By default it sends the caller
        to another front: its jobs go on.
        """
        self._drained = error or _draining
        for events, request_id in self._followed.items():
            events.fail(self._drained(request_id))

    async def close(self) -> None:
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._cancellations.close()

    async def _follow_in_background(self, follower: RequestFollower) -> None:
        with suppress(FleetError):
            async with self.follow(follower, None) as events:
                async for _ in events.progress():
                    pass

    def _leave(
        self, events: RequestEvents, follower: RequestFollower, error: BaseException | None
    ) -> None:
        """Decide what becomes of the open jobs, after following them ended with `error`."""
        open_ids = list(events.unfinished.values())
        left = (follower.work.id, follower.follower_id)
        if isinstance(error, Draining | StillRunning):
            if follower.follower_id:
                self._cancellations.leave(*left)
            return

        if isinstance(error, DeadlineExceeded):
            self._cancellations.cancel(open_ids, error.as_event())
        elif isinstance(error, FleetError) and not isinstance(error, _LEFT):
            # The whole answer cannot come any more, whoever else follows it.
            self._cancellations.cancel(open_ids, Cancelled("sibling"))
        elif follower.follower_id:
            grace_s = 0.0
            if follower.work.record.on_disconnect == "grace":
                grace_s = self._disconnect_grace_s
            self._cancellations.cancel(open_ids, Cancelled("client"), after_s=grace_s, left=left)

        if follower.is_first and open_ids and isinstance(error, _LEFT):
            # Whether its jobs end, and how, is not the caller's to say: others may follow them.
            self.follow_in_background(follower)
        elif follower.is_first:
            self._count(events, follower, error)

    def _count(
        self, events: RequestEvents, follower: RequestFollower, error: BaseException | None
    ) -> None:
        """Count the jobs by their results, and the tokens."""
        model = follower.work.record.model
        has_failed = any(result != "done" for result in events.results.values())
        # The code of jobs without a result. Where a job has failed, its siblings were cancelled;
        # else `error` ended all of them.
        otherwise = ClientGone.code
        if isinstance(error, FleetError) and not has_failed:
            otherwise = error.code
        for job in range(len(follower.work.request.job_ids)):
            self._metrics.jobs.labels(model, events.results.get(job, otherwise)).inc()
        self._metrics.prompt_tokens.labels(model).inc(events.usage.prompt_tokens)
        self._metrics.cached_prompt_tokens.labels(model).inc(events.usage.cached_prompt_tokens)
        self._metrics.completion_tokens.labels(model).inc(events.usage.completion_tokens)

    def _set_timers(
        self, events: RequestEvents, follower: RequestFollower, wait_s: float | None
    ) -> list[asyncio.TimerHandle]:
        loop = asyncio.get_running_loop()
        late = DeadlineExceeded("The request took longer than its deadline allows.")
        late_at_s = follower.since_s + follower.deadline_s + _LATE_S
        timers = [loop.call_at(late_at_s, events.fail, late)]
        if wait_s is not None:
            timers.append(loop.call_later(wait_s, events.fail, StillRunning()))
        return timers

    def _watch(
        self, events: RequestEvents, follower: RequestFollower, receive: Receive | None
    ) -> list["asyncio.Task[None]"]:
        """Start a task for each job, and those that notice when the caller or the time is gone.

        Whatever they raise fails `events`.
        """
        coroutines: list[Coroutine[Any, Any, None]] = []
        for job, job_id in events.unfinished.items():
            coroutines.append(self._follow_job(job, job_id, events, follower.watch))
        coroutines.append(self._expire(events, follower.since_s + follower.queue_s))
        if receive is not None:
            coroutines.append(_notice_disconnect(events, receive))
        if follower.caller is not None and self._revocations.concerns(follower.caller):
            coroutines.append(
                self._notice_revocation(events, follower.caller, follower.work.record.model)
            )
        watchers = [asyncio.create_task(coroutine) for coroutine in coroutines]
        for watcher in watchers:
            watcher.add_done_callback(lambda task: _pass_on(task, events))
        return watchers

    async def _follow_job(
        self, job: int, job_id: str, events: RequestEvents, watch: Stopwatch | None
    ) -> None:
        """Hand over the events of a job as they come.

        While Redis is away, wait for it, then go on behind the last event.
        """
        after = 0

        def deliver(cursor: int, event: Event) -> None:
            nonlocal after
            after = cursor
            events.put(job, cursor, event)
            if watch is not None:
                watch.note(job, cursor, event)

        while True:
            try:
                await self._log.deliver(job_id, deliver, after)
                return
            except UNAVAILABLE:
                await asyncio.sleep(_REDIS_AWAY_S)

    async def _notice_revocation(self, events: RequestEvents, caller: Caller, model: str) -> None:
        events.fail(await self._revocations.wait(caller, model))

    async def _expire(self, events: RequestEvents, at_s: float) -> None:
        """End the jobs that no worker has taken when the time to queue is over.

        Workers do so too, but there may be none left.
        """
        await asyncio.sleep(max(0.0, at_s - _now_s()))
        event = QueueTimeout("No worker took the request in time.").as_event()
        await self._cancellations.expire(list(events.unstarted.values()), event)


def _draining(request_id: str) -> Draining:
    return Draining(
        "This server is shutting down; the job goes on.", retry_after_s=1, job_id=request_id
    )


async def _notice_disconnect(events: RequestEvents, receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    events.fail(ClientDisconnected("The client has left."))


def _pass_on(task: "asyncio.Task[None]", events: RequestEvents) -> None:
    if task.cancelled():
        return
    error = task.exception()
    if error is not None:
        events.fail(error)
