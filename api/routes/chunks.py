"""The chunks of a streamed completion: one for each choice that has something new, and each choice's end once."""

from collections.abc import Iterator
from typing import Any

from api.run import Progress, finish_reasons
from api.schemas.chat import chat_logprobs
from api.schemas.logprobs import logprobs_body
from api.schemas.openai import Heading
from api.schemas.usage import detailed_usage_body
from api.trail import Usage
from shared.messages import Done, Tokens

_NOTHING = Tokens(())


class Chunks:
    """Renders the events of a request's jobs, `n` choices each; remembers how far each choice has come. An empty chunk
    opens the stream."""

    _object = "text_completion"

    def __init__(self, heading: Heading, n: int, *, with_usage: bool) -> None:
        self._with_usage = with_usage
        self._heading = heading
        self._n = n
        self._offsets: dict[int, int] = {}
        self._ended: set[int] = set()

    def opening(self) -> dict[str, Any]:
        return self._chunk(self._choice(0, _NOTHING, None))

    def of(self, job: int, event: Progress) -> Iterator[dict[str, Any]]:
        if isinstance(event, Tokens):
            yield from self._said(job * self._n + event.choice, event)
        elif isinstance(event, Done):
            for choice, reason in enumerate(finish_reasons(event)):
                if job * self._n + choice not in self._ended:
                    yield self._end(job * self._n + choice, _NOTHING, reason)

    def closing(self, usage: Usage) -> Iterator[dict[str, Any]]:
        if self._with_usage:
            yield self._chunk(None, detailed_usage_body(usage).model_dump())

    def _said(self, index: int, event: Tokens) -> Iterator[dict[str, Any]]:
        if event.finish_reason:
            yield self._end(index, event, event.finish_reason)
        elif event.text or event.logprobs:
            yield self._chunk(self._choice(index, event, None))

    def _end(self, index: int, event: Tokens, reason: str) -> dict[str, Any]:
        self._ended.add(index)
        return self._chunk(self._choice(index, event, reason))

    def _choice(self, index: int, event: Tokens, reason: str | None) -> dict[str, Any]:
        return {
            "index": index,
            "text": event.text,
            "logprobs": self._logprobs(index, event),
            "finish_reason": reason,
        }

    def _logprobs(self, index: int, event: Tokens) -> dict[str, Any] | None:
        offset = self._offsets.get(index, 0)
        body = logprobs_body(event.ids, event.logprobs, offset)
        self._offsets[index] = offset + sum(len(item.token) for item in event.logprobs)
        return None if body is None else body.model_dump()

    def _chunk(self, choice: dict[str, Any] | None, usage: dict[str, Any] | None = None) -> dict[str, Any]:
        heading = self._heading
        chunk: dict[str, Any] = {
            "id": heading.id,
            "object": self._object,
            "created": heading.created,
            "model": heading.model,
            "choices": [] if choice is None else [choice],
        }
        return chunk | {"usage": usage} if self._with_usage else chunk


class ChatChunks(Chunks):
    """A choice's first delta names the role; its end has a chunk of its own, whose delta is empty."""

    _object = "chat.completion.chunk"

    def __init__(self, heading: Heading, n: int, *, with_usage: bool) -> None:
        super().__init__(heading, n, with_usage=with_usage)
        self._begun: set[int] = set()

    def _said(self, index: int, event: Tokens) -> Iterator[dict[str, Any]]:
        if event.text or event.logprobs:
            yield self._chunk(self._choice(index, event, None))
        if event.finish_reason:
            yield self._end(index, _NOTHING, event.finish_reason)

    def _choice(self, index: int, event: Tokens, reason: str | None) -> dict[str, Any]:
        delta = {} if index in self._begun else {"role": "assistant"}
        self._begun.add(index)
        logprobs = chat_logprobs(event.ids, event.logprobs)
        return {
            "index": index,
            "delta": delta if reason else delta | {"content": event.text},
            "logprobs": None if logprobs is None else logprobs.model_dump(),
            "finish_reason": reason,
        }
