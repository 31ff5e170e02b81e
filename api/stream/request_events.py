"""The events of one request's jobs, merged in the order of their arrival, and their outcomes.

The dispatcher puts them in, and one route reads them. This module knows neither Redis nor HTTP.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import msgspec

from api.http.request_state import Usage
from shared.errors import ClientGone, FleetError, WorkerFailed, from_event
from shared.messages import (
    ArtifactRef,
    Cancelled,
    Done,
    Event,
    Failed,
    Generated,
    Progress,
    Result,
    Started,
    Terminal,
    TokenLogprob,
    Tokens,
)

SomeResult = TypeVar("SomeResult", bound=Result)
JobEvent = Started | Tokens | Progress | Done
"""An event of a job that has not failed."""

FIRST_TOKEN_S = 2.0
"""A stream that has no token by then begins without one, so that its caller sees it live."""


@dataclass
class Choice:
    """One completion of a prompt, as far as it is known.

    There are as many `logprobs` as ids, or none. `q_values` are q_halt and q_continue at the last
    token, of a model with a q head.
    """

    text: str = ""
    finish_reason: str = ""
    ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    q_values: tuple[float, float] | None = None

    def add(self, event: Tokens) -> None:
        self.text += event.text
        self.ids += event.ids
        self.logprobs += event.logprobs


@dataclass(frozen=True)
class Outcome:
    """The outcome of a job that ended well.

    `num_truncated` and `max_tokens` are those of `Started`, `result` and `artifacts` those of
    `Done`. `file_bytes` are the bytes of the artifacts, for an endpoint that renders them.
    """

    choices: tuple[Choice, ...]
    usage: Usage
    result: Result | None = None
    num_truncated: int = 0
    max_tokens: int | None = None
    artifacts: tuple[ArtifactRef, ...] = ()
    file_bytes: tuple[bytes, ...] = ()

    def as_a(self, kind: type[SomeResult]) -> SomeResult:
        """Return the result, which is of this kind.

        Raise WorkerFailed if a worker of another version has given none.
        """
        if not isinstance(self.result, kind):
            raise WorkerFailed("The worker that did this speaks another version of the protocol.")
        return self.result

    @property
    def num_amended(self) -> int:
        if isinstance(self.result, Generated):
            return self.result.num_amended
        return 0


class OutcomeBuilder:
    """Builds the outcome of one job of `n` choices from its events."""

    def __init__(self, n: int) -> None:
        self._choices = [Choice() for _ in range(n)]
        self._started: Started | None = None
        self._done: Done | None = None

    def add(self, event: Event) -> None:
        if isinstance(event, Tokens):
            self._choices[event.choice].add(event)
        elif isinstance(event, Started):
            self._started = event
        elif isinstance(event, Done):
            self._done = event

    def outcome(self, otherwise: str = "") -> Outcome:
        """Return the outcome as it stands.

        Choices of a job that is not done get the finish reason `otherwise`.
        """
        reasons = (otherwise,) * len(self._choices)
        q_values: Sequence[tuple[float, float] | None] = ()
        outcome = Outcome(tuple(self._choices), Usage())
        if self._started is not None:
            outcome = replace(
                outcome,
                num_truncated=self._started.num_truncated,
                max_tokens=self._started.max_tokens,
            )
        if self._done is not None:
            reasons = finish_reasons(self._done)
            q_values = self._done.generated.q_values
            outcome = replace(
                outcome,
                usage=usage_of(self._done),
                result=self._done.result,
                artifacts=self._done.artifacts,
            )
        if not q_values:
            q_values = (None,) * len(self._choices)
        for choice, reason, values in zip(self._choices, reasons, q_values, strict=True):
            choice.finish_reason = choice.finish_reason or reason
            choice.q_values = values
        return outcome


class RequestEvent(msgspec.Struct, frozen=True):
    """An event of a job, with the job's number in its request and the event's index in its log."""

    job: int
    index: int
    event: JobEvent


class RequestEvents:
    """The events of one request's jobs, and what is still open.

    `unfinished` and `unstarted` are ids of jobs, by the job's number in the request. `results` are
    "done" or an error code, for the jobs that have ended. `usage` sums up the jobs that are done.
    """

    def __init__(self, job_ids: Sequence[str], n: int = 1) -> None:
        self.unfinished = dict(enumerate(job_ids))
        self.unstarted = dict(enumerate(job_ids))
        self.results: dict[int, str] = {}
        self.usage = Usage()
        self._builders = [OutcomeBuilder(n) for _ in job_ids]
        self._inbox: asyncio.Queue[tuple[int, int, Event] | BaseException | None] = asyncio.Queue()

    def put(self, job: int, index: int, event: Event) -> None:
        self._inbox.put_nowait((job, index, event))

    def fail(self, error: BaseException) -> None:
        """Make `progress` raise this error."""
        self._inbox.put_nowait(error)

    async def progress(self, quiet_s: float | None = None) -> AsyncIterator[RequestEvent | None]:
        """Yield the events of all jobs as they come, until the last job is done.

        Yield None whenever nothing has come for `quiet_s`. The wait is shorter before the first
        token, so that a stream can begin. Raise the FleetError of the first job that fails.
        """
        silence = None
        if quiet_s is not None:
            silence = _Silence(lambda: self._inbox.put_nowait(None), min(quiet_s, FIRST_TOKEN_S))
        try:
            while self.unfinished:
                arrived = await self._inbox.get()
                if isinstance(arrived, BaseException):
                    raise arrived
                is_start = arrived is not None and isinstance(arrived[2], Started)
                if silence is not None:
                    silence.ends(None if is_start else quiet_s)
                if arrived is None:
                    yield None
                    continue
                job, index, event = arrived
                yield RequestEvent(job, index, self._note(job, event))
        finally:
            if silence is not None:
                silence.close()

    async def outcomes(self) -> list[Outcome]:
        """Return the outcome of each job, in order.

        Raise the FleetError of the first that fails.
        """
        async for arrived in self.progress():
            assert arrived is not None
            self._builders[arrived.job].add(arrived.event)
        return [builder.outcome() for builder in self._builders]

    def _note(self, job: int, event: Event) -> JobEvent:
        """Keep the account of open jobs. Return the event, or raise the error that it tells of."""
        self.unstarted.pop(job, None)
        if not isinstance(event, Terminal):
            return event
        del self.unfinished[job]
        if isinstance(event, Done):
            self.results[job] = "done"
            self.usage += usage_of(event)
            return event
        error = error_of(event)
        self.results[job] = error.code
        raise error


class _Silence:
    """Calls `on_quiet` whenever `ends` was not called for `wait_s` seconds.

    One timer looks now and then, because a new one for each token would cost as much as the token.
    """

    def __init__(self, on_quiet: Callable[[], None], wait_s: float) -> None:
        self._on_quiet = on_quiet
        self._wait_s = wait_s
        self._loop = asyncio.get_running_loop()
        self._since_s = self._loop.time()
        self._timer = self._loop.call_later(wait_s, self._look)

    def ends(self, wait_s: float | None = None) -> None:
        """Note that something has come. From now on wait for `wait_s`, None for as long as before."""
        self._since_s = self._loop.time()
        if wait_s is not None:
            self._wait_s = wait_s

    def close(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        now_s = self._loop.time()
        due_s = self._since_s + self._wait_s
        if due_s <= now_s:
            self._since_s = now_s
            due_s = now_s + self._wait_s
            self._on_quiet()
        self._timer = self._loop.call_at(due_s, self._look)


def error_of(event: Failed | Cancelled) -> FleetError:
    """Return the error of a job that ended without a result, for whoever waits for it."""
    if isinstance(event, Failed):
        return from_event(event)
    return ClientGone("The request was cancelled.")


def total_usage(outcomes: Iterable[Outcome]) -> Usage:
    return sum((outcome.usage for outcome in outcomes), Usage())


def usage_of(done: Done) -> Usage:
    return Usage(
        done.num_prompt_tokens,
        done.num_completion_tokens,
        done.num_cached_tokens,
        done.depth,
    )


def finish_reasons(done: Done) -> tuple[str, ...]:
    """Return the reason why each choice ended."""
    return done.generated.finish_reasons or (done.finish_reason,)
