"""The events of a stream of local inference: `token`s, then `done` with the whole answer, or
`error`."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pydantic import BaseModel

from api.http.error_format import API
from api.http.problem import Problem
from api.http.request_state import Usage
from api.stream.choice_deltas import ChoiceDeltas
from api.stream.request_events import JobEvent, Outcome, OutcomeBuilder
from api.stream.stream_format import NamedEvent
from api.stream.timings import Timings

Render = Callable[[Sequence[Outcome], Timings | None], BaseModel]


class InferenceEvents:
    """Renders the events of one job; `finish` makes the whole answer of its outcome and timings."""

    def __init__(self, correlation_id: str, finish: Render) -> None:
        self._correlation_id = correlation_id
        self._finish = finish
        self._deltas = ChoiceDeltas(1)
        self._builder = OutcomeBuilder(1)
        self._count = 0

    def opening(self) -> None:
        return None

    def of(self, job: int, event: JobEvent) -> Iterator[NamedEvent]:
        self._builder.add(event)
        for delta in self._deltas.of(job, event):
            if delta.text:
                yield self._named("token", {"index": self._count, "token": delta.text})
                self._count += 1

    def closing(self, usage: Usage, timings: Timings | None) -> Iterator[NamedEvent]:
        answer = self._finish([self._builder.outcome()], timings)
        yield self._named("done", answer.model_dump(mode="json"))

    def failed(self, problem: Problem) -> NamedEvent:
        return self._named("error", API.body(problem))

    def _named(self, name: str, body: dict[str, Any]) -> NamedEvent:
        return NamedEvent(name, {"correlation_id": self._correlation_id} | body)
