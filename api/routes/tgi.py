"""text-generation-inference's dialect: `inputs` and `parameters`, at `/` and at shared paths."""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from api.endpoints.dialect import Dialect
from api.endpoints.endpoint import Endpoint, Post, TaskPlan
from api.http.error_format import TGI
from api.http.problem import Problem
from api.http.request_state import Usage
from api.schemas.tgi import (
    DEFAULT_MAX_TOKENS,
    TgiNotes,
    TgiRequest,
    TgiResponse,
    TgiResponses,
    TgiToken,
    finish_reason,
    notes_of,
    response,
    token_bodies,
    top_bodies,
)
from api.stream.choice_deltas import ChoiceDelta, ChoiceDeltas
from api.stream.request_events import JobEvent, Outcome
from api.stream.stream_format import EVENTS
from api.stream.timings import Timings
from api.submit.limits import Limits
from api.submit.request_record import SubmittedWork
from shared.messages import ModelInfo, Started

_NO_TOKEN = TgiToken(id=0, text="", logprob=0.0, special=True)


class TgiFrames:
    """Renders the frames of one job with one completion.

    There is a frame for each token. The last one has the whole text.
    """

    def __init__(self, notes: TgiNotes) -> None:
        self._notes = notes
        self._deltas = ChoiceDeltas(1)
        self._num_prompt_tokens = 0
        self._num_tokens = 0
        self._text = notes.prefix
        self._last = _NO_TOKEN
        self._last_text = ""

    def opening(self) -> None:
        return None

    def of(self, job: int, event: JobEvent) -> Iterator[dict[str, Any]]:
        if isinstance(event, Started):
            self._num_prompt_tokens = event.num_prompt_tokens
        for delta in self._deltas.of(job, event):
            yield from self._frames(delta)

    def closing(self, usage: Usage, timings: Timings | None) -> Iterator[Any]:
        return iter(())

    def failed(self, problem: Problem) -> dict[str, Any]:
        return TGI.body(problem)

    def _frames(self, delta: ChoiceDelta) -> Iterator[dict[str, Any]]:
        """Yield a frame for each token. The delta's end comes with its last one."""
        self._text += delta.text
        if delta.logprobs:
            self._last_text = delta.logprobs[-1].token
        tokens = self._tokens(delta)
        for index, token in enumerate(tokens):
            self._last = token
            if delta.ids:  # else the frame repeats a token that was counted
                self._num_tokens += 1
            frame: dict[str, Any] = {"index": self._num_tokens, "token": token.model_dump()}
            if self._notes.top_n and index < len(delta.logprobs):
                tops = top_bodies(delta.logprobs[index])
                frame["top_tokens"] = [top.model_dump() for top in tops]
            is_last = index + 1 == len(tokens)
            if is_last and delta.finish_reason:
                frame |= self._end(delta.finish_reason)
            else:
                frame |= _NO_END
            yield frame

    def _tokens(self, delta: ChoiceDelta) -> list[TgiToken]:
        """Return the tokens of a delta, each with the text that it adds.

        A token that may begin a stop string adds nothing until that is certain.
        """
        tokens = token_bodies(delta.ids, delta.logprobs, is_end=delta.finish_reason == "stop")
        if "".join(token.text for token in tokens) != delta.text:
            # The whole text stands with the last token.
            tokens = [token.model_copy(update={"text": ""}) for token in tokens]
            if tokens:
                tokens[-1] = tokens[-1].model_copy(update={"text": delta.text})
        if tokens or not (delta.text or delta.finish_reason):
            return tokens
        return [self._last.model_copy(update={"text": delta.text, "special": not delta.text})]

    def _end(self, reason: str) -> dict[str, Any]:
        details = {
            "finish_reason": finish_reason(reason, self._notes, self._last_text),
            "generated_tokens": self._num_tokens,
            "seed": self._notes.seed,
            "input_length": self._num_prompt_tokens,
        }
        return {"generated_text": self._text, "details": details}


_NO_END: dict[str, Any] = {"generated_text": None, "details": None}


def _plan(body: TgiRequest, model: ModelInfo, limits: Limits) -> TaskPlan:
    notes = notes_of(body)
    budget = limits.budget(body.parameters.max_tokens, DEFAULT_MAX_TOKENS, model)
    task = body.task(budget.max_tokens, with_tokens=body.stream or notes.has_details)
    return TaskPlan([task], budget, notes=msgspec.structs.asdict(notes))


def _model(body: TgiRequest) -> str | None:
    return body.model or body.parameters.model


def _notes(work: SubmittedWork) -> TgiNotes:
    return msgspec.convert(work.record.notes, TgiNotes)


def _one(work: SubmittedWork, outcomes: Sequence[Outcome]) -> TgiResponse:
    return response(outcomes[0], _notes(work))


def _listed(work: SubmittedWork, outcomes: Sequence[Outcome]) -> TgiResponses:
    return TgiResponses([_one(work, outcomes)])


def _frames(work: SubmittedWork) -> TgiFrames:
    return TgiFrames(_notes(work))


ONE = Endpoint(
    name="tgi",
    task="generate",
    body=TgiRequest,
    answer=TgiResponse,
    plan=_plan,
    render=_one,
    stream=_frames,
    stream_format=EVENTS,
    errors=TGI,
    model_of=_model,
)
LISTED = Endpoint(
    name="tgi_list",
    task="generate",
    body=TgiRequest,
    answer=TgiResponses,
    plan=_plan,
    render=_listed,
    stream=_frames,
    stream_format=EVENTS,
    errors=TGI,
    model_of=_model,
)
DIALECT = Dialect(
    (
        Post(
            "/",
            "root",
            (
                "The completion in a list, or with `stream` token by token: asked at the bare "
                "address of a server."
            ),
            (LISTED,),
            tag="tgi",
        ),
    )
)
