"""The outbox: the news of every job in hand are appended to its log under the fence.

`put` is called by threads that compute. All other methods belong to the event loop. The news of all
jobs since the last round trip are sent in one round trip. Tokens of a job that nobody follows token
by token are gathered for a while first. When Redis is away the news wait here, and after
`max_waiting_steps` steps the engines wait, too.
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
from worker.engine.event_loop import call_in_loop
from worker.engine.heartbeat import resting
from worker.engine.request import Emission
from worker.engine.task_runner import NewFile
from worker.host.ledger import Entry, Ledger

logger = logging.getLogger("aios.outbox")

GATHERED_TOKENS = 32
GATHERED_S = 0.5
"""The limits of one append to a job that nobody follows: its tokens, and how long they wait."""


class Outbox:
    """The news of all jobs in hand, on their way to Redis.

    `num_stale` counts appends that came too late: the job was another worker's by then, or had
    ended. Files of an answer become artifacts before its end is logged. A worker that repeats the
    job makes the same artifacts.
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

    def add(self, claim: Claim, event: Event, on_logged: Callable[[], None] | None = None) -> None:
        """Queue an event that is of no engine's step, if its job is still in hand.

        Call `on_logged` when it is in the log.
        """
        entry = self._ledger.get(claim.key)
        if entry is not None:
            entry.news.append(event)
            entry.job_span.ended(event)
            entry.on_logged = on_logged
            self._wake.set()

    def put(self, emissions: list[Emission]) -> None:
        """Queue one step's emissions, from the thread that computed them.

        Wait while too many steps are unsent.
        """
        # A thread that waits for Redis does not hang.
        with resting():
            self.room.acquire()
        call_in_loop(self._loop, self._collect, emissions)

    async def flush(self) -> None:
        """Send all news, after the files that are being stored."""
        await asyncio.gather(*self._keeping)
        await self._send(is_last=True)

    async def run(self) -> None:
        """Send news as they come, until this task is cancelled."""
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
            entry.job_span.emitted(emission)
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
        """Store the files of an answer as artifacts, and then queue its end."""
        ended: Event | None = emission.ended
        assert isinstance(ended, Done)
        try:
            refs: list[ArtifactRef] = []
            for file in emission.files:
                refs.append(await self._kept(claim, file))
        except FleetError as error:
            ended = error.as_event()
        except Exception as error:  # a job must have an end, even if its files are lost
            logger.exception("files not kept", extra=job_fields(claim.job))
            ended = WorkerFailed(f"The answer's files could not be kept: {error}").as_event()
        else:
            ended = msgspec.structs.replace(ended, artifacts=tuple(refs))
        self.add(claim, ended)

    async def _kept(self, claim: Claim, file: NewFile) -> ArtifactRef:
        """Store a file as an artifact. Repeat until Redis answers, or the job has left the ledger.

        Raise the store's FleetErrors, such as OverStorageQuota.
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
        """Note the time of a job's first news.

        If nobody follows the job, make sure that they are sent within GATHERED_S.
        """
        entry.since_s = self._loop.time()
        if not entry.claim.job.is_streamed:
            self._loop.call_later(GATHERED_S, self._wake.set)

    async def _send(self, *, is_last: bool = False) -> None:
        # One at a time, because an append's index follows from the result of the one before it.
        async with self._sending:
            await self._send_due(is_last)

    async def _send_due(self, is_last: bool) -> None:
        steps = self._steps_collected
        self._steps_collected = 0
        now_s = self._loop.time()
        entries: list[Entry] = []
        appends: list[Append] = []
        callbacks: list[Callable[[], None] | None] = []
        for entry in self._ledger.entries:
            if not entry.news or not (is_last or _is_due(entry, now_s)):
                continue
            entries.append(entry)
            appends.append(_append(entry))
            callbacks.append(entry.on_logged)
            entry.is_ending = isinstance(entry.news[-1], Terminal)
            # News that come during the round trip belong to the next append.
            entry.news = []
            entry.on_logged = None

        if appends:
            are_logged = await self._append(appends)
            for entry, append, on_logged, is_logged in zip(
                entries, appends, callbacks, are_logged, strict=True
            ):
                if self._settle(entry, append, is_logged) and on_logged is not None:
                    on_logged()
        # Only now that Redis has answered, so that engines wait while Redis is away.
        if steps:
            self.room.release(steps)

    async def _append(self, appends: Sequence[Append]) -> list[bool]:
        """Append, and return for each append whether the fence let it pass.

        Repeat until Redis answers. The fence makes a repeated append harmless.
        """
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

    def _settle(self, entry: Entry, append: Append, is_logged: bool) -> bool:
        """Update the ledger after an append. Return whether the job goes on in this worker."""
        if not is_logged:
            self.num_stale += 1
        # The job may have been closed during the round trip.
        if self._ledger.get(entry.claim.key) is not entry:
            return False
        if not is_logged:
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
    # The time that news have waited is measured only where the append begins with tokens.
    since_s = entry.since_s if isinstance(entry.news[0], Tokens) else None
    return Append(
        entry.claim.job,
        entry.claim.epoch,
        after=entry.index,
        events=tuple(entry.news),
        since_s=since_s,
    )


def _is_due(entry: Entry, now_s: float) -> bool:
    """Return whether the news of a job have to be sent now."""
    if entry.claim.job.is_streamed or now_s - entry.since_s >= GATHERED_S:
        return True
    # Only tokens and progress may wait. A start or an end is sent at once.
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
    """Add an emission to unsent news. Tokens are joined to those of the same choice."""
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
