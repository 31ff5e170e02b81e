"""Follows the jobs of a request to their ends, and ends those that nobody waits for any more.

Every way out of `Dispatcher.run` leaves no job behind: whatever had not ended by itself (the caller left, a sibling
failed, time ran out, this front shuts down) is ended in Redis. Knows no dialect; of HTTP only the ASGI `receive`.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from api.run import Outcome, Run
from shared.broker import UNAVAILABLE
from shared.errors import ClientGone, DeadlineExceeded, Draining, FleetError, QueueTimeout
from shared.log import LogReader
from shared.messages import Cancelled, Failed, Job
from shared.metrics import Metrics
from shared.submission import Submissions

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

_REDIS_AWAY_S = 0.5
_END_TRIES = 20
_CLOSE_S = 2.0


class Dispatcher:
    def __init__(
        self,
        submissions: Submissions,
        log: LogReader,
        metrics: Metrics,
        *,
        queue_timeout_s: float,
        request_timeout_s: float,
    ) -> None:
        self._submissions = submissions
        self._log = log
        self._metrics = metrics
        self._queue_timeout_s = queue_timeout_s
        self._request_timeout_s = request_timeout_s
        self._runs: set[Run] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._endings: set[asyncio.Task[None]] = set()

    async def gather(self, jobs: Sequence[Job], receive: Receive) -> list[Outcome]:
        """The outcome of each job, in order. Raises the FleetError of the first that fails."""
        async with self.run(jobs, receive) as run:
            return await run.outcomes()

    @asynccontextmanager
    async def run(self, jobs: Sequence[Job], receive: Receive) -> AsyncIterator[Run]:
        """Follow queued `jobs` for the caller behind `receive`; on leaving, those that have not ended are ended."""
        run = Run(jobs)
        ending: Failed | Cancelled = Cancelled("client")
        late = DeadlineExceeded(f"The request took longer than {self._request_timeout_s:g} s.")
        timer = asyncio.get_running_loop().call_later(self._request_timeout_s, run.fail, late)
        watchers = self._watch(run, receive)
        self._enter(run)
        try:
            yield run
        except FleetError as error:
            ending = _ending_after(error)
            raise
        finally:
            timer.cancel()
            self._leave(run, ending)
            for watcher in watchers:
                watcher.cancel()
            await asyncio.gather(*watchers, return_exceptions=True)

    def call_off(self, jobs: Sequence[Job], ending: Failed | Cancelled) -> None:
        """End what has not ended of `jobs`, behind the caller's back; tries again while Redis is away."""
        if jobs:
            task = asyncio.create_task(self._end(jobs, ending), name="end-jobs")
            self._endings.add(task)
            task.add_done_callback(self._endings.discard)

    async def drain(self, timeout_s: float) -> None:
        """Return when nothing is followed any more; after `timeout_s` the rest is called off."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            for run in self._runs:
                run.fail(Draining("This server is shutting down.", retry_after_s=1))

    async def close(self) -> None:
        """Give the endings that are under way a moment."""
        if self._endings:
            _, late = await asyncio.wait(self._endings, timeout=_CLOSE_S)
            for task in late:
                task.cancel()

    def _enter(self, run: Run) -> None:
        self._runs.add(run)
        self._idle.clear()

    def _leave(self, run: Run, ending: Failed | Cancelled) -> None:
        self._runs.discard(run)
        if not self._runs:
            self._idle.set()
        self._count(run, ending)
        self.call_off(list(run.unfinished.values()), ending)

    def _count(self, run: Run, ending: Failed | Cancelled) -> None:
        model = run.jobs[0].model
        otherwise = ending.code if isinstance(ending, Failed) else ClientGone.code
        for index in range(len(run.jobs)):
            self._metrics.jobs.labels(model, run.results.get(index, otherwise)).inc()
        self._metrics.prompt_tokens.labels(model).inc(run.usage.prompt_tokens)
        self._metrics.cached_prompt_tokens.labels(model).inc(run.usage.cached_prompt_tokens)
        self._metrics.completion_tokens.labels(model).inc(run.usage.completion_tokens)

    def _watch(self, run: Run, receive: Receive) -> list["asyncio.Task[None]"]:
        """Tasks for each job, for the caller's leaving and for the time to queue; what they raise fails `run`."""
        watchers = [asyncio.create_task(self._follow(index, job, run)) for index, job in enumerate(run.jobs)]
        watchers.append(asyncio.create_task(_notice_disconnect(run, receive)))
        watchers.append(asyncio.create_task(self._expire(run)))
        for watcher in watchers:
            watcher.add_done_callback(lambda task: _pass_on(task, run))
        return watchers

    async def _follow(self, index: int, job: Job, run: Run) -> None:
        """Hand over the job's events; while Redis is away, wait for it and go on from the cursor."""
        after = 0
        while True:
            try:
                async for cursor, event in self._log.follow(job.id, after):
                    after = cursor
                    run.put(index, event)
                return
            except UNAVAILABLE:
                await asyncio.sleep(_REDIS_AWAY_S)

    async def _expire(self, run: Run) -> None:
        """When the time to queue is over, end what no worker has taken: there may be no worker left to do so."""
        await asyncio.sleep(self._queue_timeout_s)
        event = QueueTimeout("No worker took the request in time.").as_event()
        await self._end(list(run.unstarted.values()), event, if_waiting=True)

    async def _end(self, jobs: Sequence[Job], event: Failed | Cancelled, *, if_waiting: bool = False) -> None:
        for _ in range(_END_TRIES):
            try:
                await self._submissions.end(jobs, event, if_waiting=if_waiting)
                return
            except UNAVAILABLE:
                await asyncio.sleep(_REDIS_AWAY_S)


def _ending_after(error: FleetError) -> Failed | Cancelled:
    """The terminal event of the jobs that were still open when their request failed with `error`."""
    if isinstance(error, DeadlineExceeded):
        return error.as_event()
    if isinstance(error, ClientGone):
        return Cancelled("client")
    return Cancelled("shutdown" if isinstance(error, Draining) else "sibling")


async def _notice_disconnect(run: Run, receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    run.fail(ClientGone("The client has left."))


def _pass_on(task: "asyncio.Task[None]", run: Run) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        run.fail(error)
