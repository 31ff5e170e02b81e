"""The engine of a model that is served elsewhere. It asks, and emits what is answered.

Requests wait in an event loop on a thread of this engine's own. Their news are emitted by `step`,
from the thread that steps: so a full outbox delays no reading. A request that was begun by another
worker is asked again from its beginning. What it repeats must be what the log holds, and only what
lies beyond is emitted.
"""

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from shared.errors import DeadlineExceeded, FleetError, UpstreamFailed, WorkerFailed
from shared.messages import Done, Failed, Generate, Generated
from shared.telemetry.logging_setup import fields
from worker.engine.engine_stats import EngineStats
from worker.engine.event_loop import call_in_loop
from worker.engine.remote_runner import Connection, Piece, RemoteRunner, Unanswered
from worker.engine.request import Emission
from worker.engine.scheduler import Load
from worker.engine.take import Take

logger = logging.getLogger("aios.engine")

PROBE_IDLE_S = 5.0
PROBE_AWAY_S = 1.0
"""The times between two probes of an engine: while nobody asks it, and while it is away."""
PROBE_TIMEOUT_S = 10.0
FIRST_RETRY_S = 0.25
LONGEST_RETRY_S = 5.0
"""A request is repeated after 0.25, 0.5, 1 ... seconds, up to this, or when the engine says."""
GATHER_S = 0.001
"""The time in which news of several requests is gathered.

An engine with continuous batching answers all of its requests in one moment, each in a packet of
its own. One message for all of them costs less than one for each.
"""
_STEP_WAIT_S = 0.05
"""The longest wait of a step for news, where one is made before there are any."""


@dataclass(frozen=True)
class RemoteWork:
    """A task for the engine, as its runner has read it. Its number of tokens is not known here."""

    take: Take
    item: Any
    num_prompt_tokens: int = 0
    num_truncated: int = 0
    max_tokens: int | None = None
    answer: Done | None = None

    @property
    def key(self) -> str:
        return self.take.key


