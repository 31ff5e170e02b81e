"""What leaves the worker: the events of every job in hand, appended to their logs under the fence.

`put` is called by the engine's thread; everything else belongs to the event loop. All jobs' news since the last round
trip go out as one. Tokens of a job that nobody follows token by token are gathered for a while first. When Redis is
away the news wait here, and after `max_waiting_steps` the engine waits too.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from shared.broker import UNAVAILABLE
from shared.log import Append, LogWriter
from shared.logs import fields, job_fields
from shared.messages import Done, Event, Failed, Terminal, Tokens
from shared.queue import Claim
from worker.attempt import UNTRACED, Attempt
from worker.progress import resting
from worker.request import Emission

logger = logging.getLogger("aios.outbox")

GATHERED_TOKENS, GATHERED_S = 32, 0.5
"""What is said in one append to a job that nobody follows: so many tokens, or those of so long."""


@dataclass
class _Open:
    """A job in hand: where its log stands, and what is to be added.

    `since_s` is when the oldest of that came; `then` is called once it is in the log.
    """

    claim: Claim
    index: int
    attempt: Attempt
    news: list[Event] = field(default_factory=list)
    since_s: float = 0.0
    then: Callable[[], None] | None = None

    def append(self) -> Append:
        """All its news. How long they have waited here concerns the first token alone, which opens what it is in."""
        since_s = self.since_s if isinstance(self.news[0], Tokens) else None
        return Append(self.claim.job, self.claim.epoch, self.index, tuple(self.news), since_s)

    def is_due(self, now_s: float) -> bool:
        if self.claim.job.is_streamed or now_s - self.since_s >= GATHERED_S:
            return bool(self.news)
        num_tokens = sum(len(event.ids) for event in self.news if isinstance(event, Tokens))
        return num_tokens >= GATHERED_TOKENS or not all(isinstance(event, Tokens) for event in self.news)


class Outbox:
    """`on_closed(claim, was_stale)` is called once for every job opened: its end is logged or its epoch over.

    `num_stale` appends came too late: the job was another's by then, or had ended.
    """

    def __init__(
        self, writer: LogWriter, on_closed: Callable[[Claim, bool], None], *, max_waiting_steps: int = 64
    ) -> None:
        self._writer = writer
        self._on_closed = on_closed
        self._jobs: dict[str, _Open] = {}
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._sending = asyncio.Lock()
        self._room = threading.Semaphore(max_waiting_steps)
        self._steps_collected = 0
        self.num_stale = 0

    @property
    def claims(self) -> list[Claim]:
        """Every job in hand."""
        return [job.claim for job in self._jobs.values()]

    def open(self, claim: Claim, attempt: Attempt = UNTRACED) -> None:
        """Take a job in hand. An earlier take of it by this same worker is stale now, and closes by itself."""
        self._jobs[claim.key] = _Open(claim, claim.last_index, attempt)

    def add(self, claim: Claim, event: Event, then: Callable[[], None] | None = None) -> None:
        """Say something of a job outside the engine's steps, if it is still in hand; call `then` when it is logged."""
        job = self._jobs.get(claim.key)
        if job is not None:
            job.news.append(event)
            job.attempt.ended(event)
            job.then = then
            self._wake.set()

    def close(self, claim: Claim, why: str) -> None:
        """Forget a job that is no longer this worker's; `why` is for its trace."""
        job = self._jobs.pop(claim.key, None)
        if job is not None:
            job.attempt.dropped(why)
            self._on_closed(claim, True)

    def ended(self, job_id: str) -> None:
        """Somebody has ended a job: forget every take of it."""
        for claim in [claim for claim in self.claims if claim.job.id == job_id]:
            self.close(claim, "ended_elsewhere")

    def put(self, emissions: list[Emission]) -> None:
        """From the engine's thread: one step's emissions. Waits while too many steps are unsent."""
        with resting():
            self._room.acquire()
        self._loop.call_soon_threadsafe(self._collect, emissions)

    async def flush(self) -> None:
        """Send all there is."""
        await self._send(is_last=True)

    async def run(self) -> None:
        """Send news as they come, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._send()

    def _collect(self, emissions: Sequence[Emission]) -> None:
        self._steps_collected += 1
        for emission in emissions:
            job = self._jobs.get(emission.key)
            if job is not None:
                if not job.news:
                    self._hold(job)
                _add(job.news, emission)
                job.attempt.said(emission)
        self._wake.set()

    def _hold(self, job: _Open) -> None:
        job.since_s = self._loop.time()
        if not job.claim.job.is_streamed:
            self._loop.call_later(GATHERED_S, self._wake.set)

    async def _send(self, *, is_last: bool = False) -> None:
        async with self._sending:  # the next append begins where this one ends
            await self._send_due(is_last)

    async def _send_due(self, is_last: bool) -> None:
        steps, self._steps_collected = self._steps_collected, 0
        now_s = self._loop.time()
        jobs = [job for job in self._jobs.values() if job.news and (is_last or job.is_due(now_s))]
        appends = [job.append() for job in jobs]
        thens = [job.then for job in jobs]
        for job in jobs:
            job.news, job.then = [], None
        if appends:
            for job, append, then, landed in zip(jobs, appends, thens, await self._append(appends), strict=True):
                if self._settle(job, append, landed) and then is not None:
                    then()
        if steps:
            self._room.release(steps)

    async def _append(self, appends: Sequence[Append]) -> list[bool]:
        """Try until Redis answers: the fence makes a repeated append harmless."""
        delay_s = 0.05
        while True:
            try:
                return await self._writer.append(appends)
            except UNAVAILABLE as error:
                logger.warning("redis away, appends wait", extra=fields(num_appends=len(appends), error=str(error)))
                await asyncio.sleep(delay_s)
                delay_s = min(1.0, delay_s * 2)

    def _settle(self, job: _Open, append: Append, landed: bool) -> bool:
        """What an append's answer means; True if the job is still in hand and goes on."""
        if not landed:
            self.num_stale += 1
        if self._jobs.get(job.claim.key) is not job:
            return False
        if not landed:
            logger.info("job dropped", extra=job_fields(job.claim.job, epoch=job.claim.epoch))
            self.close(job.claim, "stale")
            return False
        job.index += len(append.events)
        if isinstance(append.events[-1], Terminal):
            del self._jobs[job.claim.key]
            job.attempt.published()
            _log_end(job.claim, append.events[-1])
            self._on_closed(job.claim, False)
            return False
        return True


