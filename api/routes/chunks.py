"""The chunks of a streamed completion: one for each choice that has something new, and each choice's end once."""

from collections.abc import Iterator
from typing import Any

from api.run import Progress, finish_reasons
from api.schemas.logprobs import logprobs_body
from api.schemas.openai import Heading
from api.schemas.usage import detailed_usage_body
from api.trail import Usage
from shared.messages import Done, Tokens


class Chunks:
    """Renders the events of a request's jobs, `n` choices each; remembers how far each choice has come. An empty chunk
    opens the stream."""

    def __init__(self, heading: Heading, n: int, *, with_usage: bool) -> None:
        self._with_usage = with_usage
        self._heading = heading
        self._n = n
        self._offsets: dict[int, int] = {}
        self._ended: set[int] = set()

    def opening(self) -> dict[str, Any]:
        return self._choice(0, "", None, None)

    def of(self, job: int, event: Progress) -> Iterator[dict[str, Any]]:
        if isinstance(event, Tokens):
            index = job * self._n + event.choice
            if event.text or event.logprobs or event.finish_reason:
                yield self._choice(index, event.text, self._logprobs(index, event), event.finish_reason)
        elif isinstance(event, Done):
            for choice, reason in enumerate(finish_reasons(event)):
                if job * self._n + choice not in self._ended:
                    yield self._choice(job * self._n + choice, "", None, reason)

    def closing(self, usage: Usage) -> Iterator[dict[str, Any]]:
        if self._with_usage:
            yield self._chunk([], detailed_usage_body(usage).model_dump())

    def _logprobs(self, index: int, event: Tokens) -> dict[str, Any] | None:
        offset = self._offsets.get(index, 0)
        body = logprobs_body(event.ids, event.logprobs, offset)
        self._offsets[index] = offset + sum(len(item.token) for item in event.logprobs)
        return None if body is None else body.model_dump()

    def _choice(
        self, index: int, text: str, logprobs: dict[str, Any] | None, finish_reason: str | None
    ) -> dict[str, Any]:
        if finish_reason is not None:
            self._ended.add(index)
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
        return self._chunk([choice], None)

    def _chunk(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None) -> dict[str, Any]:
        heading = self._heading
        chunk: dict[str, Any] = {
            "id": heading.id,
            "object": "text_completion",
            "created": heading.created,
            "model": heading.model,
            "choices": choices,
        }
        return chunk | {"usage": usage} if self._with_usage else chunk
