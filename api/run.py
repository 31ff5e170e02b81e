"""The jobs of one request while they are followed: their events merged in order of arrival, and what is still open.

Fed by the dispatcher, read by one route. Knows neither Redis nor HTTP.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass

from api.trail import Usage
from shared.errors import ClientGone, from_event
from shared.messages import (
    ContinuationScore,
    Done,
    Event,
    Failed,
    Generate,
    Job,
    Solution,
    Started,
    TokenLogprob,
    Tokens,
)

Progress = Started | Tokens | Done

_FIRST_EVENT_S = 2.0


@dataclass
class Choice:
    """One completion of a prompt, as far as it is known. `logprobs` are one for each id, or none at all.

    `q_values` are q_halt and q_continue at its last token, of a model with a q head.
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
    """How one job ended well. `num_truncated` and `max_tokens` are what `Started` said."""

    choices: tuple[Choice, ...]
    usage: Usage
    scores: tuple[ContinuationScore, ...] = ()
    num_truncated: int = 0
    max_tokens: int | None = None
    solution: Solution | None = None


class Run:
    """Jobs go by their index in the request."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = tuple(jobs)
        self.unfinished = dict(enumerate(jobs))
        self.unstarted = dict(enumerate(jobs))
        self.results: dict[int, str] = {}  # "done" or an error code, of the jobs that have ended
        self.usage = Usage()
        self._inbox: asyncio.Queue[tuple[int, Event] | BaseException] = asyncio.Queue()

    def put(self, index: int, event: Event) -> None:
        self._inbox.put_nowait((index, event))

    def fail(self, error: BaseException) -> None:
        """Make `progress` raise."""
        self._inbox.put_nowait(error)

    async def progress(self, quiet_s: float | None = None) -> AsyncIterator[tuple[int, Progress] | None]:
        """Events of all jobs as they come, until the last is done; None whenever nothing came for `quiet_s`.

        The first wait is shorter, so that a stream can begin. Raises the FleetError of the first job that fails.
        """
        wait_s = None if quiet_s is None else min(quiet_s, _FIRST_EVENT_S)
        while self.unfinished:
            try:
                item = await asyncio.wait_for(self._inbox.get(), wait_s)
            except TimeoutError:
                yield None
            else:
                if isinstance(item, BaseException):
                    raise item
                yield item[0], self._note(*item)
            wait_s = quiet_s

    async def outcomes(self) -> list[Outcome]:
        """How each job ended, in the order of the jobs. Raises the FleetError of the first that fails."""
        choices = [_empty_choices(job) for job in self.jobs]
        started: dict[int, Started] = {}
        ends: dict[int, Done] = {}
        async for item in self.progress():
            assert item is not None
            index, event = item
            if isinstance(event, Tokens):
                choices[index][event.choice].add(event)
            elif isinstance(event, Started):
                started[index] = event
            else:
                ends[index] = event
        return [_outcome(choices[index], started.get(index), ends[index]) for index in range(len(self.jobs))]

    def _note(self, index: int, event: Event) -> Progress:
        self.unstarted.pop(index, None)
        if isinstance(event, Started | Tokens):
            return event
        del self.unfinished[index]
        if isinstance(event, Done):
            self.results[index] = "done"
            self.usage += usage_of(event)
            return event
        error = from_event(event) if isinstance(event, Failed) else ClientGone("The request was cancelled.")
        self.results[index] = error.code
        raise error


def total_usage(outcomes: Iterable[Outcome]) -> Usage:
    return sum((outcome.usage for outcome in outcomes), Usage())


def usage_of(done: Done) -> Usage:
    return Usage(done.num_prompt_tokens, done.num_completion_tokens, done.num_cached_tokens)


def finish_reasons(done: Done) -> tuple[str, ...]:
    """Why each choice ended."""
    return done.finish_reasons or (done.finish_reason,)


def _empty_choices(job: Job) -> tuple[Choice, ...]:
    return tuple(Choice() for _ in range(job.task.sampling.n if isinstance(job.task, Generate) else 1))


def _outcome(choices: tuple[Choice, ...], started: Started | None, done: Done) -> Outcome:
    for choice, reason in zip(choices, finish_reasons(done), strict=True):
        choice.finish_reason = reason
    for choice, q_values in zip(choices, done.q_values, strict=False):
        choice.q_values = q_values
    num_truncated, max_tokens = (started.num_truncated, started.max_tokens) if started else (0, None)
    return Outcome(choices, usage_of(done), done.scores, num_truncated, max_tokens, done.solution)
