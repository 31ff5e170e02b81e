"""Run the lines of a batch: a few at a time, each noted once, in parts once they are in order."""

import asyncio
import logging
from collections.abc import AsyncGenerator

from api.access.caller import Caller
from api.batches.batch_files import BatchFiles
from api.batches.hold import Hold
from api.batches.known_answers import KnownAnswers
from api.batches.line_answers import fault_answer
from api.batches.line_work import LATER, LineWork
from api.batches.lines import BatchLine, LineFault, RawLine, duplicate, read_line
from api.batches.room import Room
from api.deps import Front
from api.endpoints.endpoint import Post
from shared.queue.batches import Batch, Batches, LineAnswer
from shared.telemetry.logging_setup import fields
from shared.telemetry.metrics import BatchMetrics

_PART_BYTES = 1 << 20
_MOST_AHEAD = 1000
"""The most lines behind the first one without an answer that may be begun."""
_MOST_AHEAD_BYTES = 16 << 20
"""The most bytes of answers that wait for those of earlier lines."""
_MOST_NOTED = 100
"""The most answers that are noted together."""
_MOST_OPEN = 256
_FORGOTTEN_S = 60.0
"""The time for which Redis keeps the request of a line whose answer is noted.

A process that was held up, and has not noticed that another one goes on, finds it meanwhile.
"""
_LOOK_S = 0.1
_RETRIES_S = (0.2, 0.5, 1.0, 2.0, 5.0)

log = logging.getLogger("aios.batches")


