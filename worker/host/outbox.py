"""The worker's way out: the news of every job in hand are appended to its log under the fence.

`put` is called by threads that compute; everything else belongs to the event loop. All jobs' news
since the last round trip go out as one. Tokens of a job that nobody follows token by token are
gathered for a while first. When Redis is away the news wait here, and after `max_waiting_steps` the
engines wait too.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence

import msgspec

from shared.artifacts.store import ArtifactStore, Label
from shared.errors import BrokerUnavailable, FleetError, WorkerFailed
from shared.events.log import Append, LogWriter
from shared.messages import ArtifactRef, Done, Event, Failed, Progress, Terminal, Tokens
from shared.queue.broker import UNAVAILABLE
from shared.queue.leases import Claim
from shared.telemetry.logging_setup import fields, job_fields
from worker.engine.heartbeat import resting
from worker.engine.request import Emission
from worker.engine.task_runner import NewFile
from worker.host.ledger import Entry, Ledger

logger = logging.getLogger("aios.outbox")

GATHERED_TOKENS = 32
GATHERED_S = 0.5
"""The size of one append to a job that nobody follows: so many tokens, or those of so long."""


class Outbox:
    """The news of all jobs in hand, on their way to Redis.

    `num_stale` appends came too late: the job was another's by then, or had ended. Files of an
    answer become artifacts before its end is logged; a worker that repeats the job makes the same
    ones.
    """

    def __init__(
        self,
        writer: LogWriter,
        ledger: Ledger,
        artifacts: ArtifactStore,
        *,
        max_waiting_steps: int = 64,
    ) -> None:
        self._writer = writer
        self._ledger = ledger
        self._artifacts = artifacts
        self._keeping: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._sending = asyncio.Lock()
        self.room = threading.Semaphore(max_waiting_steps)
        self._steps_collected = 0
        self.num_stale = 0

    def add(self, claim: Claim, event: Event, then: Callable[[], None] | None = None) -> None:
        """Queue an event of a job outside an engine's steps, if the job is still in hand. Call
        `then` when it is logged."""
        entry = self._ledger.get(claim.key)
        if entry is not None:
            entry.news.append(event)
            entry.job_span.ended(event)
            entry.then = then
            self._wake.set()

    def put(self, emissions: list[Emission]) -> None:
        """Take one step's emissions from the thread that computed them. Wait while too many steps
        are unsent."""
        # The thread does not hang when it is Redis that it waits for.
        with resting():
            self.room.acquire()
        self._loop.call_soon_threadsafe(self._collect, emissions)

    async def flush(self) -> None:
        """Send all there is, with the files that are being kept."""
        await asyncio.gather(*self._keeping)
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
            entry = self._ledger.get(emission.key)
            if entry is None:
                continue
            if not entry.news:
                self._hold(entry)
            if emission.progress is not None:
                entry.note_progress(emission.progress)
            entry.job_span.said(emission)
            if emission.files:
                self._keep(entry.claim, emission)
            else:
                add_emission(entry.news, emission)
        self._wake.set()

    def _keep(self, claim: Claim, emission: Emission) -> None:
        task = asyncio.create_task(self._keep_files(claim, emission), name="keep-files")
        self._keeping.add(task)
        task.add_done_callback(self._keeping.discard)

    async def _keep_files(self, claim: Claim, emission: Emission) -> None:
        """Put the files of an answer where its caller finds them, and then queue its end."""
        ended: Event | None = emission.ended
        assert isinstance(ended, Done)
        try:
            refs: list[ArtifactRef] = []
            for file in emission.files:
                refs.append(await self._kept(claim, file))
        except FleetError as error:
            ended = error.as_event()
        except Exception as error:  # a job must have an end, whatever became of its files
            logger.exception("files not kept", extra=job_fields(claim.job))
            ended = WorkerFailed(f"The answer's files could not be kept: {error}").as_event()
        else:
            ended = msgspec.structs.replace(ended, artifacts=tuple(refs))
        self.add(claim, ended)

    async def _kept(self, claim: Claim, file: NewFile) -> ArtifactRef:
        """Make an artifact of a file. Try until Redis answers, or the job is no longer in hand.

        Raise OverStorageQuota and the like.
        """
        label = Label(file.media_type, file.name)
        delay_s = 0.05
        while True:
            try:
                artifact = await self._artifacts.put(claim.job.tenant, file.data, label)
                return artifact.ref
            except UNAVAILABLE as error:
                if self._ledger.get(claim.key) is None:
                    raise BrokerUnavailable("Redis is not reachable.") from error
                logger.warning("redis away, files wait", extra=fields(error=str(error)))
                await asyncio.sleep(delay_s)
                delay_s = min(1.0, delay_s * 2)

    def _hold(self, entry: Entry) -> None:
        """Note when the first of a job's news came. If nobody follows the job, send them in a
        while."""
        entry.since_s = self._loop.time()
        if not entry.claim.job.is_streamed:
            self._loop.call_later(GATHERED_S, self._wake.set)

    async def _send(self, *, is_last: bool = False) -> None:
        async with self._sending:  # the next append begins where this one ends
            await self._send_due(is_last)

    async def _send_due(self, is_last: bool) -> None:
        steps = self._steps_collected
        self._steps_collected = 0
        now_s = self._loop.time()
        entries: list[Entry] = []
        appends: list[Append] = []
        thens: list[Callable[[], None] | None] = []
        for entry in self._ledger.entries:
            if not entry.news or not (is_last or _is_due(entry, now_s)):
                continue
            entries.append(entry)
            appends.append(_append(entry))
            thens.append(entry.then)
            # What comes while Redis is asked belongs to the next append.
            entry.news = []
            entry.then = None

        if appends:
            landed = await self._append(appends)
            for entry, append, then, has_landed in zip(
                entries, appends, thens, landed, strict=True
            ):
                if self._settle(entry, append, has_landed) and then is not None:
                    then()
        # Only when Redis has answered: engines that wait for room are held up by it this way.
        if steps:
            self.room.release(steps)

    async def _append(self, appends: Sequence[Append]) -> list[bool]:
        """Try until Redis answers: the fence makes a repeated append harmless."""
        delay_s = 0.05
        while True:
            try:
                return await self._writer.append(appends)
            except UNAVAILABLE as error:
                logger.warning(
                    "redis away, appends wait",
                    extra=fields(num_appends=len(appends), error=str(error)),
                )
                await asyncio.sleep(delay_s)
                delay_s = min(1.0, delay_s * 2)

    def _settle(self, entry: Entry, append: Append, has_landed: bool) -> bool:
        """Do what an append's answer asks for. Return whether the job is still in hand and goes
        on."""
        if not has_landed:
            self.num_stale += 1
        # The job may have been closed while Redis was asked.
        if self._ledger.get(entry.claim.key) is not entry:
            return False
        if not has_landed:
            logger.info("job dropped", extra=job_fields(entry.claim.job, epoch=entry.claim.epoch))
            self._ledger.close(entry.claim, "stale")
            return False

        entry.index += len(append.events)
        last = append.events[-1]
        if isinstance(last, Terminal):
            _log_end(entry.claim, last)
            self._ledger.finish(entry)
            return False
        return True


def _append(entry: Entry) -> Append:
    """Return an append of all news of a job."""
    # The time that news have waited matters for the first token alone, which opens its append.
    since_s = entry.since_s if isinstance(entry.news[0], Tokens) else None
    return Append(
        entry.claim.job,
        entry.claim.epoch,
        after=entry.index,
        events=tuple(entry.news),
        since_s=since_s,
    )


def _is_due(entry: Entry, now_s: float) -> bool:
    """Return whether the news of a job must wait no longer."""
    if entry.claim.job.is_streamed or now_s - entry.since_s >= GATHERED_S:
        return True
    # Only tokens and progress may wait: a start or an end goes out at once.
    num_tokens = 0
    for event in entry.news:
        if isinstance(event, Tokens):
            num_tokens += len(event.ids)
        elif not isinstance(event, Progress):
            return True
    return num_tokens >= GATHERED_TOKENS


def _log_end(claim: Claim, end: Terminal) -> None:
    if isinstance(end, Failed):
        logger.warning(
            "job failed", extra=job_fields(claim.job, model=claim.job.model, error=end.code)
        )
    elif isinstance(end, Done):
        tokens = {
            "prompt_tokens": end.num_prompt_tokens,
            "completion_tokens": end.num_completion_tokens,
        }
        logger.debug("job done", extra=job_fields(claim.job, model=claim.job.model, **tokens))


def add_emission(news: list[Event], emission: Emission) -> None:
    """Join tokens to those of their choice that are still unsent: fewer, larger events."""
    if emission.ids or emission.text or emission.finish_reason:
        tokens = Tokens(
            emission.ids,
            emission.text,
            choice=emission.choice,
            logprobs=emission.logprobs,
            finish_reason=emission.finish_reason,
        )
        for index, event in enumerate(news):
            if isinstance(event, Tokens) and event.choice == tokens.choice:
                news[index] = _joined(event, tokens)
                break
        else:
            news.append(tokens)
    if emission.ended is not None:
        news.append(emission.ended)


def _joined(one: Tokens, other: Tokens) -> Tokens:
    """Return a choice's tokens and the next ones as one event."""
    return Tokens(
        (*one.ids, *other.ids),
        one.text + other.text,
        choice=one.choice,
        logprobs=(*one.logprobs, *other.logprobs),
        finish_reason=other.finish_reason,
    )
