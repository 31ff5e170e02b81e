"""The chunks of a streamed completion: one for each choice that has something new, and each choice's end once."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from api import sse
from api.run import Progress, finish_reasons
from api.schemas.logprobs import logprobs_body
from api.schemas.usage import detailed_usage_body
from api.trail import Usage
from shared.messages import Done, Tokens


@dataclass(frozen=True)
class Heading:
    """What all chunks of one answer have in common."""

    id: str
    created: int
    model: str


class Chunks:
    """Renders the events of a request's jobs, `n` choices each, as frames; remembers how far each choice has come."""

    def __init__(self, heading: Heading, n: int, *, with_usage: bool) -> None:
        self.with_usage = with_usage
        self._heading = heading
        self._n = n
        self._offsets: dict[int, int] = {}
        self._ended: set[int] = set()

    def of(self, job: int, event: Progress) -> Iterator[bytes]:
        """The frames for an event of the job with this index."""
        if isinstance(event, Tokens):
            index = job * self._n + event.choice
            if event.text or event.logprobs or event.finish_reason:
                yield self._choice(index, event.text, self._logprobs(index, event), event.finish_reason)
        elif isinstance(event, Done):
            for choice, reason in enumerate(finish_reasons(event)):
                if job * self._n + choice not in self._ended:
                    yield self._choice(job * self._n + choice, "", None, reason)

    def usage(self, usage: Usage) -> bytes:
        return self._chunk([], detailed_usage_body(usage).model_dump())

    def _logprobs(self, index: int, event: Tokens) -> dict[str, Any] | None:
        offset = self._offsets.get(index, 0)
        body = logprobs_body(event.ids, event.logprobs, offset)
        self._offsets[index] = offset + sum(len(item.token) for item in event.logprobs)
        return None if body is None else body.model_dump()

    def _choice(self, index: int, text: str, logprobs: dict[str, Any] | None, finish_reason: str | None) -> bytes:
        if finish_reason is not None:
            self._ended.add(index)
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
        return self._chunk([choice], None)

    def _chunk(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None) -> bytes:
        heading = self._heading
        chunk: dict[str, Any] = {
            "id": heading.id,
            "object": "text_completion",
            "created": heading.created,
            "model": heading.model,
            "choices": choices,
        }
        return sse.data(chunk | {"usage": usage} if self.with_usage else chunk)