class LineRun:
    """A run over the lines of a batch that have no answers yet.

    A line begins where a slot is idle (`Room`), so lines hardly wait in the queue, where they would
    age and go before others. Without `may_begin` lines that were begun before are ended, and no
    others are run.
    """

    def __init__(
        self,
        front: Front,
        batches: Batches,
        files: BatchFiles,
        hold: Hold,
        metrics: BatchMetrics,
        *,
        batch: Batch,
        caller: Caller,
        post: Post,
        seed: int | None,
        may_begin: bool = True,
    ) -> None:
        self._front = front
        self._batches = batches
        self._files = files
        self._hold = hold
        self._metrics = metrics
        self._batch = batch
        self._stopping = asyncio.Event()
        if not may_begin:
            self._stopping.set()
        self._most_open = _MOST_OPEN
        if caller.quota.concurrency:
            # The tenant's other requests have room beside its batches.
            self._most_open = max(1, caller.quota.concurrency // 2)
        self._room = Room(front, batches)
        self._next: RawLine | None = None
        self._work = LineWork(front, caller, post, batch.id, seed, self._stopping)
        self._url = post.path
        self._duplicates: set[int] = set()
        self._known = KnownAnswers(batch.next_line)
        self._tasks: set[asyncio.Task[LineAnswer | None]] = set()
        self._changed = asyncio.Event()
        self._answers: list[LineAnswer] = []
        self._input: AsyncGenerator[RawLine, None] | None = None
        self._last_line = batch.next_line - 1
        self._is_read = False

    async def run(self, for_s: float) -> bool:
        """Run lines until all have answers, for `for_s`, or until the batch is stopped.

        Return whether no line is left to be run. Of a batch that is stopped, those that were begun
        are ended, or have answers. Raise ClaimLost, ArtifactNotFound for a lost input,
        BrokerUnavailable and StorageUnavailable.
        """
        loop = asyncio.get_running_loop()
        until_s = loop.time() + for_s
        claim = self._hold.claim
        self._duplicates = await self._batches.duplicates(claim)
        for number, (outcome, text) in (await self._batches.results(claim)).items():
            self._known.add(number, outcome, text)
        first = self._batch.next_line
        self._input = self._files.lines(self._batch, first=first, offset=self._batch.next_offset)
        try:
            while True:
                self._hold.check()
                if self._hold.stopped.is_set():
                    self._stopping.set()
                await self._begin_lines()
                await self._collect()
                await self._keep_parts()
                if not self._tasks and not self._answers and self._is_read:
                    return True
                if loop.time() > until_s and not self._stopping.is_set():
                    return False
                await self._wait()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._input.aclose()

    async def _begin_lines(self) -> None:
        """Begin as many lines as there is room for."""
        assert self._input is not None
        while self._may_begin():
            raw = self._next
            self._next = None
            if raw is None:
                raw = await anext(self._input, None)
            if raw is None or (self._stopping.is_set() and self._is_beyond(raw)):
                self._is_read = True
                return
            self._known.read(raw)
            self._last_line = raw.number
            if raw.number in self._known:
                continue
            if not await self._begin(raw):
                self._next = raw
                return

    def _may_begin(self) -> bool:
        if self._is_read or len(self._answers) >= _MOST_NOTED:
            return False
        if self._stopping.is_set():
            # Nothing is begun any more: lines are looked for that were begun.
            return len(self._tasks) < self._most_open
        if not self._tasks:
            # The first open line always has room.
            return True
        if len(self._tasks) >= self._most_open:
            return False
        if self._last_line + 1 - self._known.open_line >= _MOST_AHEAD:
            return False
        return self._known.ahead_bytes < _MOST_AHEAD_BYTES

    def _is_beyond(self, raw: RawLine) -> bool:
        """Return whether no process can have begun a line."""
        return raw.number > self._known.open_line + _MOST_AHEAD

    async def _begin(self, raw: RawLine) -> bool:
        """Begin a line, or note its fault. Return False where there is no room for it."""
        line = read_line(raw, url=self._url, max_bytes=self._files.max_line_bytes(self._url))
        if isinstance(line, BatchLine) and raw.number in self._duplicates:
            line = duplicate(line)
        if isinstance(line, LineFault):
            if not self._stopping.is_set():
                self._answers.append(fault_answer(self._batch.id, line))
            return True
        if not self._stopping.is_set() and not await self._room.has_room(line, len(self._tasks)):
            return False
        task = asyncio.create_task(self._answer(line), name="batch-line")
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._changed.set())
        return True

    async def _answer(self, line: BatchLine) -> LineAnswer | None:
        """Return the answer of a line, and make room for another one."""
        try:
            return await self._answer_at_last(line)
        finally:
            self._room.note_end(line)

    async def _answer_at_last(self, line: BatchLine) -> LineAnswer | None:
        """Return the answer of a line, which is tried again while it is refused for a time."""
        num_tries = 0
        while True:
            try:
                return await self._work.answer(line)
            except LATER as error:
                delay_s = _RETRIES_S[min(num_tries, len(_RETRIES_S) - 1)]
                num_tries += 1
                log.debug(
                    "batch line waits",
                    extra=fields(batch=self._batch.id, line=line.number, error=str(error)),
                )
            except Exception:
                # A bug, which would hold up the batch for ever.
                log.exception(
                    "batch line broke", extra=fields(batch=self._batch.id, line=line.number)
                )
                return self._work.broken(line)
            await asyncio.sleep(delay_s)

    async def _collect(self) -> None:
        """Note the answers of lines that have ended, before anything relies on them."""
        self._changed.clear()
        ended = [task for task in self._tasks if task.done()]
        for task in ended:
            self._tasks.remove(task)
            answer = task.result()
            if answer is not None:
                self._answers.append(answer)
        if not self._answers:
            return
        noted = await self._batches.note(self._hold.claim, self._answers)
        if noted is None:
            self._hold.lose()
            self._hold.check()
        done = []
        for answer in self._answers:
            begun = self._work.begun.pop(answer.line, None)
            if begun is not None and answer.outcome == "completed":
                done.append(begun)
            self._known.add(answer.line, answer.outcome, answer.text)
            self._metrics.lines.labels(answer.outcome).inc()
        self._answers.clear()
        await self._front.submissions.forget_soon(done, lives_s=_FORGOTTEN_S)

    async def _keep_parts(self) -> None:
        """Move answers into parts once all lines before them have answers."""
        self._known.advance()
        if self._known.ready_bytes < _PART_BYTES:
            return
        part = self._known.part()
        is_held = await self._batches.flush(
            self._hold.claim,
            from_line=part.from_line,
            next_line=part.next_line,
            next_offset=part.next_offset,
            output_part=await self._files.keep_part(part.outputs),
            error_part=await self._files.keep_part(part.errors),
        )
        if not is_held:
            self._hold.lose()
            self._hold.check()
        self._known.forget(part)

    async def _wait(self) -> None:
        """Wait until a line has ended, or a moment."""
        if self._answers:
            return
        try:
            async with asyncio.timeout(_LOOK_S):
                await self._changed.wait()
        except TimeoutError:
            return
