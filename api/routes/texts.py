"""A stream of plain text: a payload for each piece of a completion, and a summary at the end."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from api.http.error_format import PLAIN
from api.http.problem import Problem
from api.http.request_state import Usage
from api.stream.choice_deltas import ChoiceDelta, ChoiceDeltas
from api.stream.request_events import JobEvent, Outcome, OutcomeBuilder
from api.stream.timings import Timings

End = Callable[[Sequence[Outcome], Timings | None], dict[str, Any]]


class Texts:
    """Renders bare text of `num_jobs` jobs with `n` completions each.

    `end` makes the last payload from all outcomes and their timings. Other jobs of the request,
    behind those, are in its outcomes only.
    """

    def __init__(self, n: int, num_jobs: int, end: End, *, num_others: int = 0) -> None:
        self._num_jobs = num_jobs
        self._deltas = ChoiceDeltas(n)
        self._builders = [OutcomeBuilder(n) for _ in range(num_jobs + num_others)]
        self._end = end

    def opening(self) -> dict[str, Any]:
        return _payload(ChoiceDelta(0))

    def of(self, job: int, event: JobEvent) -> Iterator[dict[str, Any]]:
        self._builders[job].add(event)
        if job >= self._num_jobs:
            return
        for delta in self._deltas.of(job, event):
            if delta.text or delta.finish_reason:
                yield _payload(delta)

    def closing(self, usage: Usage, timings: Timings | None) -> Iterator[dict[str, Any]]:
        yield self._end([builder.outcome() for builder in self._builders], timings)

    def failed(self, problem: Problem) -> dict[str, Any]:
        return PLAIN.body(problem)


def _payload(delta: ChoiceDelta) -> dict[str, Any]:
    return {"index": delta.index, "text": delta.text, "finish_reason": delta.finish_reason}