class RemoteEngine:
    """The engine of one model that is served elsewhere.

    `emit` is called from the thread that steps, and `wake` whenever there is news. `now` is the
    clock of deadlines, in seconds. `close` ends the engine's own thread, and all requests with it.
    """

    def __init__(
        self,
        runner: RemoteRunner,
        emit: Callable[[list[Emission]], None],
        wake: Callable[[], object] = lambda: None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.runner = runner
        self.stats = EngineStats()
        self._emit = emit
        self._wake = wake
        self._now = now
        self._news: queue.SimpleQueue[list[Emission]] = queue.SimpleQueue()
        self._in_hand: dict[str, RemoteWork] = {}
        self._busy_since_s = 0.0
        self._is_up = True
        self._is_broken = False
        # What follows belongs to the loop.
        self._gathered: list[Emission] = []
        self._requests: dict[str, asyncio.Task[None]] = {}
        self._closing = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._run, name="remote", daemon=True).start()

    def prepare(self, take: Take) -> RemoteWork:
        """Read a task that was taken. Raise what `RemoteRunner.read` raises."""
        return RemoteWork(take, self.runner.read(take.task))

    def submit(self, work: RemoteWork) -> None:
        """Ask for work that `prepare` has returned."""
        if not self._in_hand:
            self._busy_since_s = time.perf_counter()
        self._in_hand[work.key] = work
        call_in_loop(self._loop, self._begin, work)

    def abort(self, key: str) -> None:
        """Drop the work of this key: its connection is closed.

        What is in the news already is emitted.
        """
        call_in_loop(self._loop, self._drop, key)

    def close(self) -> None:
        """Close all connections, and end the thread. Nothing waits for that."""
        call_in_loop(self._loop, self._closing.set)

    @property
    def load(self) -> Load:
        """Return the present numbers. May be called from any thread."""
        return Load(running=len(self._in_hand), waiting=0, num_preempted=0)

    @property
    def accepts(self) -> bool:
        """Return False while the engine elsewhere is away: new work stays in the queue."""
        return self._is_up

    @property
    def has_work(self) -> bool:
        """Return whether any request is open, or any news waits to be emitted."""
        return bool(self._in_hand) or bool(self._gathered) or not self._news.empty()

    @property
    def due_in_s(self) -> float | None:
        """Return 0 where there is news, else None: nothing is computed here."""
        if self._news.empty() and not self._is_broken:
            return None
        return 0.0

    def step(self) -> None:
        """Emit the news. Raise RuntimeError once the loop of requests has broken."""
        if self._is_broken:
            raise RuntimeError("the requests to the engine elsewhere broke")
        emissions: list[Emission] = []
        with contextlib.suppress(queue.Empty):
            emissions += self._news.get(timeout=_STEP_WAIT_S)
            while True:
                emissions += self._news.get_nowait()
        if not emissions:
            return
        # Work is measured by the time in which any request was open.
        now_s = time.perf_counter()
        num_rows = len({emission.key for emission in emissions})
        self.stats.note_step(num_rows, now_s - self._busy_since_s)
        self._busy_since_s = now_s
        self._emit(emissions)

    def _run(self) -> None:
        try:
            with contextlib.closing(self._loop):
                self._loop.run_until_complete(self._serve())
        except Exception:  # our own bug: the next step raises, which ends the process
            logger.exception("requests broke")
            self._is_broken = True
            self._wake()

    async def _serve(self) -> None:
        """Let requests run until the engine is closed."""
        async with self.runner.connect() as connection:
            self._connection: Connection = connection
            probing = asyncio.create_task(self._probe())
            await self._closing.wait()
            tasks = [probing, *self._requests.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, work: RemoteWork) -> None:
        request = asyncio.create_task(self._do(work))
        self._requests[work.key] = request
        request.add_done_callback(lambda _: self._forget(work.key))

    def _forget(self, key: str) -> None:
        """Forget a request that has ended, or was dropped."""
        # Only now that its end is among the news, so that `has_work` is true until that is emitted.
        del self._requests[key]
        del self._in_hand[key]

    def _drop(self, key: str) -> None:
        request = self._requests.get(key)
        if request is not None:
            request.cancel()

    async def _do(self, work: RemoteWork) -> None:
        """Ask for a task, and put its news, up to its end, where `step` finds them."""
        answer = Answer(work.take)
        left_s = max(0.0, work.take.deadline_s - self._now())
        ended: Done | Failed
        try:
            async with asyncio.timeout(None if left_s == float("inf") else left_s):
                ended = await self._ask(work, answer)
            self.stats.num_prompt_tokens += ended.num_prompt_tokens
            self.stats.num_tokens += max(0, ended.num_completion_tokens - answer.num_tokens)
        except TimeoutError:
            ended = answer.at_deadline()
        except FleetError as error:
            ended = error.as_event()
        except Exception as error:
            # An engine elsewhere is foreign code: whatever its answer leads to is that job's.
            logger.exception("answer not read", extra=fields(model=self.runner.spec.name))
            ended = WorkerFailed(f"The answer could not be read: {error}").as_event()
        if isinstance(ended, Failed):
            self.stats.num_failures += 1
        self._put(Emission(work.key, ended=ended))

    async def _ask(self, work: RemoteWork, answer: "Answer") -> Done:
        """Ask until there is an answer, and emit it as it comes. Return its end.

        A request of which nothing has come is repeated. Raise UpstreamFailed where that does not
        help, and for an answer that breaks off.
        """
        num_retries = 0
        while True:
            answer.begin()
            try:
                return await self._read(work, answer)
            except Unanswered as error:
                self._note(is_up=not error.is_away, reason=str(error))
                if answer.has_begun:
                    raise UpstreamFailed(
                        f"The engine elsewhere broke off in the middle of its answer: {error}. "
                        "Ask again for a whole one."
                    ) from error
                if num_retries == self.runner.spec.retries:
                    raise UpstreamFailed(
                        f"The engine elsewhere did not answer, asked {num_retries + 1} times: "
                        f"{error}."
                    ) from error
                wait_s = max(_backoff_s(num_retries), error.retry_after_s)
            num_retries += 1
            logger.info(
                "asked again",
                extra=fields(model=self.runner.spec.name, num_retries=num_retries, wait_s=wait_s),
            )
            await asyncio.sleep(wait_s)

    async def _read(self, work: RemoteWork, answer: "Answer") -> Done:
        """Read one answer to its end. Raise Unanswered for one without an end."""
        news = self._connection.answer(work.item)
        # Closed at once where reading ends early, and with it the connection.
        async with contextlib.aclosing(news):
            async for arrived in news:
                self._note(is_up=True)
                if isinstance(arrived, Done):
                    return answer.whole(arrived)
                emission = answer.add(arrived)
                if emission is not None:
                    self.stats.num_tokens += len(emission.ids) or 1
                    self._put(emission)
        raise Unanswered("its answer has no end")

    def _put(self, emission: Emission) -> None:
        """Let the next step emit this, together with what other requests bring meanwhile."""
        self._gathered.append(emission)
        if len(self._in_hand) == 1:
            self._tell()
        elif len(self._gathered) == 1:
            self._loop.call_later(GATHER_S, self._tell)

    def _tell(self) -> None:
        """Hand over the news to the next step."""
        if not self._gathered:  # told meanwhile, with the news of the last request
            return
        gathered = self._gathered
        self._news.put(gathered)
        # Only now, so that `has_work` is true all the time.
        self._gathered = []
        self._wake()

    async def _probe(self) -> None:
        """See whether the engine is there, while no answer shows it."""
        while True:
            await asyncio.sleep(PROBE_IDLE_S if self._is_up else PROBE_AWAY_S)
            if self._is_up and self._requests:
                continue
            try:
                async with asyncio.timeout(PROBE_TIMEOUT_S):
                    await self._connection.check()
            except (Unanswered, FleetError, TimeoutError) as error:
                self._note(is_up=False, reason=str(error) or "it is silent")
            else:
                self._note(is_up=True)

    def _note(self, *, is_up: bool, reason: str = "") -> None:
        if is_up == self._is_up:
            return
        self._is_up = is_up
        name = self.runner.spec.name
        if is_up:
            logger.info("engine elsewhere is back", extra=fields(model=name))
        else:
            logger.warning("engine elsewhere is away", extra=fields(model=name, error=reason))


