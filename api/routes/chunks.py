"""The chunks of a streamed completion: one for all that is new of a choice, and its end once."""

from collections.abc import Iterator
from typing import Any

import msgspec

from api.http.error_format import OPENAI
from api.http.problem import Problem
from api.http.request_state import Usage
from api.schemas.chat import chat_logprobs
from api.schemas.logprobs import logprobs_body
from api.schemas.openai import Heading
from api.schemas.usage import detailed_usage_body
from api.stream.choice_deltas import ChoiceDelta, ChoiceDeltas
from api.stream.request_events import JobEvent
from api.stream.timings import Timings


class Chunks:
    """Renders the events of a request's jobs, of `n` choices each.

    It remembers how far the text of each choice has come. An empty chunk opens the stream.
    """

    _object = "text_completion"

    def __init__(self, heading: Heading, n: int, *, with_usage: bool) -> None:
        self._with_usage = with_usage
        self._heading = heading
        self._deltas = ChoiceDeltas(n)
        self._offsets: dict[int, int] = {}

    def opening(self) -> dict[str, Any]:
        return self._choice(ChoiceDelta(0))

    def of(self, job: int, event: JobEvent) -> Iterator[dict[str, Any]]:
        for delta in self._deltas.of(job, event):
            yield from self._chunks(delta)

    def closing(self, usage: Usage, timings: Timings | None) -> Iterator[dict[str, Any]]:
        if self._with_usage:
            yield self._chunk([], detailed_usage_body(usage).model_dump())

    def failed(self, problem: Problem) -> dict[str, Any]:
        return OPENAI.body(problem)

    def _chunks(self, delta: ChoiceDelta) -> Iterator[dict[str, Any]]:
        if delta.text or delta.logprobs or delta.finish_reason:
            yield self._choice(delta)

    def _choice(self, delta: ChoiceDelta) -> dict[str, Any]:
        choice = {
            "index": delta.index,
            "text": delta.text,
            "logprobs": self._logprobs(delta),
            "finish_reason": delta.finish_reason,
        }
        return self._chunk([choice], None)

    def _logprobs(self, delta: ChoiceDelta) -> dict[str, Any] | None:
        offset = self._offsets.get(delta.index, 0)
        body = logprobs_body(delta.ids, delta.logprobs, offset)
        for logprob in delta.logprobs:
            offset += len(logprob.token)
        self._offsets[delta.index] = offset
        if body is None:
            return None
        return body.model_dump()

    def _chunk(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None) -> dict[str, Any]:
        heading = self._heading
        chunk: dict[str, Any] = {
            "id": heading.id,
            "object": self._object,
            "created": heading.created,
            "model": heading.model,
            "choices": choices,
        }
        if self._with_usage:
            chunk["usage"] = usage
        return chunk


class ChatChunks(Chunks):
    """Renders the events of a dialogue.

    The first delta of a choice names the role. Its end has a chunk of its own, with an empty delta.
    """

    _object = "chat.completion.chunk"

    def __init__(self, heading: Heading, n: int, *, with_usage: bool) -> None:
        super().__init__(heading, n, with_usage=with_usage)
        self._begun: set[int] = set()

    def _chunks(self, delta: ChoiceDelta) -> Iterator[dict[str, Any]]:
        if delta.text or delta.logprobs:
            yield self._choice(msgspec.structs.replace(delta, finish_reason=None))
        if delta.finish_reason:
            yield self._choice(ChoiceDelta(delta.index, finish_reason=delta.finish_reason))

    def _choice(self, delta: ChoiceDelta) -> dict[str, Any]:
        body: dict[str, str] = {}
        if delta.index not in self._begun:
            self._begun.add(delta.index)
            body["role"] = "assistant"
        if not delta.finish_reason:
            body["content"] = delta.text
        logprobs = chat_logprobs(delta.ids, delta.logprobs)
        choice = {
            "index": delta.index,
            "delta": body,
            "logprobs": None if logprobs is None else logprobs.model_dump(),
            "finish_reason": delta.finish_reason,
        }
        return self._chunk([choice], None)