def _log_end(claim: Claim, end: Terminal) -> None:
    if isinstance(end, Failed):
        logger.warning("job failed", extra=job_fields(claim.job, model=claim.job.model, error=end.code))
    elif isinstance(end, Done):
        tokens = {"prompt_tokens": end.num_prompt_tokens, "completion_tokens": end.num_completion_tokens}
        logger.debug("job done", extra=job_fields(claim.job, model=claim.job.model, **tokens))


def _add(news: list[Event], emission: Emission) -> None:
    """Join tokens to those of their choice that are still unsent: fewer, larger events."""
    if emission.ids or emission.text or emission.finish_reason:
        tokens = Tokens(emission.ids, emission.text, emission.choice, emission.logprobs, emission.finish_reason)
        for place, event in enumerate(news):
            if isinstance(event, Tokens) and event.choice == tokens.choice:
                news[place] = _joined(event, tokens)
                break
        else:
            news.append(tokens)
    if emission.ended is not None:
        news.append(emission.ended)


def _joined(one: Tokens, other: Tokens) -> Tokens:
    """What a choice said, and what it said next."""
    logprobs = (*one.logprobs, *other.logprobs)
    return Tokens((*one.ids, *other.ids), one.text + other.text, one.choice, logprobs, other.finish_reason)