class Answer:
    """The answer to one take, beside the beginning of it that the log holds.

    `has_begun` tells whether any of it has come since it was last asked for. `num_tokens` counts
    its tokens, or pieces of which the tokens are not told.
    """

    def __init__(self, take: Take) -> None:
        self._take = take
        self._num_choices = 1
        if isinstance(take.task, Generate):
            self._num_choices = take.task.sampling.n
        self.begin()

    def begin(self) -> None:
        """Begin anew."""
        self.has_begun = False
        self.num_tokens = 0
        self._choices: list[_Choice] = []
        for index in range(self._num_choices):
            choice = _Choice()
            if index < len(self._take.replayed_texts):
                choice.logged_text = self._take.replayed_texts[index]
                choice.logged_ids = self._take.replayed_ids[index]
            self._choices.append(choice)

    def add(self, piece: Piece) -> Emission | None:
        """Return the part of a piece that is not in the log, None where there is none.

        Raise UpstreamFailed for a piece that differs from the log.
        """
        if piece.text or piece.ids:
            self.has_begun = True
            self.num_tokens += len(piece.ids) or 1
        choice = self._choices[piece.choice]
        choice.finish_reason = piece.finish_reason or choice.finish_reason
        text = choice.text_beyond(piece.text)
        ids = choice.ids_beyond(piece.ids)
        logprobs = piece.logprobs
        if logprobs:
            logprobs = logprobs[len(logprobs) - len(ids) :]
        if not text and not ids:
            return None
        # Why a choice ended is told with the end of the work, which comes in the same moment: so a
        # worker that takes over never finds a choice that has ended.
        return Emission(self._take.key, ids, text=text, choice=piece.choice, logprobs=logprobs)

    def whole(self, done: Done) -> Done:
        """Return the end of the answer. Raise UpstreamFailed if it is shorter than the log."""
        for choice in self._choices:
            if choice.is_behind:
                raise _differs()
        return done

    def at_deadline(self) -> Done | Failed:
        """Return the end at the deadline: of an answer as far as it has come, else the error."""
        has_output = isinstance(self._take.task, Generate) and any(
            choice.has_output for choice in self._choices
        )
        if not has_output:
            return DeadlineExceeded("The deadline passed before there was an answer.").as_event()
        reasons = tuple(choice.finish_reason or "deadline" for choice in self._choices)
        result = None
        if len(reasons) > 1:
            result = Generated(reasons)
        # After a takeover less may have come again than is logged.
        num_logged = sum(len(choice.logged_ids) for choice in self._choices)
        return Done(
            reasons[0],
            0,
            num_completion_tokens=max(self.num_tokens, num_logged),
            result=result,
        )


@dataclass
class _Choice:
    """One choice: the text and ids that the log holds, and how much of them has come again."""

    logged_text: str = ""
    logged_ids: Sequence[int] = ()
    num_characters: int = 0
    num_ids: int = 0
    finish_reason: str | None = None

    def text_beyond(self, text: str) -> str:
        """Return the part of the next text that is not in the log."""
        known = self.logged_text[self.num_characters : self.num_characters + len(text)]
        if not text.startswith(known):
            raise _differs()
        self.num_characters += len(text)
        return text[len(known) :]

    def ids_beyond(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        """Return those of the next ids that are not in the log."""
        known = tuple(self.logged_ids[self.num_ids : self.num_ids + len(ids)])
        if ids[: len(known)] != known:
            raise _differs()
        self.num_ids += len(ids)
        return ids[len(known) :]

    @property
    def is_behind(self) -> bool:
        """Return whether the log holds more than has come."""
        return self.num_characters < len(self.logged_text) or self.num_ids < len(self.logged_ids)

    @property
    def has_output(self) -> bool:
        return bool(self.logged_text or self.logged_ids or self.num_characters or self.num_ids)


def _backoff_s(num_retries: int) -> float:
    # Bounded, so that the power does not overflow.
    return min(LONGEST_RETRY_S, FIRST_RETRY_S * 2.0 ** min(num_retries, 32))


def _differs() -> UpstreamFailed:
    return UpstreamFailed(
        "A worker was lost in the middle of this answer, and the engine elsewhere gave another one "
        "when it was asked again, so that the beginning cannot be continued. Ask again for a whole "
        "answer."
    )
