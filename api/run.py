"""The jobs of one request while they are followed: their events merged in order of arrival, and what is still open.

Fed by the dispatcher, read by one route. Knows neither Redis nor HTTP.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass

from api.trail import Usage
from shared.errors import ClientGone, from_event
from shared.messages import ContinuationScore, Done, Event, Failed, Job, Solution, Started, Tokens

Progress = Started | Tokens | Done

_FIRST_EVENT_S = 2.0


@dataclass(frozen=True)
class Outcome:
    """How one job ended well. `num_truncated` and `max_tokens` are what `Started` said."""

    text: str
    finish_reason: str
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
        texts = [""] * len(self.jobs)
        started: dict[int, Started] = {}
        ends: dict[int, Done] = {}
        async for item in self.progress():
            assert item is not None
            index, event = item
            if isinstance(event, Tokens):
                texts[index] += event.text
            elif isinstance(event, Started):
                started[index] = event
            else:
                ends[index] = event
        return [_outcome(texts[index], started.get(index), ends[index]) for index in range(len(self.jobs))]

    def _note(self, index: int, event: Event) -> Progress:
        self.unstarted.pop(index, None)
        if isinstance(event, Started | Tokens):
            return event
        del self.unfinished[index]
        if isinstance(event, Done):
            self.results[index] = "done"
            self.usage += Usage(event.num_prompt_tokens, event.num_completion_tokens)
            return event
        error = from_event(event) if isinstance(event, Failed) else ClientGone("The request was cancelled.")
        self.results[index] = error.code
        raise error


def total_usage(outcomes: Iterable[Outcome]) -> Usage:
    return sum((outcome.usage for outcome in outcomes), Usage())


def _outcome(text: str, started: Started | None, done: Done) -> Outcome:
    usage = Usage(done.num_prompt_tokens, done.num_completion_tokens)
    num_truncated, max_tokens = (started.num_truncated, started.max_tokens) if started else (0, None)
    return Outcome(text, done.finish_reason, usage, done.scores, num_truncated, max_tokens, done.solution)
